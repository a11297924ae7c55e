"""Two arms of recorded runs, compared pair by pair: their scores, their time and their memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dora_lesson.core import METHODS
from dora_lesson.evidence.stats import Difference, crossed_difference, detectable, paired_difference, perplexity_percent

Run = dict[str, Any]  # a record of one run
_MAY_DIFFER = {"seed", "learning_rate"}  # within an arm
# The scores that are kept item by item: for each item of a run, its value.
_BY_ITEM: dict[str, Callable[[Run], Sequence[float]]] = {
    "loss": lambda run: run.get("item_losses", {}).get("test", []),
    "task_accuracy": lambda run: [float(right) for right in run.get("right", "")],
}


@dataclass(frozen=True)
class Comparison(Difference):
    """What paired runs say of b against a: `mean` of b − a with Student's 95 % interval, `low` to `high`.

    `crossed` has the interval over seeds × items, where the runs keep the score item by item. `spread` is the standard
    deviation of the pairs' differences, for `detectable` and the plan of a further experiment. `time` and `memory` are
    b's over a's, geometric means over the pairs, with 95 % intervals. `differs` holds the settings, hardware and
    versions in which the two runs of a pair differ, as key: (a's, b's). `str()` says it in words.
    """

    measure: str
    names: tuple[str, str]
    spread: float
    crossed: Difference | None
    time: float
    time_interval: tuple[float, float]
    memory: float
    memory_interval: tuple[float, float]
    differs: dict[str, tuple[Any, Any]]

    @property
    def measurable(self) -> bool:
        """Whether the pairs spread, and the interval leaves out zero."""
        return super().measurable and not self._without_spread

    @property
    def _without_spread(self) -> bool:
        return self.spread <= 1e-9 * abs(self.mean)

    @property
    def pairs(self) -> int:
        """How many pairs went into it."""
        return self.count

    @property
    def detectable(self) -> float:
        """The smallest difference that as many new pairs with this spread would show, four times in five."""
        return detectable(self.spread, self.pairs)

    def __str__(self) -> str:
        a, b = self.names
        text = (
            f"{b} − {a}, {self.measure}: {self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.pairs} pairs, "
            f"p = {self.p:.2g}, by sign flips {self.sign_flip_p:.3g}): {self.verdict}"
        )
        if hardware := self.differs.get("hardware"):
            return f"{text} Time and memory cannot be compared: {a} ran on {hardware[0]}, and {b} on {hardware[1]}."
        time, memory = (f"{low:.2f} to {high:.2f}" for low, high in (self.time_interval, self.memory_interval))
        return f"{text} {b} takes {self.time:.2f} times the time ({time}) and {self.memory:.2f} the memory ({memory})."

    @property
    def verdict(self) -> str:
        """What the interval shows, or what it excludes and still allows; for a loss in per cent of perplexity."""
        b, loss = self.names[1], self.measure == "loss"
        if self.mean and self._without_spread:
            return "all pairs differ by the same, so that there is no spread to judge by."
        low, high = (perplexity_percent(end) if loss else end for end in (self.low, self.high))
        unit = " % of perplexity" if loss else ""
        if self.measurable:
            least, most = sorted((abs(low), abs(high)))
            return f"{b} is {'higher' if self.mean > 0 else 'lower'}, by {least:.3g} to {most:.3g}{unit}."
        return (
            f"no difference shown. Excluded: {b} is lower by more than {abs(low):.3g}{unit}, or higher by more "
            f"than {abs(high):.3g}."
        )


def compare(a: Sequence[Run], b: Sequence[Run], measure: str = "loss") -> Comparison:
    """Compare two arms of runs, paired by seed: the difference of a score, with an interval and in words.

    The interval is Student's over the pairs. It covers the seeds alone, not other data, models or settings.

    Args:
        a, b: records of `experiment`, one a seed; both arms with the same seeds.
        measure: which of the records' scores.

    Raises:
        ValueError: what is no record of a run, fewer than five pairs, no such score, a run that diverged, a seed
            without its partner, or twice in an arm, or an arm of several methods.
    """
    a, b = (_require_runs(runs, "scores", "seconds", "peak_memory_bytes") for runs in (a, b))
    pairs = _pairs(a, b)
    for runs in (a, b):
        if len(methods := {run["config"]["method"] for run in runs}) > 1:
            raise ValueError(f"The runs of an arm have the methods {', '.join(sorted(methods))}: pass one an arm.")
    for run in (*a, *b):
        if measure not in run["scores"]:
            raise ValueError(f"measure is {measure!r}, but one of {', '.join(run['scores'])} is expected.")
        if not math.isfinite(score := run["scores"][measure]):
            label = f"{_label(run)} with seed {run['config']['seed']}"
            raise ValueError(f"The run of {label} diverged (its {measure} is {score}): take rates at which none does.")
    first, second = ([run["scores"][measure] for run in side] for side in zip(*pairs, strict=True))
    labels = _label(a[0]), _label(b[0])
    if labels[0] == labels[1]:
        labels = f"{labels[0]} (first arm)", f"{labels[1]} (second arm)"
    on_cpu = all("processor_seconds" in run for run in (*a, *b))
    clock = "processor_seconds" if on_cpu else "seconds"  # of a shared CPU, its own share alone
    (time, *times), (memory, *memories) = (_ratio(pairs, key) for key in (clock, "peak_memory_bytes"))
    return Comparison(
        **asdict(paired_difference(first, second)),
        measure=measure,
        names=labels,
        spread=statistics.stdev(y - x for x, y in zip(first, second, strict=True)),
        crossed=_crossed(pairs, measure),
        time=time,
        time_interval=(times[0], times[1]),
        memory=memory,
        memory_interval=(memories[0], memories[1]),
        differs=_differing(pairs),
    )


def _require_runs(runs: Sequence[Run], *keys: str) -> list[Run]:
    """The runs as a list, each with a configuration and with these keys."""
    runs = [runs] if isinstance(runs, dict) else list(runs)
    for run in runs:
        held: Run = run if isinstance(run, dict) else {}
        config: Any = held.get("config") if isinstance(held.get("config"), dict) else {}
        for found, expected in ((held, ("config", *keys)), (config, ("method", "seed", "learning_rate"))):
            if missing := [key for key in expected if key not in found]:
                raise ValueError(f"A run has no {missing[0]}: pass records, as `load_runs` returns them.")
    return runs


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


def _ratio(pairs: Sequence[tuple[Run, Run]], key: str) -> tuple[float, float, float]:
    """b's over a's: the geometric mean over the pairs, and the ends of its 95 % interval."""
    logs = [[math.log(run[key]) for run in side] for side in zip(*pairs, strict=True)]
    found = paired_difference(*logs)
    return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


def _crossed(pairs: Sequence[tuple[Run, Run]], measure: str) -> Difference | None:
    """The difference over seeds × items, if every run has the score of every item."""
    first, second = ([_BY_ITEM.get(measure, lambda run: [])(run) for run in side] for side in zip(*pairs, strict=True))
    lengths = {len(items) for items in (*first, *second)}
    return crossed_difference(first, second) if len(lengths) == 1 and min(lengths) > 1 else None


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
    **settings: Any,
) -> list[Run]:
    """The runs of one arm that are to be compared, one a seed, in the order of their seeds.

    Without `learning_rate` each seed's run is the one at the rate that is best for the others: the lowest mean loss on
    validation over all other seeds (cross-fitting), so that no run takes part in the choice of its own rate. Without
    `lora_alpha` those of any; without `r` those of full fine-tuning, which has none. Further `settings`, such as
    lora_dropout=0.1, narrow it down.

    Raises:
        ValueError: there are no such runs, or what is no record of one; they differ in a setting besides seed and rate;
            a seed lacks its run at some rate, or has two; or several rates have no validation loss to choose by.
    """
    records = _require_runs(records)
    wanted = {"method": method, "r": r, "lora_alpha": lora_alpha, "learning_rate": learning_rate} | settings
    wanted = {key: value for key, value in wanted.items() if value is not None}
    runs = [run for run in records if all(run["config"].get(key) == value for key, value in wanted.items())]
    keys = [key for run in runs for key in run["config"] if key not in _MAY_DIFFER]
    for key in dict.fromkeys(keys):
        if len(values := {str(run["config"].get(key)) for run in runs}) > 1:
            raise ValueError(f"The runs with {wanted} have {key} {', '.join(sorted(values))}: say which.")
    if not runs:
        raise ValueError(f"There are no runs to compare with {wanted}.")
    by_rate: dict[float, dict[int, Run]] = {}
    for run in runs:
        rate, seed = run["config"]["learning_rate"], run["config"]["seed"]
        if by_rate.setdefault(rate, {}).setdefault(seed, run) is not run:
            raise ValueError(f"Seed {seed} has two runs at rate {rate:g}: pass the records of one setting.")
    seeds = sorted({seed for at_rate in by_rate.values() for seed in at_rate})
    if len(by_rate) == 1:
        return [at_rate[seed] for at_rate in by_rate.values() for seed in seeds]
    for rate, at_rate in by_rate.items():
        if missing := [seed for seed in seeds if seed not in at_rate]:
            raise ValueError(f"Seed {missing[0]} has no run at rate {rate:g}: make it, or pass learning_rate.")
    rates = ", ".join(f"{rate:g}" for rate in sorted(by_rate))
    if not all("validation" in run for run in runs):
        raise ValueError(f"The runs with {wanted} have learning_rate {rates}: say which.")
    if len(seeds) == 1:
        raise ValueError(f"One seed has runs at the rates {rates}: pass learning_rate, or run more seeds.")
    return [_at_the_others_best(by_rate, seed) for seed in seeds]


def _at_the_others_best(by_rate: dict[float, dict[int, Run]], seed: int) -> Run:
    def mean_loss(rate: float) -> float:
        losses = [run["validation"]["loss"] for other, run in by_rate[rate].items() if other != seed]
        return _to_rank(statistics.fmean(losses))

    return by_rate[min(sorted(by_rate), key=mean_loss)][seed]


def _to_rank(loss: float) -> float:
    """A loss as it is ranked: where a run diverged it is infinite, and so never the best one."""
    return loss if math.isfinite(loss) else math.inf


def _label(run: Run) -> str:
    method, _, matched = run["config"]["method"].partition("_")
    return f"{METHODS[method].label if method in METHODS else method}{f' {matched}' if matched else ''}"
