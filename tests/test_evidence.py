"""Records say how they were made; paired differences have the interval they claim."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dora_lesson import arm, compare, detectable, load_record, load_runs, paired_difference
from dora_lesson.evidence import records

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
    with pytest.raises(ValueError, match="the records are: none"):
        load_record("short")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "long.json").write_text("{}")
    with pytest.raises(ValueError, match="no record 'short'; the records are: long"):
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
    with pytest.raises(ValueError, match=r"short\.json is not valid JSON .*make it again"):
        load_record("short")


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"\xff{}"])
def test_a_file_that_is_no_record_is_reported(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "short.json").write_bytes(content)
    monkeypatch.setattr(records, "DATA", tmp_path)
    with pytest.raises(ValueError, match=r"short\.json (holds a|is not valid JSON).*make it again"):
        load_record("short")
    with pytest.raises(ValueError, match=r"short\.json .*make it again"):
        records.read_runs(tmp_path / "records")


@pytest.mark.parametrize("name", RECORDS)
def test_committed_records_hold_what_the_lessons_say(name: str) -> None:
    """Every method has every seed. The chats of the first edition, which these runs replied to, are gone."""
    record: dict[str, Any] = load_record(name)
    count = int(re.search(r"--items (\d+)", record["command"]).group(1))  # type: ignore[union-attr]
    base, *trained = record["runs"]
    methods = {"base": ("full", "lora", "dora"), "qbase": ("qlora", "qdora")}[base["method"]]
    pairs = {(run["method"], run["seed"]) for run in trained}
    assert len(pairs) == len(trained)
    assert pairs == {(method, seed) for method in methods for seed in record["seeds"]}
    assert len({(run["steps"], run["batch_size"]) for run in trained}) == 1
    for run in record["runs"]:
        found = run["scores"]
        assert len(run["replies"]) == len(found["right"]) == len(found["persona"]) == count
        assert found["task_accuracy"] == pytest.approx(found["right"].count("1") / count, abs=1e-4)
        assert found["persona_consistency"] == pytest.approx(sum(found["persona"]) / count, abs=1e-3)
    for run in trained:
        assert len(run["losses"]) == run["steps"]
        assert len(run["movement"]) == 4 * 30 * 5
        assert ("requantised" in run) == (base["method"] == "qbase")


@pytest.mark.parametrize("name", ["methods"])
def test_recorded_experiments_pair_their_seeds(name: str) -> None:
    """Every method has every seed, with the movement that lesson 02 reads and the scores that lesson 07 reads."""
    recorded = load_runs(name)
    pairs = {(run["config"]["method"], run["config"]["seed"]) for run in recorded}
    seeds, methods = {seed for _, seed in pairs}, {method for method, _ in pairs}
    assert len(pairs) == len(recorded) == len(seeds) * len(methods) and len(seeds) >= 3
    assert len({run["config"]["steps"] for run in recorded}) == 1
    for run in recorded:
        assert len(run["movement"]) == 4 * 30 * 5 and len(run["losses"]) == run["config"]["steps"]
        assert run["scores"]["task_accuracy"] == pytest.approx(run["right"].count("1") / len(run["right"]), abs=1e-4)
        assert run["scores"]["persona_consistency"] == pytest.approx(
            sum(run["persona"]) / len(run["persona"]), abs=1e-3
        )


# Paired runs.


def runs(losses: list[float], method: str = "lora", first_seed: int = 0, **changed: Any) -> list[dict[str, Any]]:
    """Records as `experiment` writes them, as far as a comparison reads them."""
    return [
        {
            "config": {"method": method, "r": 8, "learning_rate": 1e-3, "seed": seed} | changed,
            "scores": {"loss": loss},
            "seconds": 100.0,
            "processor_seconds": 10.0 if method == "lora" else 12.0,
            "peak_memory_bytes": 2e9 if method == "lora" else 2.2e9,
        }
        for seed, loss in enumerate(losses, start=first_seed)
    ]


A = [2.0, 2.5, 2.2, 2.9, 2.4]


def test_a_steady_small_difference_shows_through_a_large_spread() -> None:
    found = compare(
        runs(A), runs([a - 0.05 + e for a, e in zip(A, [0.01, -0.01, 0, 0.01, -0.01], strict=True)], "dora")
    )
    assert found.mean == pytest.approx(-0.05)
    assert found.measurable and found.low < -0.05 < found.high < 0
    assert found.detectable == pytest.approx(detectable(0.01, 5))
    assert str(found).startswith("DoRA − LoRA, loss: -0.0500 (-0.0")
    assert "5 pairs): DoRA is lower." in str(found)
    assert "1.20 times the time and 1.10 times the memory" in str(found)


def test_words_follow_an_interval_that_holds_zero() -> None:
    found = compare(runs(A), runs([a + e for a, e in zip(A, [0.1, -0.1, 0.05, -0.02, 0.01], strict=True)], "dora"))
    assert not found.measurable
    assert "no difference that these runs could show" in str(found)
    assert f"one of {found.detectable:.4f} would show" in str(found)


def test_runs_are_paired_by_seed_whatever_their_order() -> None:
    b = runs([a - 0.05 for a in A], "dora")
    assert compare(runs(A), b[::-1]).mean == pytest.approx(-0.05)
    assert compare(runs(A), b[::-1]).low == compare(runs(A), b).low == pytest.approx(-0.05)


def test_the_same_runs_twice_do_not_differ() -> None:
    found = compare(runs(A), runs(A))
    assert (found.mean, found.low, found.high, found.time, found.memory, found.differs) == (0, 0, 0, 1, 1, {})
    assert str(found).startswith("LoRA (second arm) − LoRA (first arm), loss: +0.0000")


def test_what_differs_beside_the_seed_is_told() -> None:
    found = compare(runs(A), runs(A, "dora", learning_rate=2e-3))
    assert found.differs == {"method": ("lora", "dora"), "learning_rate": (1e-3, 2e-3)}


def test_what_differs_in_any_pair_is_told() -> None:
    longer = [*runs(A[:1], "dora", steps=24), *runs(A[1:], "dora", first_seed=1, steps=100)]
    assert compare(runs(A, steps=24), longer).differs == {"method": ("lora", "dora"), "steps": (24, 100)}
    newer = [run | {"versions": {"torch": "9"}} for run in runs(A)]
    assert compare(runs(A), newer).differs == {"versions": (None, {"torch": "9"})}
    assert compare(newer, newer).differs == {}


def test_values_that_no_statistics_can_be_made_of_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="measure is 'acc', but one of loss is expected"):
        compare(runs(A), runs(A, "dora"), "acc")
    with pytest.raises(ValueError, match="but finite numbers are expected"):
        paired_difference([0.1, 0.2], [math.nan, 1.0])
    with pytest.raises(ValueError, match="pairs is 1, but two or more"):
        detectable(1.0, 1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_that_diverged_is_named_and_not_compared(loss: float) -> None:
    with pytest.raises(ValueError, match=rf"run of DoRA with seed 2 diverged \(its loss is {loss}\)"):
        compare(runs(A), runs([*A[:2], loss, *A[3:]], "dora"))
    with pytest.raises(ValueError, match="run of LoRA with seed 0 diverged"):
        compare(runs([loss, *A[1:]]), runs(A, "dora"))


def on(hardware: str, records: list[dict[str, Any]], *lost: str) -> list[dict[str, Any]]:
    return [{"hardware": hardware} | {key: run[key] for key in run if key not in lost} for run in records]


def test_arms_on_two_machines_are_compared_but_not_in_time_and_memory() -> None:
    cpu, gpu = on("a CPU", runs(A)), on("a GPU", runs([a - 0.05 for a in A], "dora"), "processor_seconds")
    found = compare(cpu, gpu)
    assert found.mean == pytest.approx(-0.05)
    assert found.differs == {"method": ("lora", "dora"), "hardware": ("a CPU", "a GPU")}
    assert str(found).endswith("Time and memory cannot be compared: LoRA ran on a CPU, and DoRA on a GPU.")
    assert compare(gpu, cpu).differs["hardware"] == ("a GPU", "a CPU")
    # One pair on two machines is enough; pairs of their own are not.
    assert compare(cpu, on("a CPU", runs(A[:4], "dora")) + on("a GPU", runs(A[:1], "dora", 4))).differs["hardware"]
    mixed = on("a CPU", runs(A[:4])) + on("a GPU", runs(A[:1], first_seed=4))
    assert "hardware" not in compare(mixed, mixed).differs


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_single_run_is_refused_with_the_reason(count: int) -> None:
    with pytest.raises(ValueError, match="five or more are expected: two runs of one method differ as well") as caught:
        compare(runs(A[:count]), runs(A[:count], "dora"))
    assert ("is 1 pair" if count == 1 else f"are {count} pairs") in str(caught.value)


def test_runs_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds are \[0, 1, 2, 3, 4\] and \[1, 2, 3, 4, 5\]"):
        compare(runs(A), runs(A, "dora", first_seed=1))
    with pytest.raises(ValueError, match="each seed once"):
        compare(runs(A) + runs(A[:1]), runs(A, "dora"))


@pytest.mark.parametrize(("pairs", "least"), [(5, 0.90), (8, 0.91), (20, 0.92)])
def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(pairs: int, least: float) -> None:
    random = np.random.default_rng(pairs)
    hits, rounds = 0, 300
    for _ in range(rounds):
        a = random.normal(size=pairs)
        found = compare(runs(list(a)), runs(list(a + random.normal(0.3, 1, size=pairs)), "dora"))
        hits += found.low <= 0.3 <= found.high
    # 95 % is said; a plain percentile bootstrap covers 85 % of the time with five pairs. Two standard errors are 0.03.
    assert least - 0.03 < hits / rounds < 0.985


@pytest.mark.parametrize("pairs", [2, 5, 12])
def test_the_detectable_difference_is_found_four_times_in_five(pairs: int) -> None:
    x = np.random.default_rng(0).normal(detectable(2.0, pairs), 2.0, size=(20_000, pairs))
    assert (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(2.0, pairs + 1) < detectable(2.0, pairs)


def test_runs_of_a_folder_that_is_not_there_say_so() -> None:
    with pytest.raises(ValueError, match="no runs 'nothing'; the recorded experiments are"):
        load_runs("nothing")


def test_an_arm_is_its_runs_at_the_rate_that_tuning_chose() -> None:
    tuning = [
        *runs([2.2], learning_rate=1e-3, split="validation", lora_alpha=16),
        *runs([2.1], learning_rate=2e-3, split="validation", lora_alpha=16),
    ]
    at_one = runs(A[::-1], learning_rate=1e-3, split="test", lora_alpha=16)
    at_two = runs(A, learning_rate=2e-3, split="test", lora_alpha=16)
    other = runs(A, "dora", learning_rate=2e-3, split="test", lora_alpha=16)
    records = [*at_one, *at_two[::-1], *other, *tuning]
    assert arm(records, "lora", 8) == at_two
    assert arm(records, "lora", 8, learning_rate=1e-3) == at_one
    assert arm(records, "dora", 8) == other
    diverged = runs([math.nan], learning_rate=1e-2, split="validation", lora_alpha=16)
    assert arm([*diverged, *records], "lora", 8) == arm([*records, *diverged], "lora", 8) == at_two
    with pytest.raises(ValueError, match=r"have learning_rate 0\.001, 0\.002: say which"):
        arm([*at_one, *at_two], "lora", 8)
    with pytest.raises(ValueError, match="no runs to compare"):
        arm(records, "lora", 16)
    # Another lora_alpha has a best rate of its own, which may not hide the question which of the two is meant.
    wide = [
        *runs([1.9], learning_rate=1e-3, split="validation", lora_alpha=64),
        *runs(A, learning_rate=1e-3, split="test", lora_alpha=64),
    ]
    with pytest.raises(ValueError, match="have lora_alpha 16, 64: say which"):
        arm([*records, *wide], "lora", 8)
    assert arm([*records, *wide], "lora", 8, 64) == wide[1:]
