"""Comparisons that a lesson may rest on: paired differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dora_lesson.core import METHODS

Run = dict[str, Any]  # a record of one run


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % interval; `count` pairs went into it."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}, {self.count} pairs)"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of b − a over pairs (the same seed, or the same item) with Student's 95 % interval.

    Raises:
        ValueError: the lengths differ, there are fewer than two pairs, or a value is not a finite number.
    """
    from scipy import stats

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"There are {len(a)} and {len(b)} values, but at least two pairs are expected.")
    differences = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"The values are {[*a]} and {[*b]}, but finite numbers are expected: did a run diverge?")
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(differences))


@dataclass(frozen=True)
class Comparison:
    """What paired runs say of b against a: `mean` of b − a with its 95 % bootstrap interval, `low` to `high`.

    `detectable` is the smallest difference that as many pairs with such a spread would show, at the 5 % level, four
    times in five. `time` and `memory` are b's over a's (medians over the pairs). `differs` holds the settings,
    hardware and versions in which the two runs of a pair differ, as key: (a's, b's). `str()` says it in a sentence.
    """

    measure: str
    names: tuple[str, str]
    mean: float
    low: float
    high: float
    pairs: int
    detectable: float
    time: float
    memory: float
    differs: dict[str, tuple[Any, Any]]

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        a, b = self.names
        text = (
            f"{b} − {a}, {self.measure}: {self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.pairs} pairs): "
        )
        if self.measurable:
            text += f"{b} is {'higher' if self.mean > 0 else 'lower'}"
        else:
            text += "no difference that these runs could show; one of "
            text += f"{self.detectable:.4f} would show four times in five"
        if hardware := self.differs.get("hardware"):
            return f"{text}. Time and memory cannot be compared: {a} ran on {hardware[0]}, and {b} on {hardware[1]}."
        return f"{text}. {b} takes {self.time:.2f} times the time and {self.memory:.2f} times the memory."


def compare(a: Sequence[Run], b: Sequence[Run], measure: str = "loss") -> Comparison:
    """Compare two arms of runs, paired by seed: the difference of a score, with an interval and in words.

    The interval is scipy's percentile bootstrap over the pairs, expanded for small samples (Hesterberg 2015, arXiv
    1411.5279). It covers the seeds alone, not other data, models or settings.

    Args:
        a, b: records of `experiment`, one a seed; both arms with the same seeds.
        measure: which of the records' scores.

    Raises:
        ValueError: fewer than five pairs, no such score, a run that diverged, a seed without its partner, or twice in
            an arm.
    """
    pairs = _pairs(a, b)
    for run in (*a, *b):
        if measure not in run["scores"]:
            raise ValueError(f"measure is {measure!r}, but one of {', '.join(run['scores'])} is expected.")
        if not math.isfinite(score := run["scores"][measure]):
            label = f"{_label(run)} with seed {run['config']['seed']}"
            raise ValueError(f"The run of {label} diverged (its {measure} is {score}): take rates at which none does.")
    differences = [y["scores"][measure] - x["scores"][measure] for x, y in pairs]
    low, high = _bootstrap_interval(differences)
    on_cpu = all("processor_seconds" in run for run in (*a, *b))
    clock = "processor_seconds" if on_cpu else "seconds"  # of a shared CPU, its own share alone
    time, memory = (statistics.median(y[key] / x[key] for x, y in pairs) for key in (clock, "peak_memory_bytes"))
    labels = _label(a[0]), _label(b[0])
    if labels[0] == labels[1]:
        labels = f"{labels[0]} (first arm)", f"{labels[1]} (second arm)"
    return Comparison(
        measure=measure,
        names=labels,
        mean=statistics.fmean(differences),
        low=low,
        high=high,
        pairs=len(pairs),
        detectable=detectable(statistics.stdev(differences), len(pairs)),
        time=time,
        memory=memory,
        differs=_differing(pairs),
    )


