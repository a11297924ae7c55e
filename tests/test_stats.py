"""A paired difference has the interval, the p and the error rates that it claims."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dora_lesson import detectable, holm, paired_difference
from dora_lesson.evidence.stats import crossed_difference, perplexity_percent, sign_flip_p


def test_paired_difference_is_the_paired_t_test() -> None:
    a, b = [0.1, 0.4, 0.35, 0.8], [0.3, 0.5, 0.3, 1.1]
    found, expected = paired_difference(a, b), stats.ttest_rel(b, a)
    wide, narrow = (expected.confidence_interval(level) for level in (0.95, 0.9))
    assert found.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert (found.low, found.high) == pytest.approx((wide.low, wide.high))
    assert (found.low_90, found.high_90) == pytest.approx((narrow.low, narrow.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.count == 4 and not found.measurable
    assert str(found) == f"+0.138 (95 % interval {found.low:+.3f} to {found.high:+.3f}, 4 pairs)"


def test_numbers_come_in_any_container_and_keep_their_order() -> None:
    a, b = [0.1, 0.4, 0.35, 0.8], [0.3, 0.5, 0.3, 1.1]
    for make in (np.array, torch.tensor, pd.Series, tuple, lambda x: pd.Series(x, index=[3, 1, 0, 2][: len(x)])):
        assert paired_difference(make(a), make(b)).mean == pytest.approx(0.1375, abs=1e-6)
        assert holm(make([0.04, 0.01, 0.9])) == pytest.approx([0.08, 0.03, 0.9])
    with pytest.raises(ValueError, match="different indices"):
        paired_difference(pd.Series(a), pd.Series(b, index=[3, 2, 1, 0]))
    with pytest.raises(ValueError, match="a list of numbers is expected"):
        paired_difference([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="every seed needs a number"):
        crossed_difference([[1, 2], [3]], [[1, 2], [3]])
    with pytest.raises(ValueError, match="pairs is nan"):
        detectable(1, math.nan)


def test_paired_difference_of_booleans_and_its_sign() -> None:
    worse = paired_difference([True] * 9 + [False], [False] * 10)
    assert worse.mean == pytest.approx(-0.9)
    assert worse.measurable
    same = paired_difference([True, False, True], [True, False, True])
    assert (same.mean, same.low, same.high, same.measurable, same.p, same.sign_flip_p) == (0, 0, 0, False, 1, 1)


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_too_few_or_unequal_values_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two pairs"):
        paired_difference(a, b)


@pytest.mark.parametrize(
    "values", [{0: 1.2, 1: 1.3}, "12", b"12", {1.0, 2.0}, pd.DataFrame([[1.0, 2.0]])], ids=lambda v: type(v).__name__
)
def test_what_would_give_its_keys_or_letters_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="but a list of numbers is expected"):
        paired_difference(values, values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="but a list of numbers is expected"):
        holm(values)  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="but finite numbers are expected"):
        paired_difference([0.1, 0.2], [math.nan, 1.0])
    with pytest.raises(ValueError, match="not finite numbers"):
        crossed_difference([[0.1, 0.2], [0.1, 0.2]], [[0.1, math.inf], [0.1, 0.2]])


@pytest.mark.parametrize("count", [5, 8])
def test_one_comparison_in_twenty_is_a_false_alarm(count: int) -> None:
    """Within half a point; the standard error of 20,000 rounds is 0.15 points."""
    random = np.random.default_rng(count)
    gaps = random.normal(size=(20_000, count))
    alarms = stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05
    assert alarms.mean() == pytest.approx(0.05, abs=0.005)
    for row, alarm in zip(gaps[:300], alarms[:300], strict=True):  # and ours is the same test
        assert paired_difference([0.0] * count, row.tolist()).measurable == alarm


def test_student_s_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    found = [paired_difference([0.0] * 6, random.normal(0.3, 1, size=6).tolist()) for _ in range(1500)]
    assert np.mean([each.low <= 0.3 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("gaps", [[0.2, 0.1, 0.3], [0.5, -0.1, 0.2, 0.05, -0.02], [1.0, 1.0, -1.0, 0.0]])
def test_the_sign_flip_p_counts_every_way_to_flip(gaps: list[float]) -> None:
    means = [abs(np.dot(signs, gaps)) for signs in itertools.product([1, -1], repeat=len(gaps))]
    assert sign_flip_p(gaps) == pytest.approx(np.mean(np.array(means) >= abs(sum(gaps)) - 1e-12))


@pytest.mark.parametrize(("pairs", "least"), [(5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_few_pairs_cannot_have_a_small_sign_flip_p(pairs: int, least: float) -> None:
    assert sign_flip_p([1.0 + 0.01 * i for i in range(pairs)]) == least


def test_many_pairs_draw_their_flips_and_get_the_same_p_again() -> None:
    gaps = np.random.default_rng(0).normal(0.4, 1, size=60)
    assert sign_flip_p(gaps) == sign_flip_p(gaps) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("pairs", [2, 5, 12])
def test_the_detectable_difference_is_found_four_times_in_five(pairs: int) -> None:
    x = np.random.default_rng(0).normal(detectable(2.0, pairs), 2.0, size=(20_000, pairs))
    assert (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(2.0, pairs + 1) < detectable(2.0, pairs)


def test_one_pair_detects_nothing() -> None:
    with pytest.raises(ValueError, match="pairs is 1, but two or more"):
        detectable(1.0, 1)


def test_alike_is_what_two_one_sided_tests_show() -> None:
    gaps = [0.002, -0.001, 0.001, 0.003, -0.002]
    margins = np.linspace(0.0005, 0.005, 10)
    for margin in margins:
        below = stats.ttest_1samp(gaps, margin, alternative="less").pvalue
        above = stats.ttest_1samp(gaps, -margin, alternative="greater").pvalue
        assert paired_difference([0.0] * 5, gaps).within(margin) == (max(below, above) < 0.05)
    assert len({paired_difference([0.0] * 5, gaps).within(margin) for margin in margins}) == 2
    with pytest.raises(ValueError, match="margin is 0, but a number above 0"):
        paired_difference([0.0] * 5, gaps).within(0)


def test_methods_that_differ_by_the_margin_are_called_alike_once_in_twenty() -> None:
    random = np.random.default_rng(1)
    found = [paired_difference([0.0] * 8, random.normal(2.0, 1, size=8).tolist()).within(2.0) for _ in range(1500)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.001, 0.5], [0.08, 0.003, 0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_multiplies_the_least_p_most(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


def test_holm_keeps_false_alarms_of_a_whole_table_to_one_in_twenty() -> None:
    p = np.random.default_rng(0).uniform(size=(4000, 5))
    assert np.mean([min(holm(row)) < 0.05 for row in p]) == pytest.approx(0.05, abs=0.011)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        holm([0.2, 1.2])


@pytest.mark.parametrize(("of_seeds", "of_items", "of_rest"), [(0.5, 0.5, 1.0), (0.0, 1.0, 0.3), (1.0, 0.0, 0.3)])
def test_the_interval_over_seeds_and_items_covers_other_seeds_and_other_items(
    of_seeds: float, of_items: float, of_rest: float
) -> None:
    random, hits, seeds_alone, rounds = np.random.default_rng(0), 0, 0, 600
    for _ in range(rounds):
        rest = random.normal(scale=of_rest, size=(6, 20))
        gaps = 0.3 + rest + random.normal(scale=of_seeds, size=(6, 1)) + random.normal(scale=of_items, size=20)
        found = crossed_difference(np.zeros((6, 20)), gaps)
        alone = paired_difference([0.0] * 6, gaps.mean(axis=1).tolist())
        hits += found.low <= 0.3 <= found.high
        seeds_alone += alone.low <= 0.3 <= alone.high
    assert 0.93 < hits / rounds < 0.99
    if of_items > of_seeds:
        assert seeds_alone / rounds < 0.7


def test_the_interval_over_seeds_and_items_is_about_the_mean_of_all() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 30)), random.normal(size=(5, 30))
    found = crossed_difference(a, b)
    assert found.mean == pytest.approx((b - a).mean()) and found.low < found.mean < found.high and found.count == 5
    assert crossed_difference(a, a).high == 0
    for wrong in (a[:1], a[:, :1], a[:, :29], a[0]):
        with pytest.raises(ValueError, match="seeds × items are expected"):
            crossed_difference(wrong, wrong if wrong.shape != (5, 29) else b)


def test_a_hundredth_of_a_nat_is_one_per_cent_of_perplexity() -> None:
    assert perplexity_percent(0.00995) == pytest.approx(1.0, abs=1e-3)
    assert perplexity_percent(-math.log(2)) == pytest.approx(-50)


IMPOSSIBLE = [("power", 80), ("power", 0.05), ("level", 0), ("level", 1.5), ("spread", -1), ("spread", math.nan)]


@pytest.mark.parametrize(("name", "value"), [*IMPOSSIBLE, ("spread", "a"), ("pairs", "5")])
def test_a_design_of_impossible_numbers_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        detectable(**{"spread": 1.0, "pairs": 5, name: value})


def test_a_high_power_takes_a_large_difference() -> None:
    assert detectable(1, 2, power=0.999) > detectable(1, 2, power=0.8) > 0
