"""The reader's own two runs: what their scores say of the two methods, in words."""

from __future__ import annotations

import math
import reprlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dora_lesson.core import whole
from dora_lesson.evidence.records import load_runs
from dora_lesson.evidence.stats import detectable, paired_difference

SCORES = ("persona consistency", "task accuracy")
MINUTES = "minutes"
RANGES = {"persona consistency": (0, 10), "task accuracy": (0, 1), MINUTES: (0.001, 1_000_000)}
MOST_SEEDS = 200  # nobody plans for more

Scores = Mapping[str, Sequence[float]]


def recorded_case(record: str = "methods", a: str = "lora", b: str = "dora") -> tuple[dict[str, list[float]], ...]:
    """The scores of two methods of a recorded experiment, one value a seed, in the form that `interpret` takes.

    The minutes are the processor's, which do not depend on what else the machine did.
    """
    recorded = sorted(load_runs(record), key=lambda run: run["config"]["seed"])
    cases: list[dict[str, list[float]]] = []
    for method in (a, b):
        runs = [run for run in recorded if run["config"]["method"] == method]
        scores = {name: [run["scores"][name.replace(" ", "_")] for run in runs] for name in SCORES}
        cases.append(scores | {MINUTES: [run["processor_seconds"] / 60 for run in runs]})
    return cases[0], cases[1]


def interpret(a: Scores, b: Scores, *, items: int, names: tuple[str, str] = ("LoRA", "DoRA")) -> list[str]:
    """What two methods' scores say of each other, a sentence a line.

    Several seeds are compared in pairs, the first value of `a` with the first of `b` and so on. A single pair gets no
    interval: it cannot tell the method from the seed. What the choice of items alone explains is said for the accuracy,
    a share of independent items: its binomial standard error is √(p (1 − p) / items). The two methods' are added as if
    each had items of its own; answers to the same ones, compared item by item, have less.

    Args:
        a, b: "persona consistency" (0 to 10), "task accuracy" (0 to 1) and "minutes", each a list with a value a seed.
        items: how many held-out items were scored.
        names: of the two methods.

    Raises:
        ValueError: a score that is missing, of another length, or out of its range.
    """
    (items,) = whole(items=items)
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != 2:
        raise ValueError(f"names is {names!r}, but the names of two methods are expected.")
    a, b = parse_scores(a), parse_scores(b)
    seeds = len(a[SCORES[0]])
    for score in RANGES:
        if not len(a[score]) == len(b[score]) == seeds:
            lengths = f"{len(a[score])} and {len(b[score])} values"
            raise ValueError(f"{score} has {lengths}, but pairs are expected, one for each seed.")
    lines = [_one_pair(names)] if seeds == 1 else []
    for score in SCORES:
        means = statistics.fmean(a[score]), statistics.fmean(b[score])
        means_in_words = f"{score}: {names[0]} {means[0]:.2f}, {names[1]} {means[1]:.2f}, {names[1]} − {names[0]} "
        if seeds == 1:
            lines.append(f"{means_in_words}{means[1] - means[0]:+.2f}: no interval.")
        else:
            lines.append(means_in_words + _several(a[score], b[score], names))
        if score == "task accuracy":
            lines.append(_items_alone(means, items))
    ratio = statistics.fmean(b[MINUTES]) / statistics.fmean(a[MINUTES])
    each = ", ".join(f"{y / x:.2f}" for x, y in zip(a[MINUTES], b[MINUTES], strict=True))
    pairs = f" (pair by pair {each})" if seeds > 1 else ""
    lines.append(f"time: {names[1]} took {ratio:.2f} times as long as {names[0]}{pairs}, on this machine on that day.")
    return lines


def items_explain(p: float, q: float, items: int) -> float:
    """The gap q − p of two accuracies on `items` items, in standard errors of the choice of items.

    The two scores are taken as unpaired. Equal accuracies are 0 apart; where one is 0 and the other 1, nothing varies
    within either, and the gap is infinitely many errors.
    """
    if p == q:
        return 0.0
    error = _items_error(p, q, items)
    return (q - p) / error if error else math.copysign(math.inf, q - p)


def _items_error(p: float, q: float, items: int) -> float:
    return float(((p * (1 - p) + q * (1 - q)) / items) ** 0.5)


def _one_pair(names: tuple[str, str]) -> str:
    return (
        f"One run of each gives no interval: a second {names[0]} run with another seed would differ from the first as "
        "well, and by how much is not known. Run at least two more seeds of both."
    )


def _several(a: Sequence[float], b: Sequence[float], names: tuple[str, str]) -> str:
    gap = paired_difference(a, b)
    spread = statistics.stdev(y - x for x, y in zip(a, b, strict=True))
    if spread < 1e-12 and abs(gap.mean) < 1e-12:
        return f"{gap}: the same."
    if spread < 1e-12:
        return f"{gap}: each pair differs by as much, which a coarse score can do by chance; more seeds have to tell."
    if gap.measurable:
        ahead = names[1] if gap.mean > 0 else names[0]
        few = "; few seeds, so run more before you rely on it" if gap.count < 5 else ""
        return f"{gap}: {ahead} is ahead by more than its seeds explain{few}."
    if abs(gap.mean) < 1e-12:
        return f"{gap}: no difference shown; the pairs differ both ways and cancel."
    need = next((n for n in range(2, MOST_SEEDS + 1) if detectable(spread, n) <= abs(gap.mean)), None)
    more = f"about {need} seeds" if need else f"more than {MOST_SEEDS} seeds"
    return f"{gap}: no difference shown; to show one of this size would take {more}, if it is there at all."


def _items_alone(means: tuple[float, float], items: int) -> str:
    p, q = means
    error = _items_error(p, q, items)
    if not error and p == q:
        return f"items: both accuracies are {p:.0%}, so {items} items tell the two apart by nothing."
    if not error:
        return f"items: {p:.0%} and {q:.0%} of {items}: as far apart as can be, which their choice does not explain."
    distance = abs(items_explain(p, q, items))
    verdict = "the items alone could explain it" if distance < 2 else "more than the items alone explain"
    return (
        f"items: with {items} of them the gap has a standard error of {error:.3f} from their choice (less where both "
        f"answered the same ones and are compared item by item); it is {distance:.1f} of these, {verdict}."
    )


def parse_scores(scores: Scores) -> dict[str, list[float]]:
    """The scores of one method as lists of numbers, each in its range.

    Raises:
        ValueError: a score that is missing, or out of its range.
    """
    if not isinstance(scores, Mapping):
        expected = f"a dict is expected, with {', '.join(RANGES)}"
        raise ValueError(f"The scores are {reprlib.repr(scores).splitlines()[0]}, but {expected}.")
    parsed = {}
    for score, (lowest, highest) in RANGES.items():
        values: Any = scores.get(score)
        try:
            parsed[score] = [] if isinstance(values, str) else [float(value) for value in values]
        except (TypeError, ValueError):
            parsed[score] = []
        told = parsed[score] and not any(isinstance(value, bool) for value in values)
        if not told or not all(lowest <= value <= highest for value in parsed[score]):
            expected = f"a list with one number for each seed, each from {lowest:g} to {highest:,}"
            raise ValueError(f"{score!r} is {reprlib.repr(values).splitlines()[0]}, but {expected}, is expected.")
    return parsed