def _pairs(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs of both arms, seed by seed."""
    by_seed = [{run["config"]["seed"]: run for run in runs} for runs in (a, b)]
    if [*map(len, by_seed)] != [len(a), len(b)] or by_seed[0].keys() != by_seed[1].keys():
        seeds = [sorted(run["config"]["seed"] for run in runs) for runs in (a, b)]
        raise ValueError(f"The seeds are {seeds[0]} and {seeds[1]}: pass pairs, each seed once in both arms.")
    if (count := len(a)) < 5:
        raise ValueError(
            f"There {'is 1 pair' if count == 1 else f'are {count} pairs'}, but five or more are expected: two runs of "
            "one method differ as well when the seed changes, so a difference says nothing until it is held against "
            "that spread. Run more seeds of both."
        )
    return [(by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0])]


def _bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, expanded for small samples (Hesterberg 2015, section 3.3)."""
    from scipy import stats

    count = len(differences)
    if statistics.stdev(differences) == 0:
        return differences[0], differences[0]
    tail = stats.norm.cdf(-((count / (count - 1)) ** 0.5) * stats.t.ppf(0.975, count - 1))
    result = stats.bootstrap((differences,), np.mean, method="percentile", confidence_level=1 - 2 * tail, rng=0)
    low, high = result.confidence_interval
    return float(low), float(high)


def _differing(pairs: Sequence[tuple[Run, Run]]) -> dict[str, tuple[Any, Any]]:
    """In what the two runs of some pair differ, besides the seed."""
    differs: dict[str, tuple[Any, Any]] = {}
    for runs in pairs:
        x, y = ({**run["config"], **{key: run.get(key) for key in ("hardware", "versions")}} for run in runs)
        for key in x | y:
            if key != "seed" and key not in differs and x.get(key) != y.get(key):
                differs[key] = x.get(key), y.get(key)
    return differs


def arm(
    records: Sequence[Run],
    method: str,
    r: int = 0,
    lora_alpha: float | None = None,
    learning_rate: float | None = None,
) -> list[Run]:
    """The runs of one arm that are to be compared, in the order of their seeds.

    Without `learning_rate` those at the rate that tuning chose, the lowest loss among the arm's validation runs.
    Without `lora_alpha` those of any; without `r` those of full fine-tuning, which has none.

    Raises:
        ValueError: there are no such runs, or they have more than one rate or lora_alpha: say which.
    """
    wanted = {"method": method, "r": r, "lora_alpha": lora_alpha, "learning_rate": learning_rate}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    runs = [run for run in records if all(run["config"][key] == value for key, value in wanted.items())]
    _require_same("lora_alpha", runs, wanted)  # tuning one scaling says nothing about another
    tuning = [run for run in runs if run["config"]["split"] == "validation"]
    runs = [run for run in runs if run["config"]["split"] == "test"]
    if tuning and learning_rate is None:
        best = min(tuning, key=loss_to_rank)["config"]["learning_rate"]
        runs = [run for run in runs if run["config"]["learning_rate"] == best]
    if not runs:
        raise ValueError(f"There are no runs to compare with {wanted}.")
    _require_same("learning_rate", runs, wanted)
    return sorted(runs, key=lambda run: int(run["config"]["seed"]))


def _require_same(key: str, runs: Sequence[Run], wanted: dict[str, Any]) -> None:
    if len(values := {run["config"][key] for run in runs}) > 1:
        raise ValueError(f"The runs with {wanted} have {key} {', '.join(map(str, sorted(values)))}: say which.")


def loss_to_rank(record: Run) -> float:
    """A run's loss; infinite if the run diverged, so that it is never the best one."""
    loss = float(record["scores"]["loss"])
    return loss if math.isfinite(loss) else math.inf


def detectable(spread: float, pairs: int, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that a paired t test finds with that power, two-sided.

    Args:
        spread: standard deviation of the paired differences.
        pairs: how many there are, two or more.

    Raises:
        ValueError: fewer than two pairs.
    """
    from scipy import optimize, stats

    if pairs < 2:
        raise ValueError(f"pairs is {pairs}, but two or more are expected: one pair has no spread.")
    critical = stats.f.ppf(1 - level, 1, pairs - 1)  # of t²

    def missing(shift: float) -> float:
        return float(stats.ncf.sf(critical, 1, pairs - 1, shift**2)) - power

    return spread * float(optimize.brentq(missing, 0, 3 * critical**0.5)) / pairs**0.5


def _label(run: Run) -> str:
    method = run["config"]["method"]
    return METHODS[method].label if method in METHODS else str(method)
