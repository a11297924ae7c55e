"""The checks of lesson 06 pass right answers of several styles and tell the wrong ones that learners give."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dora_lesson import checks, compare, detectable
from dora_lesson.checks.lesson_06 import claims


def line(check: Any, attempt: Any, capsys: pytest.CaptureFixture[str]) -> str:
    check(attempt)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    return printed


def stub(*_: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize("check", [checks.noise, checks.enough, checks.confounds, checks.audit])
def test_a_stub_is_not_yet(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(check, stub, capsys).startswith("not yet: ")


# noise


def by_scipy(a: Any, b: Any) -> str:
    if len(a) < 2:
        return "cannot tell"
    found = stats.ttest_rel(b, a)
    if not found.pvalue < 0.05:
        return "cannot tell"
    return "higher" if found.statistic > 0 else "lower"


def by_compare(a: Any, b: Any) -> str:
    def arm(scores: Any) -> list[dict[str, Any]]:
        cost = {"seconds": 1, "peak_memory_bytes": 1}
        return [{"config": {"method": "x", "seed": i}, "scores": {"loss": s}, **cost} for i, s in enumerate(scores)]

    try:
        found = compare(arm(a), arm(b))
    except ValueError:
        return "cannot tell"
    return "cannot tell" if not found.measurable else "higher" if found.mean > 0 else "lower"


def by_standard_error(a: Any, b: Any) -> str:
    d = np.subtract(b, a)
    if len(d) == 1:
        return "cannot tell"
    mean, error = d.mean(), d.std(ddof=1) / len(d) ** 0.5
    return "higher" if mean > 3 * error else "lower" if mean < -3 * error else "cannot tell"


@pytest.mark.parametrize("right", [by_scipy, by_compare, by_standard_error])
def test_noise_right(right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(checks.noise, right, capsys).startswith("correct: ")


def larger_mean(a: Any, b: Any) -> str:
    return "higher" if statistics.fmean(b) > statistics.fmean(a) else "lower"


def unpaired(a: Any, b: Any) -> str:
    if len(a) < 2 or stats.ttest_ind(a, b).pvalue > 0.05:
        return "cannot tell"
    return larger_mean(a, b)


def means_with_one_run_refused(a: Any, b: Any) -> str:
    return "cannot tell" if len(a) < 2 else larger_mean(a, b)


def wrong_way_round(a: Any, b: Any) -> str:
    return by_scipy(b, a)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (larger_mean, "two single runs say nothing"),
        (unpaired, "subtract pair by pair"),
        (means_with_one_run_refused, "how sure is that mean"),
        (wrong_way_round, "it says 'lower'"),
        (lambda a, b: len(a) > 1, "the answers are higher, lower, cannot tell"),
    ],
)
def test_noise_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.noise, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


# enough


def by_loop(spread: float, difference: float, minutes: float, budget: float) -> int:
    for seeds in range(2, 1000):
        if detectable(spread, seeds) <= difference:
            return seeds if seeds * 2 * minutes <= budget else 0
    return 0


def by_next(spread: float, difference: float, minutes: float, budget: float) -> int:
    most = int(budget // (2 * minutes))
    return next((n for n in range(2, min(most, 500) + 1) if detectable(spread, n) <= difference), 0)


@pytest.mark.parametrize("right", [by_loop, by_next])
def test_enough_right(right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(checks.enough, right, capsys).startswith("correct: ")


def by_normal_formula(spread: float, difference: float, minutes: float, budget: float) -> int:
    n = max(2, int(np.ceil((2.8 * spread / difference) ** 2)))
    return n if 2 * n * minutes <= budget else 0


def one_arm(spread: float, difference: float, minutes: float, budget: float) -> int:
    n = by_loop(spread, difference, 0, 0)
    return n if n * minutes <= budget else 0


def no_budget(spread: float, difference: float, minutes: float, budget: float) -> int:
    return by_loop(spread, difference, 0, 0)


def one_too_many(spread: float, difference: float, minutes: float, budget: float) -> int:
    n = no_budget(spread, difference, 0, 0)
    return n + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (by_normal_formula, "too few"),
        (one_arm, "two methods each"),
        (no_budget, "minutes are too few"),
        (one_too_many, "more than it takes"),
        (lambda s, d, m, b: 1, "too few"),
        (lambda s, d, m, b: (2.8 * s / d) ** 2, "a whole number of seeds"),
        (lambda s, d, m, b: 0, "a whole number of seeds"),
        (lambda s, d, m, b: by_loop(s, d, m, b) or -1, "minutes are too few"),
    ],
)
def test_enough_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.enough, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


# confounds


def by_union(a: Any, b: Any) -> set[str]:
    return {k for k in set(a) | set(b) if k not in ("method", "seed") and a.get(k) != b.get(k)}


def by_items(a: Any, b: Any) -> list[str]:
    return sorted({key for key, _ in a.items() ^ b.items()} - {"method", "seed"})


@pytest.mark.parametrize("right", [by_union, by_items])
def test_confounds_right(right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(checks.confounds, right, capsys).startswith("correct: ")


def pops(a: Any, b: Any) -> set[str]:
    a.pop("method")
    return by_union(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: {k for k in a if a[k] != b.get(k)}, "leave it out"),
        (lambda a, b: {k for k in a if a[k] != b.get(k)} - {"method"}, "leave them out"),
        (lambda a, b: {k for k in a if a[k] != b.get(k)} - {"method", "seed"}, "look at the keys of both"),
        (lambda a, b: by_union(a, b) - ({"r", "lora_alpha"} if a["r"] != b["r"] else set()), "their ratio does not"),
        (lambda a, b: len(by_union(a, b)), "as a set"),
        (pops, "make a copy"),
    ],
)
def test_confounds_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.confounds, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


# audit


def ours() -> dict[str, str]:
    return {name: claim["verdict"] for name, claim in claims().items()}


def coarser() -> dict[str, str]:
    coarse = {"overstated": "depends", "does not run": "wrong", "holds once": "depends"}
    return {name: coarse.get(word, word) for name, word in ours().items()}


def defended() -> dict[str, str]:
    return ours() | {"extra for 7B": "wrong", "training speed": "depends", "rank 8 beats 32": "overstated"}


@pytest.mark.parametrize("right", [ours, coarser, defended])
def test_audit_right(right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(checks.audit, right, capsys).startswith("correct: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ours() | {"8-shot": "holds once"}, "look again at 8-shot"),
        (lambda: ours() | {"axis": "wrong"}, "look again at axis"),
        (lambda: {k: v for k, v in ours().items() if k != "axis"}, "still without one: axis"),
        (lambda: ours() | {"axis": "true"}, "the verdicts are"),
        (lambda: ours() | {"nothing": "wrong"}, "no claim 'nothing'"),
        (lambda: list(ours()), "return a dict"),
    ],
)
def test_audit_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.audit, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed
