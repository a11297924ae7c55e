"""Records say how they were made; paired differences have the interval they claim."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dora_lesson import load_record, paired_difference, records
from dora_lesson.scoring import score
from dora_lesson.task_api import load_task_api

RECORDS = sorted(path.stem for path in (records.DATA / "records").glob("*.json"))


def test_paired_difference_is_the_paired_t_interval() -> None:
    a, b = [0.1, 0.4, 0.35, 0.8], [0.3, 0.5, 0.3, 1.1]
    found = paired_difference(a, b)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.count == 4
    assert not found.measurable
    assert re.fullmatch(r"\+0\.138 \(95 % interval -0\.\d{3} to \+0\.\d{3}, 4 pairs\)", str(found))


def test_paired_difference_of_booleans_and_its_sign() -> None:
    worse = paired_difference([True] * 9 + [False], [False] * 10)
    assert worse.mean == pytest.approx(-0.9)
    assert worse.measurable
    same = paired_difference([True, False, True], [True, False, True])
    assert (same.mean, same.low, same.high, same.measurable) == (0, 0, 0, False)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        a = random.normal(size=6)
        found = paired_difference(list(a), list(a + random.normal(0.3, 1, size=6)))
        hits += found.low <= 0.3 <= found.high
    assert 0.935 < hits / 2000 < 0.965


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_too_few_or_unequal_values_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two pairs"):
        paired_difference(a, b)


def test_an_unknown_record_names_those_that_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "DATA", tmp_path)
    with pytest.raises(ValueError, match="there are: none"):
        load_record("short")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "long.json").write_text("{}")
    with pytest.raises(ValueError, match="no record 'short'; there are: long"):
        load_record("short")


@pytest.mark.parametrize("lost", records.PROVENANCE)
def test_a_record_that_does_not_say_how_it_was_made_is_refused(
    lost: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "records").mkdir()
    record = records.provenance("python -m something", seeds=[0, 1])
    del record[lost]
    (tmp_path / "records" / "short.json").write_text(json.dumps(record))
    monkeypatch.setattr(records, "DATA", tmp_path)
    with pytest.raises(ValueError, match=f"does not say its {lost}"):
        load_record("short")


def test_a_broken_record_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "short.json").write_text('{"command": ')
    monkeypatch.setattr(records, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"short\.json is no JSON .*make it again"):
        load_record("short")


@pytest.mark.parametrize("name", RECORDS)
def test_committed_records_hold_what_the_lessons_say(name: str) -> None:
    """Every method has every seed, and today's rules give the recorded replies their recorded scores."""
    record: dict[str, Any] = load_record(name)
    count = int(re.search(r"--items (\d+)", record["command"]).group(1))  # type: ignore[union-attr]
    items = list(load_task_api("test"))[:count]
    base, *trained = record["runs"]
    methods = {"base": ("full", "lora", "dora"), "qbase": ("qlora", "qdora")}[base["method"]]
    pairs = {(run["method"], run["seed"]) for run in trained}
    assert len(pairs) == len(trained)
    assert pairs == {(method, seed) for method in methods for seed in record["seeds"]}
    assert len({(run["steps"], run["batch_size"]) for run in trained}) == 1
    for run in record["runs"]:
        found, again = run["scores"], score(run["replies"], items)
        assert found["right"] == "".join(str(int(right)) for right in again.right)
        assert found["persona"] == again.persona
        assert found["task_accuracy"] == pytest.approx(again.task_accuracy, abs=1e-4)
        assert found["persona_consistency"] == pytest.approx(again.persona_consistency, abs=1e-3)
    for run in trained:
        assert len(run["losses"]) == run["steps"]
        assert len(run["movement"]) == 4 * 30 * 5
        assert ("requantised" in run) == (base["method"] == "qbase")


@pytest.mark.parametrize("name", ["short", "four_bit"])
def test_the_short_records_have_three_paired_seeds(name: str) -> None:
    assert len(load_record(name)["seeds"]) >= 3
