"""The checks of lesson 06 pass right answers of several styles and tell the wrong ones that learners give."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dora_lesson import checks, detectable
from dora_lesson.checks.lesson_06 import ALSO, claims


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


def by_standard_error(a: Any, b: Any) -> str:
    d = np.subtract(b, a)
    if len(d) == 1:
        return "cannot tell"
    mean, error = d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    return "higher" if mean > error else "lower" if mean < -error else "cannot tell"


def in_place(a: Any, b: Any) -> str:
    """Uses up the lists that it is given."""
    for i in range(len(a)):
        b[i] -= a[i]
    return by_scipy([0.0] * len(b), b) if len(b) > 1 else "cannot tell"


def in_numpy_words(a: Any, b: Any) -> Any:
    return np.array([by_scipy(a, b)])[0]


@pytest.mark.parametrize("right", [by_scipy, by_standard_error, in_place, in_numpy_words])
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


def all_one_way(a: Any, b: Any) -> str:
    d = np.subtract(b, a)
    if len(d) == 1:
        return "cannot tell"
    return "higher" if (d > 0).all() else "lower" if (d < 0).all() else "cannot tell"


def beyond(errors: float) -> Any:
    """More than so many standard errors, however few the pairs."""

    def attempt(a: Any, b: Any) -> str:
        d = np.subtract(b, a)
        if len(d) == 1 or abs(d.mean()) <= errors * d.std(ddof=1) / len(d) ** 0.5:
            return "cannot tell"
        return "higher" if d.mean() > 0 else "lower"

    return attempt


def by_ranks(a: Any, b: Any) -> str:
    return larger_mean(a, b) if a != b and len(a) > 1 and stats.wilcoxon(a, b).pvalue < 0.05 else "cannot tell"


def by_five(a: Any, b: Any) -> str:
    """What five pairs ask for, asked of ten as well."""
    return beyond(2.8)(a, b) if len(a) > 2 else "cannot tell"


def wrong_way_round(a: Any, b: Any) -> str:
    return by_scipy(b, a)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (larger_mean, "two single runs say nothing"),
        (unpaired, "subtract pair by pair"),
        (means_with_one_run_refused, "how sure is that mean"),
        (wrong_way_round, "you return 'lower'"),
        (by_ranks, "ranks or signs alone"),
        (all_one_way, "the two pairs differ by +0.5 and +9"),
        (beyond(1.96), "the two pairs differ by +1 and +3"),
        (lambda a, b: beyond(1)(a, b) if len(a) > 2 else "cannot tell", "1.4 standard errors from 0"),
        (lambda a, b: beyond(2)(a, b) if len(a) > 2 else "cannot tell", "2.6 standard errors from 0"),
        (lambda a, b: beyond(5**0.5)(a, b) if len(a) > 2 else "cannot tell", "2.6 standard errors from 0"),
        (lambda a, b: all_one_way(a, b) if len(a) > 2 else "cannot tell", "2.6 standard errors from 0"),
        (lambda a, b: beyond(2.8)(a, b) if len(a) > 2 else "cannot tell", "three ask for 4.3"),
        (lambda a, b: beyond(5)(a, b) if len(a) == 3 else by_five(a, b), "ten ask for 2.26"),
        (lambda a, b: by_scipy(sorted(a), sorted(b)), "keep the order"),
        (lambda a, b: (a.sort(), b.sort(), by_scipy(a, b))[-1], "keep the order"),
        (lambda a, b: len(a) > 1, "the answers are higher, lower, cannot tell"),
        (lambda a, b: np.array([by_scipy(a, b)] * 2), "the answers are higher, lower, cannot tell"),
    ],
)
def test_noise_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.noise, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


def test_the_cases_of_noise_say_what_is_true_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words name differences; they are those of the lists."""
    seen = []

    def remembers(a: Any, b: Any) -> str:
        seen.append([round(y - x, 1) for x, y in zip(a, b, strict=True)])
        return by_scipy(a, b)

    assert checks.noise(remembers) is remembers
    ways = [3.2, 0.2, 2.2, 2.0, 0.1], [1.0, 1.1, 0.9, 1.0, -0.0]
    for told in ([0.5, 9], [1, 3], [3, -1, 2, 2, -0.5], [5.8, -14.6, 15.6, -7, 2.7], [9, -4, 7, -6, 2], *ways):
        assert told in seen
    for gains, errors in [([3, -1, 2, 2, -0.5], 1.4), ([3.2, 0.2, 2.2, 2.0, 0.1], 2.6), ([1, 1.1, 0.9, 1, -0.05], 3.7)]:
        assert round(statistics.fmean(gains) / (statistics.stdev(gains) / 5**0.5), 1) == errors
    assert round(float(stats.t.ppf(0.975, 4)), 1) == 2.8


# enough


def by_loop(spread: float, difference: float, minutes: float, budget: float) -> int:
    for seeds in range(2, 1000):
        if detectable(spread, seeds) <= difference:
            return seeds if seeds * 2 * minutes <= budget else 0
    return 0


