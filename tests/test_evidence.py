"""Records say how they were made, and hold what the lessons read from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_lesson import load_record, load_runs
from dora_lesson.evidence import records


def test_an_unknown_record_names_those_that_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "DATA", tmp_path)
    with pytest.raises(ValueError, match="the records are: none"):
        load_record("short")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "long.json").write_text("{}")
    (tmp_path / "outside.json").write_text("{}")
    for name in ("short", "../outside", 5, None):
        with pytest.raises(ValueError, match=f"no record {name!r}; the records are: long"):
            load_record(name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"no runs {name!r}; the recorded experiments are: none"):
            load_runs(name)  # type: ignore[arg-type]


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


def test_merging_into_the_packing_loses_calls_and_fewer_the_longer_the_training() -> None:
    lost = {}
    for name in ("merges_half", "merges"):
        exact = {row["name"]: row["exact"] for row in load_record(name)["rows"]}
        assert len(exact) == 5 and all(0 <= share <= 1 for share in exact.values())
        good = [exact[way] for way in ("adapter beside 4 bits", "merged at full size", "full size, packed once")]
        assert exact["base in 4 bits"] < exact["merged into 4 bits"] < min(good)
        lost[name] = min(good) - exact["merged into 4 bits"]
    assert lost["merges_half"] > 0.1 > lost["merges"]


def test_the_served_model_was_scored_in_pytorch_and_from_both_files() -> None:
    record = load_record("served")
    whole, sixteen, packed = record["rows"]
    assert [row["name"] for row in record["rows"]] == ["merged, PyTorch", "llama.cpp, f16", "llama.cpp, Q4_K_M"]
    assert whole["megabytes"] > sixteen["megabytes"] > packed["megabytes"] and record["versions"]["llama-cpp-python"]
    assert all(0 <= row["exact"] * record["items"] <= record["items"] for row in record["rows"])


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


def test_runs_of_a_folder_that_is_not_there_say_so() -> None:
    with pytest.raises(ValueError, match="no runs 'nothing'; the recorded experiments are"):
        load_runs("nothing")
