"""Comparisons that a lesson may rest on: paired differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dora_lesson.core import METHODS


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
        ValueError: the lengths differ, there are fewer than two pairs, or a value is no finite number.
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
    times in five. `time` and `memory` are b's over a's (medians over the pairs). `differs` holds what the two runs of a
    pair have not in common, in settings, hardware and versions, as key: (a's, b's). `str()` says it in a sentence.
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
        found = (
            f"{b} − {a}, {self.measure}: {self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.pairs} pairs): "
        )
        if self.measurable:
            found += f"{b} is {'higher' if self.mean > 0 else 'lower'}"
        else:
            found += (
                f"no difference that these runs could show; one of {self.detectable:.4f} would show four times in five"
            )
        if two := self.differs.get("hardware"):
            return f"{found}. Time and memory cannot be compared: {a} ran on {two[0]}, and {b} on {two[1]}."
        return f"{found}. {b} takes {self.time:.2f} times the time and {self.memory:.2f} times the memory."


def compare(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], measure: str = "loss") -> Comparison:
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
    from scipy import stats

    by_seed = [{run["config"]["seed"]: run for run in runs} for runs in (a, b)]
    if [*map(len, by_seed)] != [len(a), len(b)] or by_seed[0].keys() != by_seed[1].keys():
        said = [sorted(run["config"]["seed"] for run in runs) for runs in (a, b)]
        raise ValueError(f"The seeds are {said[0]} and {said[1]}, but pairs are expected: each seed once in both arms.")
    seeds = sorted(by_seed[0])
    if len(seeds) < 5:
        there = "is 1 pair" if len(seeds) == 1 else f"are {len(seeds)} pairs"
        raise ValueError(
            f"There {there}, but five or more are expected: two "
            "runs of one method differ as well when the seed changes, so a difference says nothing until it is held "
            "against that spread. Run more seeds of both."
        )
    pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in seeds]
    for run in (*a, *b):
        if measure not in run["scores"]:
            raise ValueError(f"measure is {measure!r}, but one of {', '.join(run['scores'])} is expected.")
        if not math.isfinite(score := run["scores"][measure]):
            which = f"{_name(run['config'])} with seed {run['config']['seed']}"
            raise ValueError(f"The run of {which} diverged (its {measure} is {score}): take rates at which none does.")
    differences = [second["scores"][measure] - first["scores"][measure] for first, second in pairs]
    count, spread = len(pairs), statistics.stdev(differences)
    tail = stats.norm.cdf(-((count / (count - 1)) ** 0.5) * stats.t.ppf(0.975, count - 1))
    low = high = differences[0]
    if spread > 0:
        found = stats.bootstrap(
            (differences,), np.mean, method="percentile", confidence_level=1 - 2 * tail, rng=0
        )  # fmt: skip
        low, high = found.confidence_interval
    on_cpu = all("processor_seconds" in run for run in (*a, *b))
    clock = "processor_seconds" if on_cpu else "seconds"  # of a shared CPU, its own share alone
    ratios = {key: statistics.median(y[key] / x[key] for x, y in pairs) for key in (clock, "peak_memory_bytes")}
    differs: dict[str, tuple[Any, Any]] = {}
    for x, y in pairs:
        one, other = ({**run["config"], **{key: run.get(key) for key in ("hardware", "versions")}} for run in (x, y))
        for key in one | other:
            if key != "seed" and key not in differs and one.get(key) != other.get(key):
                differs[key] = one.get(key), other.get(key)
    return Comparison(
        measure, _names(a[0]["config"], b[0]["config"]), statistics.fmean(differences), float(low), float(high), count,
        detectable(spread, count), ratios[clock], ratios["peak_memory_bytes"], differs,
    )  # fmt: skip


def arm(
    records: Sequence[dict[str, Any]],
    method: str,
    r: int = 0,
    lora_alpha: float | None = None,
    learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The runs of one arm that are to be compared, in the order of their seeds.

    Without `learning_rate` those at the rate that tuning chose, the lowest loss among the arm's validation runs.
    Without `lora_alpha` those of any; without `r` those of full fine-tuning, which has none.

    Raises:
        ValueError: there are no such runs, or they have more than one rate or lora_alpha: say which.
    """
    wanted = {"method": method, "r": r, "lora_alpha": lora_alpha, "learning_rate": learning_rate}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    found = [run for run in records if all(run["config"][key] == value for key, value in wanted.items())]
    _require_one("lora_alpha", found, wanted)  # tuning of one says nothing of the other
    tuning = [run for run in found if run["config"]["split"] == "validation"]
    found = [run for run in found if run["config"]["split"] == "test"]
    if tuning and learning_rate is None:
        best = min(tuning, key=loss_to_rank)["config"]["learning_rate"]
        found = [run for run in found if run["config"]["learning_rate"] == best]
    if not found:
        raise ValueError(f"There are no runs to compare with {wanted}.")
    _require_one("learning_rate", found, wanted)
    return sorted(found, key=lambda run: int(run["config"]["seed"]))


def _require_one(key: str, runs: Sequence[dict[str, Any]], wanted: dict[str, Any]) -> None:
    if len(values := {run["config"][key] for run in runs}) > 1:
        raise ValueError(f"The runs with {wanted} have {key} {', '.join(map(str, sorted(values)))}: say which.")


def loss_to_rank(record: dict[str, Any]) -> float:
    """A run's loss; infinite if the run ended in no number, so that it is never the best one."""
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


def _names(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, str]:
    a, b = _name(first), _name(second)
    return (f"{a} (first arm)", f"{b} (second arm)") if a == b else (a, b)


def _name(config: dict[str, Any]) -> str:
    return METHODS[config["method"]].label if config["method"] in METHODS else str(config["method"])