def by_next(spread: float, difference: float, minutes: float, budget: float) -> int:
    most = int(budget // (2 * minutes))
    return next((n for n in range(2, min(most, 500) + 1) if detectable(spread, n) <= difference), 0)


def in_numpy(spread: float, difference: float, minutes: float, budget: float) -> Any:
    seeds = np.arange(2, 500)
    enough = seeds[[detectable(spread, int(n)) <= difference for n in seeds]][0]
    return enough * (2 * enough * minutes <= budget)


@pytest.mark.parametrize("right", [by_loop, by_next, in_numpy])
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
        (one_arm, "two methods"),
        (lambda s, d, m, b: by_loop(s, d, 1, b), "minutes are too few"),
        (lambda s, d, m, b: by_loop(s, d, 7, b), "204 minutes are enough"),
        (lambda s, d, m, b: by_loop(s, d, m, b - 1), "minutes are enough"),
        (lambda s, d, m, b: by_loop(s, d, m, b) or False, "you return False"),
        (lambda s, d, m, b: float("nan"), "you return nan"),
        (lambda s, d, m, b: True, "you return True"),
        (no_budget, "minutes are too few"),
        (one_too_many, "more than it takes"),
        (lambda s, d, m, b: n if 2 * (n := max(3, no_budget(s, d, 0, 0))) * m <= b else 0, "you return 3 seeds, more"),
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


def test_the_courses_own_ends_where_no_number_of_seeds_is_enough() -> None:
    from dora_lesson.checks.lesson_06 import _enough

    for difference in (0.0, -0.003, 1e-9):
        assert _enough(0.01, difference, 1, 100) == 0


# confounds


def by_union(a: Any, b: Any) -> set[str]:
    return {k for k in set(a) | set(b) if k not in ("method", "seed") and a.get(k) != b.get(k)}


def by_items(a: Any, b: Any) -> list[str]:
    return sorted({key for key, _ in a.items() ^ b.items()} - {"method", "seed"})


def pops_copies(a: Any, b: Any) -> Any:
    a, b = dict(a), dict(b)
    for name in ("method", "seed"):
        a.pop(name, None)
        b.pop(name, None)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def generated(a: Any, b: Any) -> Any:
    yield from (np.str_(name) for name in by_union(a, b))


@pytest.mark.parametrize("right", [by_union, pops_copies, generated])
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
        (lambda a, b: {k for k in a | b if a.get(k) is not b.get(k)} - {"method", "seed"}, "the method alone"),
        (pops, "make a copy"),
        (by_items, "unhashable type: 'list'"),
    ],
)
def test_confounds_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.confounds, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


def clears(a: Any, b: Any) -> set[str]:
    found = by_union(a, b)
    a.clear()
    b.clear()
    return found


@pytest.mark.parametrize("spoils", [pops, clears, lambda a, b: a.update(seed=None) or by_union(a, b)])
def test_a_wrong_answer_leaves_nothing_behind_for_the_next(spoils: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "make a copy" in line(checks.confounds, spoils, capsys)
    for right in (by_union, pops_copies):
        assert line(checks.confounds, right, capsys).startswith("correct: ")
    line(checks.noise, in_place, capsys)
    assert line(checks.noise, by_scipy, capsys).startswith("correct: ")


# audit


def ours() -> dict[str, tuple[str, str]]:
    return {name: (claim["verdict"], claim["evidence"][0]) for name, claim in claims().items()}


def coarser() -> dict[str, Any]:
    coarse = {"overstated": "depends", "does not run": "wrong", "holds once": "depends"}
    return {name: [coarse.get(word, word), f"lesson {place}"] for name, (word, place) in ours().items()}


def defended() -> dict[str, Any]:
    other = {
        "extra for 7B": ("wrong", "Calculation"),
        "rank table": ("no source", 6),
        "axis": ("depends", "notebook 3"),
    }
    return ours() | other | {"training speed": ("depends", "4"), "absolute scores": ("no source", "06")}


@pytest.mark.parametrize("right", [ours, coarser, defended])
def test_audit_right(right: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(checks.audit, right, capsys).startswith("correct: ")


def test_every_alternative_is_of_a_claim_and_none_is_our_own_word() -> None:
    words = {word for word, _ in ours().values()}
    for name, also in ALSO.items():
        assert also <= words - {ours()[name][0]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ours() | {"8-shot": ("holds once", "06")}, "look again at '8-shot'"),
        (lambda: ours() | {"axis": ("wrong", "01")}, "look again at 'axis'"),
        (lambda: {k: v for k, v in ours().items() if k != "axis"}, "1 claims are still without a verdict, 'axis'"),
        (lambda: ours() | {"extra for 7B": ("overstated", "04")}, "look again at 'extra for 7B'"),
        (lambda: ours() | {"axis": ("depends", "05")}, "but lesson 05 does not show it"),
        (lambda: ours() | {"coupling": ("overstated", "calculation")}, "but calculation does not show it"),
        (lambda: {name: ("wrong", place) for name, (_, place) in ours().items()}, "one verdict for all"),
        (lambda: ours() | {"count 8B": ("right", "04")}, "none of the claims holds"),
        (lambda: ours() | {"axis": ("it varies", "01")}, "the verdicts are"),
        (lambda: ours() | {"axis": (["depends"], "01")}, "the verdicts are"),
        (lambda: ours() | {"axis": "depends"}, "give a pair of verdict and evidence"),
        (lambda: ours() | {"axis": ("depends", "my neighbor")}, "name a lesson, 00 to 06, or 'calculation'"),
        (lambda: ours() | {"axis": ("depends", "lesson 07")}, "name a lesson, 00 to 06, or 'calculation'"),
        (lambda: ours() | {"nothing": ("wrong", "06")}, "'nothing' is not the name of a claim"),
        (lambda: list(ours()), "return a dict"),
    ],
)
def test_audit_wrong(wrong: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = line(checks.audit, wrong, capsys)
    assert printed.startswith("wrong: ")
    assert message in printed


def test_a_wrong_audit_names_one_claim_and_not_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    mixed = {name: ("wrong", place) for name, (_, place) in ours().items()} | {"axis": ("depends", "01")}
    printed = line(checks.audit, lambda: mixed, capsys)
    assert sum(f"'{name}'" in printed for name in claims()) == 1
