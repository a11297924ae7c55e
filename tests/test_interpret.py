"""Two runs in, interpretation out: the numbers are right, and one pair gets no interval."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dora_lesson import paired_difference
from dora_lesson.advisor.interpret import interpret, items_explain, recorded_case


def case(persona: list[float], accuracy: list[float], minutes: list[float]) -> dict[str, list[float]]:
    return {"persona consistency": persona, "task accuracy": accuracy, "minutes": minutes}


ONE = case([7.0], [0.40], [10.0]), case([7.4], [0.44], [12.6])


def test_one_pair_is_refused_an_interval_and_told_why() -> None:
    said = " ".join(interpret(*ONE, items=100))
    assert "no interval" in said and "another seed" in said and "95 %" not in said
    assert "1.26 times as long" in said


def test_what_the_items_alone_explain_is_the_binomial_error() -> None:
    error = (0.40 * 0.60 / 100 + 0.44 * 0.56 / 100) ** 0.5
    assert items_explain(0.40, 0.44, 100) == pytest.approx(0.04 / error)
    line = next(line for line in interpret(*ONE, items=100) if line.startswith("items"))
    assert f"{error:.3f}" in line and f"{0.04 / error:.1f} of these, the items alone could explain it" in line
    many = next(line for line in interpret(*ONE, items=10_000) if line.startswith("items"))
    assert "more than the items alone explain" in many
    assert items_explain(0, 0, 50) == items_explain(1, 1, 50) == 0
    assert items_explain(0, 1, 100) == float("inf") and items_explain(1, 0, 100) == float("-inf")
    apart = " ".join(interpret(case([1], [0.0], [1]), case([1], [1.0], [1]), items=100))
    assert "items: 0% and 100% of 100: as far apart as can be" in apart and "by nothing" not in apart
    assert "tell the two apart by nothing" in " ".join(interpret(case([1], [0], [1]), case([1], [0], [1]), items=9))


def test_several_seeds_get_the_paired_interval_and_a_verdict() -> None:
    a = case([7.0, 7.2, 6.8], [0.4, 0.42, 0.38], [10, 10, 10])
    close = case([7.1, 7.1, 6.9], [0.41, 0.40, 0.40], [12, 12, 12])
    said = interpret(a, close, items=204)
    assert str(paired_difference(a["persona consistency"], close["persona consistency"])) in said[0]
    assert "no difference shown" in said[0] and "no interval" not in " ".join(said)
    clear = case([8.0, 8.21, 7.79], [0.5, 0.53, 0.48], [12, 12, 12])
    ahead = interpret(a, clear, items=204)
    assert "DoRA is ahead by more than its seeds explain; few seeds" in ahead[0]
    assert "LoRA is ahead" in interpret(clear, a, items=204)[0]
    assert "the same" in interpret(a, a, items=204)[0]
    up, down = case([7, 8, 9], [0.4] * 3, [10] * 3), case([9, 8, 7], [0.4] * 3, [10] * 3)
    assert "no difference shown" in interpret(up, down, items=204)[0] and "same" not in interpret(up, down, items=9)[0]


def test_pairs_that_all_differ_by_as_much_are_no_proof() -> None:
    """A score of a hundred items has a hundred values: two equal gaps are a matter of chance."""
    a, b = case([7, 8], [0.40, 0.42], [10, 10]), case([7, 8], [0.41, 0.43], [12, 12])
    line = next(line for line in interpret(a, b, items=100) if line.startswith("task accuracy"))
    assert "each pair differs by as much" in line and "ahead" not in line
    up, down = case([7, 7], [0.1, 0.5], [10, 10]), case([7, 7], [0.3, 0.3], [10, 10])  # a mean of -1e-17
    assert "cancel" in " ".join(interpret(up, down, items=100))


def test_the_error_of_the_items_says_that_it_is_that_of_unpaired_answers() -> None:
    assert "less where both answered the same ones" in " ".join(interpret(*ONE, items=100))


def test_the_seeds_it_asks_for_find_a_difference_four_times_in_five() -> None:
    a = case([7.0, 7.0, 7.0], [0.4] * 3, [10] * 3)
    b = case([7.1, 7.5, 6.9], [0.4] * 3, [10] * 3)
    need = int(interpret(a, b, items=50)[0].split("take about ")[1].split()[0])
    differences = [0.1, 0.5, -0.1]
    mean, spread = 1 / 6, stats.tstd(differences)

    def power(n: int) -> float:
        critical = stats.t.ppf(0.975, n - 1)
        shift = mean / spread * n**0.5
        return float(1 - stats.nct.cdf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))

    assert power(need) >= 0.8 > power(need - 1)


def test_the_recorded_runs_are_a_case() -> None:
    a, b = recorded_case()
    assert [len(values) for values in [*a.values(), *b.values()]] == [3] * 6
    assert "no difference shown" in interpret(a, b, items=68)[0]


@pytest.mark.parametrize(("a", "items", "message"), [
    ({"task accuracy": [44.0]}, 100, "'task accuracy' is [44.0], but a list with one number for each seed, each"),
    ({"persona consistency": [74]}, 100, "'persona consistency' is [74], but a list with one number for each seed"),
    ({"minutes": [0]}, 100, "'minutes' is [0], but a list with one number for each seed, each from 0.001 to 1,000,000"),
    ({"task accuracy": [0.4, 0.5]}, 100, "task accuracy has 2 and 1 values, but pairs are expected"),
    ({"task accuracy": 0.4}, 100, "'task accuracy' is 0.4, but a list"),
    ({"task accuracy": []}, 100, "'task accuracy' is [], but a list"),
    ({"task accuracy": ["high"]}, 100, "'task accuracy' is ['high'], but a list"),
    ({"task accuracy": "0.4"}, 100, "'task accuracy' is '0.4', but a list"),
    ({"task accuracy": [None]}, 100, "'task accuracy' is [None], but a list"),
    ({"minutes": None}, 100, "'minutes' is None, but a list"),
    ({"minutes": [math.inf]}, 100, "'minutes' is [inf], but a list"),
    ({"task accuracy": [math.nan]}, 100, "'task accuracy' is [nan], but a list"),
    ({"task accuracy": "010"}, 100, "'task accuracy' is '010', but a list"),
    ({"task accuracy": [True]}, 100, "'task accuracy' is [True], but a list"),
    ({"task accuracy": np.full((500, 2), 2.0)}, 100, "but a list with one number for each seed"),
    ({"minutes": [1, 2]}, 100, "minutes has 2 and 1 values, but pairs are expected"),
    ({}, 0, "items is 0"),
    ({}, True, "items is True"),
])  # fmt: skip
def test_bad_scores_are_one_sentence(a: dict[str, Any], items: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        interpret(ONE[0] | a, ONE[1], items=items)
    assert "\n" not in str(raised.value)


def test_scores_may_be_arrays_and_must_be_a_dict() -> None:
    for a, b in (ONE, recorded_case()):
        arrays = {name: np.array(values) for name, values in a.items()}
        assert interpret(arrays, b, items=100) == interpret(a, b, items=100)  # type: ignore[arg-type]
    for other in ([7.0], pd.DataFrame(ONE[0])):
        with pytest.raises(ValueError, match=r"^[^\n]*but a dict is expected[^\n]*$"):
            interpret(other, ONE[1], items=100)  # type: ignore[arg-type]
    for names in (("LoRA",), None, "AB"):
        with pytest.raises(ValueError, match="but the names of two methods are expected"):
            interpret(*ONE, items=100, names=names)  # type: ignore[arg-type]
