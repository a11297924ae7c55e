"""The tool that records runs: a run is kept with what made it, and is not taken for one of other settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dora_lesson import load_record
from dora_lesson.evidence import records
from tools import record_runs

SETTING = {"method": "lora", "learning_rate": 2e-3, "seed": 0, "steps": 40, "batch_size": 2}
COMMAND = "python -m tools.record_runs --seeds 1"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that take no time; returns the methods that were trained."""
    made: list[str] = []

    def train(model: Any, tokenizer: Any, setting: dict[str, Any]) -> dict[str, Any]:
        made.append(setting["method"])
        return {"seconds": 1.0}

    monkeypatch.setattr(record_runs, "load_base", lambda **_: (None, None))
    monkeypatch.setattr(record_runs, "merge_adapters", lambda model, **_: model)
    monkeypatch.setattr(record_runs, "held_out_items", lambda count: [])
    monkeypatch.setattr(record_runs, "_train", train)
    monkeypatch.setattr(record_runs, "_scored", lambda *_: {"scores": {"task_accuracy": 0.5}, "replies": ["ü"]})
    return made


def make(folder: Path, **changed: Any) -> dict[str, Any]:
    return record_runs.one_run(SETTING | changed, 68, folder, COMMAND)


def test_a_run_is_made_once_and_keeps_when_and_where_it_was_made(tmp_path: Path, trained: list[str]) -> None:
    first = make(tmp_path)
    path = next(tmp_path.iterdir())
    assert path.name == "lora-0.002-0-40-2-68.json"
    on_disk = json.loads(path.read_text())
    path.write_text(json.dumps(on_disk | {"date": "2020-01-01", "hardware": "an abacus"}))
    again = make(tmp_path)
    assert trained == ["lora"]
    assert again["made"] == {"date": "2020-01-01", "hardware": "an abacus", "command": COMMAND}
    assert again | {"made": first["made"]} == first
    make(tmp_path, seed=1)
    assert len(trained) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("R", 32, "was made with r 16, but now it is 32"),
        ("LORA_ALPHA", 64, "was made with lora_alpha 32, but now it is 64"),
        ("MODULES", ["q_proj"], "was made with target_modules"),
        ("CHECKPOINTS", 8, "was made with checkpoints 4, but now it is 8"),
    ],
)
def test_a_run_of_another_setting_is_refused(
    name: str, value: Any, said: str, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setattr(record_runs, name, value)
    with pytest.raises(ValueError, match=said):
        make(tmp_path)
    assert trained == ["lora"]


def test_a_run_of_other_versions_is_refused(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    now = records.versions()
    monkeypatch.setattr(record_runs, "versions", lambda: now | {"torch": "99.0"})
    with pytest.raises(ValueError, match=r"was made with torch '\d.*', but now it is '99\.0'"):
        make(tmp_path)


def test_a_run_that_does_not_say_how_it_was_made_is_refused_before_any_is_made(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lora-0.002-1-40-2-68.json").write_text(json.dumps(SETTING | {"scores": {}}))
    arguments = ["record_runs", "--methods", "lora", "--seeds", "2", "--folder", str(tmp_path), "--name", "none"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="does not say its command"):
        record_runs.main()
    assert not trained and len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--seeds", "1"], r"short\.json is there already, made by .*--seeds 3 .*: pass another --name"),
        (["--items", "205"], "--items from 1 to 204"),
        (["--jobs", "0"], "--jobs and --seeds from 1 on"),
    ],
)
def test_what_would_write_over_a_record_or_cannot_be_run_is_refused_before_any_is_made(
    changed: list[str], says: str, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (record_runs.RECORDS / "short.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["record_runs", "--folder", str(tmp_path), *changed])
    with pytest.raises(SystemExit, match=says):
        record_runs.main()
    assert not trained and (record_runs.RECORDS / "short.json").read_bytes() == before


def test_the_number_of_jobs_makes_no_other_record() -> None:
    one, two = (f"{record_runs.COMMAND} --items 68 --jobs {jobs} --name short" for jobs in (1, 2))
    assert record_runs._but_jobs(one) == record_runs._but_jobs(two)


def test_a_record_says_of_each_run_how_it_was_made(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make(tmp_path / "runs", seed=seed) for seed in (0, 1)]
    runs[0]["made"] |= {"date": "2020-01-01", "hardware": "an abacus"}
    (tmp_path / "records").mkdir()
    text = record_runs.as_text("python -m tools.record_runs --seeds 2", [0, 1], record_runs.config(68), runs)
    (tmp_path / "records" / "mixed.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(records, "DATA", tmp_path)
    record = load_record("mixed")
    assert record["runs"] == runs
    assert record["date"] == runs[1]["made"]["date"]
    assert record["hardware"] == f"an abacus; {runs[1]['made']['hardware']}"
    assert record["config"]["r"] == 16 and record["config"]["scored on"].startswith("the first 68")
    assert text.splitlines()[-2].startswith('{"method": "lora"') and "ü" in text  # a run a line, to be read
