"""The statistics that a lesson may rest on: paired differences with their interval, their p, and what they exclude."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

EXACT_UP_TO = 12  # pairs; of more, ten thousand flips are drawn


@dataclass(frozen=True)
class Difference:
    """A mean paired difference b − a with its 95 % interval; `count` pairs went into it.

    `low_90` and `high_90` are the ends of the 90 % interval, which two one-sided tests at 5 % ask for. `p` is that of
    the paired t test, `sign_flip_p` that of the sign-flip test, which asks nothing about the shape of the noise.
    """

    mean: float
    low: float
    high: float
    count: int
    low_90: float
    high_90: float
    p: float
    sign_flip_p: float

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def within(self, margin: float) -> bool:
        """Whether two one-sided tests at 5 % show that the difference is smaller than `margin`, either way.

        Raises:
            ValueError: the margin is not above 0.
        """
        if not margin > 0:
            raise ValueError(f"margin is {margin}, but a number above 0 is expected: the largest gap called alike.")
        return -margin < self.low_90 and self.high_90 < margin

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}, {self.count} pairs)"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of b − a over pairs (the same seed, or the same item) with Student's 95 % interval.

    Raises:
        ValueError: the lengths differ, there are fewer than two pairs, or a value is not a finite number.
    """
    first, second = _floats(a), _floats(b)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"There are {len(first)} and {len(second)} values, but at least two pairs are expected.")
    if isinstance(a, pd.Series) and isinstance(b, pd.Series) and not a.index.equals(b.index):
        raise ValueError("The Series have different indices: make the seed the index of both, or pass .to_numpy().")
    differences = second - first
    if not np.isfinite(differences).all():
        both = f"{first.tolist()} and {second.tolist()}"
        raise ValueError(f"The values are {both}, but finite numbers are expected: did a run diverge?")
    count = len(differences)
    error = differences.std(ddof=1) / count**0.5
    return _student(differences.mean(), error, count - 1, count, sign_flip_p(differences))


def _floats(values: Iterable[Any]) -> NDArray[np.float64]:
    """The numbers in a list, an array, a tensor or a Series."""
    if isinstance(values, str | bytes | Mapping | Set | pd.DataFrame):
        raise ValueError(f"The values are a {type(values).__name__}, but a list of numbers is expected.")
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError):
        raise ValueError(f"The values are {values!r}, but a list of numbers is expected.") from None


def crossed_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Difference:
    """Mean of b − a over seeds × items, whose interval holds for other seeds and for other items.

    `a[seed][item]` is a score. The variance of the mean is that of the seeds' means plus that of the items' means less
    what both count twice, and never below either; its degrees of freedom are Satterthwaite's. `count` is that of the
    seeds, and `sign_flip_p` flips seeds.

    Raises:
        ValueError: the shapes differ, there are fewer than two seeds or items, or a value is not a finite number.
    """
    try:
        first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    except ValueError:
        raise ValueError("The scores are no table: every seed needs a number for each of the same items.") from None
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 2:
        raise ValueError(f"The scores have shapes {first.shape} and {second.shape}, but seeds × items are expected.")
    gaps = second - first
    if not np.isfinite(gaps).all():
        raise ValueError("Some scores are not finite numbers: did a run diverge?")
    seeds, items = gaps.shape
    by_seed, by_item = gaps.mean(axis=1), gaps.mean(axis=0)
    rest = gaps - by_seed[:, None] - by_item + gaps.mean()
    of_seeds, of_items = by_seed.var(ddof=1) / seeds, by_item.var(ddof=1) / items
    of_rest = (rest**2).sum() / ((seeds - 1) * (items - 1)) / gaps.size
    variance = max(of_seeds + of_items - of_rest, of_seeds, of_items)
    parts = of_seeds**2 / (seeds - 1) + of_items**2 / (items - 1)
    freedom = variance**2 / parts if parts else seeds - 1
    return _student(gaps.mean(), variance**0.5, freedom, seeds, sign_flip_p(by_seed))


def _student(mean: float, error: float, freedom: float, count: int, flipped: float) -> Difference:
    from scipy import stats

    mean, error = float(mean), float(error)
    half, half_90 = (float(stats.t.ppf(at, freedom)) * error for at in (0.975, 0.95))
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, count, mean - half_90, mean + half_90, p, flipped)


def sign_flip_p(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """The share of all ways to flip the signs of the differences whose mean is as far from 0 as theirs, or farther.

    Exact up to 12 pairs. With n pairs it is never below 2 / 2ⁿ: five pairs cannot get below 0.0625.
    """
    from scipy import stats

    flips = 2 ** len(differences) if len(differences) <= EXACT_UP_TO else 9_999
    found = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        lambda x, axis: np.abs(x.mean(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=flips,
        rng=0,
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for as many comparisons, in their order (Holm 1979): one below 0.05 stands at 5 % for all.

    Raises:
        ValueError: one of them is not between 0 and 1.
    """
    p = _floats(p_values).tolist()
    if not all(0 <= value <= 1 for value in p):
        raise ValueError(f"The p values are {p}, but numbers from 0 to 1 are expected.")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def perplexity_percent(nats: float) -> float:
    """A difference of losses in nats a token, as the change of perplexity in per cent."""
    return 100 * math.expm1(nats)


def detectable(spread: float, pairs: int, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that a paired t test finds with that power, two-sided.

    Args:
        spread: standard deviation of the paired differences.
        pairs: how many there are, two or more.

    Raises:
        ValueError: fewer than two pairs, a spread below 0, or a level or power that is no share.
    """
    from scipy import optimize, stats

    if not isinstance(spread, numbers.Real) or not 0 <= spread < math.inf:
        raise ValueError(f"spread is {spread!r}, but a standard deviation, 0 or more, is expected.")
    if not 0 < level < 1 or not level < power < 1:
        raise ValueError(f"level is {level!r} and power {power!r}, but shares are expected, such as 0.05 and 0.8.")
    if not isinstance(pairs, numbers.Real) or not pairs >= 2:
        raise ValueError(f"pairs is {pairs!r}, but two or more are expected: one pair has no spread.")
    critical = stats.f.ppf(1 - level, 1, pairs - 1)  # of t²

    def missing(shift: float) -> float:
        return float(stats.ncf.sf(critical, 1, pairs - 1, shift**2)) - power

    most = 3 * critical**0.5
    while missing(most) < 0:
        most *= 2
    return spread * float(optimize.brentq(missing, 0, most)) / pairs**0.5
