"""Experiments: designs are read and refused, rates are tuned, runs are kept, and a record says all that made it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tqdm import tqdm

from dora_lesson import detectable, load_base, load_runs, load_task_api
from dora_lesson.__main__ import main
from dora_lesson.core import DATA, SetupError
from dora_lesson.evidence.records import PROVENANCE, provenance
from dora_lesson.experiments import run as experiment
from dora_lesson.experiments.design import DESIGN, Design, Setting, read_design
from dora_lesson.task_api.dataset import encode_chat
from dora_lesson.training import paired_run
from dora_lesson.training.paired_run import one_run, reply_losses

SMALL: dict[str, Any] = {
    "base": None, "dtype": "float32", "steps": 1, "batch_size": 1, "target_modules": ["q_proj"], "held_out": 2,
    "tuning_seed": 100, "seeds": [0, 1], "spread": 0.01,
    "arms": [{"methods": ["lora", "dora"], "ranks": [2], "alpha_over_r": 2, "rates": [1e-3, 2e-3, 4e-3]}],
}  # fmt: skip


def design(tmp_path: Path, **changed: Any) -> Design:
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed))
    return read_design(path)


def setting(tmp_path: Path, method: str, **changed: Any) -> Setting:
    arm = design(tmp_path).arms[0][0]
    changed = {"learning_rate": 1e-3, "seed": 3, "split": "test"} | changed
    return dataclasses.replace(arm, method=method, **changed)


def fake_runs(monkeypatch: pytest.MonkeyPatch, best: dict[str, float], made: list[str]) -> None:
    """Runs that take no time: the loss is the distance, in doublings, from the method's best rate."""

    def run_all(settings: list[Setting], command: str, jobs: int) -> Iterator[tuple[Setting, dict[str, Any]]]:
        for one in reversed(settings):  # whatever the order in which they are done
            made.append(one.name)
            off = abs(math.log2(one.learning_rate / best[one.method]))
            loss = math.nan if one.learning_rate > best.get("diverges above", 0.05) else off
            config = json.loads(json.dumps(dataclasses.asdict(one)))
            yield one, {**provenance(command, [one.seed]), "config": config, "scores": {"loss": loss}, "seconds": 1.0}

    monkeypatch.setattr(experiment, "_run_all", run_all)


# Designs.


def test_the_course_design_is_what_the_lesson_asks_for() -> None:
    found = read_design()
    arms = {(arm.method, arm.r) for arm, rates in found.arms if len(rates) >= 4}
    assert arms >= {(method, r) for method in ("lora", "dora") for r in (2, 4, 8, 16, 32)} | {("full", 0)}
    assert len(found.seeds) >= 5
    assert found.tuning_seed not in found.seeds
    # QLoRA and QDoRA are matched: their arms are alike but for the method.
    quantized = [arm for arm, _ in found.arms if arm.method.startswith("q")]
    for arm in quantized:
        assert dataclasses.replace(arm, method={"qlora": "qdora", "qdora": "qlora"}[arm.method]) in quantized


def test_a_design_says_what_it_can_detect(tmp_path: Path) -> None:
    text = str(design(tmp_path, seeds=[0, 1, 2, 3, 4, 5], spread=0.5))
    assert "2 arms: 6 runs to tune the rates of 2 of them, and 12 to compare, 6 seeds each" in text
    assert f"{detectable(0.5, 6):.3f}" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"extra": 1}, "the keys arms, base"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"seeds": 5}, "different numbers"),
        ({"tuning_seed": 1}, "tuning_seed is one of seeds"),
        ({"spread": 0}, "spread is 0"),
        ({"arms": [{"methods": ["lora"]}]}, "methods and rates are expected"),
        ({"arms": [{"methods": ["lora"], "ranks": [4], "rates": []}]}, r"rates are \[\]"),
        ({"arms": [{"methods": ["lora"], "ranks": [4], "rates": ["1e-3"]}]}, "rates are"),
        ({"arms": [{"methods": ["lora"], "ranks": [0], "rates": [1e-3]}]}, "lora needs ranks"),
        ({"arms": [{"methods": ["dorra"], "ranks": [4], "rates": [1e-3]}]}, "method is 'dorra'"),
        ({"arms": SMALL["arms"] * 2}, "two arms to tune have"),
    ],
)
def test_a_bad_design_is_refused_in_a_sentence(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        design(tmp_path, **changed)


def test_a_design_that_is_not_there_or_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"copy sweep\.yaml"):
        read_design(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("steps: [")
    with pytest.raises(ValueError, match="is no YAML"):
        read_design(tmp_path / "broken.yaml")


def test_another_base_is_in_every_run_and_in_the_command() -> None:
    found = read_design(base="some/llama")
    assert {arm.base for arm, _ in found.arms} == {"some/llama"}
    assert found.command == "python -m dora_lesson experiment --base some/llama"


# Tuning, going on, and what is never written over.


def test_each_arm_is_compared_at_its_best_rate_looked_for_until_it_lies_inside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 16e-3}, made := [])
    records = experiment.experiment(design(tmp_path), tmp_path / "runs")
    rates = {(r["config"]["method"], r["config"]["learning_rate"]) for r in records}
    assert rates == {("lora", 2e-3), ("dora", 16e-3)}
    assert [r["config"]["seed"] for r in records] == [0, 0, 1, 1]
    assert {r["config"]["split"] for r in records} == {"test"}
    tuned = [name for name in made if "validation" in name]
    assert len(tuned) == 6 + 3  # dora's 8e-3, 16e-3, and 32e-3, which shows that 16e-3 is the best
    assert all(name.endswith("seed100") for name in tuned)


def test_an_arm_at_a_given_rate_shares_the_runs_of_the_tuned_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    more = [{"methods": ["lora"], "ranks": [2], "alpha_over_r": 2, "rates": [rate]} for rate in (2e-3, 4e-3)]
    records = experiment.experiment(design(tmp_path, arms=SMALL["arms"] + more), tmp_path / "runs")
    assert len(made) == len(set(made)) == 6 + 3 * 2
    assert len(records) == 3 * 2


def test_a_run_that_ended_in_no_number_is_not_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 0.04, "dora": 2e-3}, made := [])
    records = experiment.experiment(design(tmp_path), tmp_path / "runs")
    assert records[0]["config"]["learning_rate"] == pytest.approx(0.032)
    assert any("rate0.064" in name for name in made)  # was tried, and gave NaN


def test_a_second_call_makes_nothing_and_a_cut_off_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    first = experiment.experiment(design(tmp_path), tmp_path / "runs")
    count = len(made)
    assert experiment.experiment(design(tmp_path), tmp_path / "runs") == first
    assert len(made) == count
    lost = tmp_path / "runs" / f"{made[-1]}.json"
    lost.unlink()
    bars: list[Any] = []
    monkeypatch.setattr(experiment, "tqdm", lambda **told: bars.append(tqdm(**told)) or bars[-1])
    experiment.experiment(design(tmp_path), tmp_path / "runs")
    assert made[count:] == [lost.stem]
    assert bars[0].n == count and bars[0].initial == count - 1  # the time left follows from what was made, not read


def test_a_record_that_no_longer_matches_is_reported_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, [])
    experiment.experiment(design(tmp_path), tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    with pytest.raises(ValueError, match="its steps is 1, and 5 is asked for") as caught:
        experiment.experiment(design(tmp_path, steps=5), tmp_path / "runs")
    assert "Nothing is written over" in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == before


def test_a_folder_of_other_runs_is_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of more seeds as well, whose files have names of their own; the course's folder takes no other design's."""
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    experiment.experiment(design(tmp_path), tmp_path / "runs")
    count = len(made)
    experiment.experiment(design(tmp_path, seeds=[0, 1, 5]), tmp_path / "runs")  # more seeds of the same design
    assert len(made) == count + 2
    with pytest.raises(ValueError, match="is no run of this design: its steps is 1, and 9 is asked for"):
        experiment.experiment(design(tmp_path, seeds=[7, 8], steps=9), tmp_path / "runs")
    arms = [SMALL["arms"][0] | {"ranks": [64]}]
    with pytest.raises(ValueError, match="no arm has its method, rank and lora_alpha"):
        experiment.experiment(design(tmp_path, arms=arms), tmp_path / "runs")
    with pytest.raises(ValueError, match="is no run of this design"):
        experiment.experiment(design(tmp_path, arms=arms), DATA / "records" / "sweep")
    assert len(made) == count + 2


def test_runs_of_two_versions_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    first = experiment.experiment(design(tmp_path), tmp_path / "runs")
    monkeypatch.setattr(experiment, "versions", lambda: {"torch": "9"})
    assert experiment.experiment(design(tmp_path), tmp_path / "runs") == first  # a whole folder may be read
    (tmp_path / "runs" / f"{made[-1]}.json").unlink()
    with pytest.raises(ValueError, match="was made with other versions"):
        experiment.experiment(design(tmp_path), tmp_path / "runs")


def test_an_arm_that_diverged_at_every_rate_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3, "diverges above": 0.0}, made := [])
    with pytest.raises(ValueError, match="All rates tried for lora at r = 2 diverged"):
        experiment.experiment(design(tmp_path), tmp_path / "runs")
    assert not any("test" in name for name in made)


def test_no_more_chats_are_held_out_than_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, [])
    with pytest.raises(ValueError, match="held_out is 102, but the validation split has 101 chats"):
        experiment.experiment(design(tmp_path, held_out=102), tmp_path / "runs")
    arms = [SMALL["arms"][0] | {"rates": [1e-3]}]  # nothing to tune
    experiment.experiment(design(tmp_path, held_out=102, arms=arms), tmp_path / "runs")
    with pytest.raises(ValueError, match="the test split has 204 chats"):
        experiment.experiment(design(tmp_path, held_out=205, arms=arms), tmp_path / "other")


def test_a_record_of_something_else_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "--plan", "--folder", str(DATA / "records")]) == 1
    assert "so it is no run: pass a folder of runs alone" in capsys.readouterr().err


def killed(one: Setting, command: str) -> dict[str, Any]:
    if one.seed:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that runs out of memory
    return {**provenance(command, [0]), "config": dataclasses.asdict(one), "scores": {"loss": 1.0}, "seconds": 1.0}


def test_a_run_that_was_killed_is_named_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "_quiet_run", killed)
    arms = [{"methods": ["dora"], "ranks": [2], "alpha_over_r": 2, "rates": [1e-3]}]
    with pytest.raises(SetupError, match=r"The run dora-r2-.*-seed1 was killed, most likely for want of memory"):
        experiment.experiment(design(tmp_path, arms=arms), tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dora-r2-alpha4-rate0.001-test-seed0.json"]


def test_a_record_that_came_meanwhile_is_not_written_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, [])
    inner = experiment._run_all

    def with_another(settings: list[Setting], command: str, jobs: int) -> Iterator[tuple[Setting, dict[str, Any]]]:
        for one, record in inner(settings, command, jobs):
            (tmp_path / "runs" / f"{one.name}.json").write_text("theirs")
            yield one, record

    monkeypatch.setattr(experiment, "_run_all", with_another)
    with pytest.raises(ValueError, match="another experiment runs"):
        experiment.experiment(design(tmp_path), tmp_path / "runs")
    assert {path.read_text() for path in (tmp_path / "runs").glob("*.json")} == {"theirs"}


def test_the_command_plans_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "--plan", "--folder", str(tmp_path / "none")]) == 0
    assert "smallest that this design detects" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert main(["experiment", "--design", str(tmp_path / "none.yaml"), "--folder", str(tmp_path / "none")]) == 1
    assert "There is no design" in capsys.readouterr().err
    assert main(["experiment", "--jobs", "0", "--folder", str(tmp_path / "none")]) == 1
    assert "jobs is 0" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["experiment", "--folder", str(tmp_path / "file" / "inside")]) == 1
    assert "file/inside: Not a directory" in capsys.readouterr().err
    (tmp_path / "design.yaml").write_text(DESIGN.read_text())
    for own in (["--design", str(tmp_path / "design.yaml")], ["--base", "some/llama"]):
        assert main(["experiment", "--plan", *own]) == 1
        assert "Pass --folder, a place for these runs" in capsys.readouterr().err
    assert main(["experiment", "--plan"]) == 0
    assert "holds 148 runs; the median one trained for" in capsys.readouterr().out


# Real runs.


def test_the_command_makes_records_that_say_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "design.yaml"
    arms = [{"methods": ["dora"], "ranks": [2], "alpha_over_r": 2, "rates": [1e-3]}]
    path.write_text(yaml.safe_dump(SMALL | {"arms": arms, "seeds": [0, 1]}))
    assert main(["experiment", "--design", str(path), "--folder", str(tmp_path / "runs"), "--jobs", "2"]) == 0
    assert "2 runs to compare" in capsys.readouterr().out
    files = sorted((tmp_path / "runs").iterdir())
    assert [file.name for file in files] == [f"dora-r2-alpha4-rate0.001-test-seed{s}.json" for s in (0, 1)]
    record = json.loads(files[1].read_text())
    assert all(record[key] for key in PROVENANCE)
    assert str(path) in record["command"]
    assert record["config"]["target_modules"] == ["q_proj"]
    assert len(record["losses"]) == 1
    assert len(record["item_losses"]) == 2
    assert record["scores"]["loss"] == pytest.approx(sum(record["item_losses"]) / 2, abs=1e-3)
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 100e6


@pytest.mark.parametrize(("method", "trained"), [("lora", 69_120), ("qdora", 86_400), ("full", 134_515_008)])
def test_each_method_trains_what_it_should(tmp_path: Path, method: str, trained: int) -> None:
    record = one_run(setting(tmp_path, method))
    assert record["trained_parameters"] == trained
    assert math.isfinite(record["scores"]["loss"])


def test_a_run_is_the_same_again_and_another_seed_is_not(tmp_path: Path) -> None:
    first, again, other = (one_run(setting(tmp_path, "dora", seed=seed)) for seed in (3, 3, 4))
    assert first["losses"] == again["losses"]
    assert first["item_losses"] == again["item_losses"]
    assert other["losses"] != first["losses"]


def test_a_wide_start_is_as_wide_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    finetune = paired_run.finetune

    def look(model: Any, *args: Any, **more: Any) -> Any:
        seen.extend(p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name)
        return finetune(model, *args, **more)

    monkeypatch.setattr(paired_run, "finetune", look)
    one_run(setting(tmp_path, "lora", A_spread=0.5))
    assert len(seen) == 30
    assert torch.cat(seen).std().item() == pytest.approx(0.5, rel=0.02)


def test_losses_of_replies_are_the_model_own_one_by_one() -> None:
    model, tokenizer = load_base("bundled", dtype="float32", device="cpu")
    items = list(load_task_api("test"))[:5]
    losses, right = reply_losses(model, tokenizer, items, batch_size=3)
    for item, loss, share in zip(items, losses, right, strict=True):
        chat = encode_chat(tokenizer, item["messages"])
        ids, labels = torch.tensor([chat["input_ids"]]), torch.tensor([chat["labels"]])
        with torch.no_grad():
            out = model(input_ids=ids, labels=labels)
        assert loss == pytest.approx(out.loss.item(), abs=1e-3)  # float32, another shape
        told = labels[0, 1:] != -100
        hits = (out.logits[0, :-1].argmax(dim=-1) == labels[0, 1:])[told].float().mean().item()
        assert share == pytest.approx(hits, abs=0.05)


# The recorded sweep.


def test_the_recorded_sweep_is_that_of_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_missing(settings: list[Setting], command: str, jobs: int) -> Iterator[Any]:
        assert settings == []
        yield from ()

    monkeypatch.setattr(experiment, "_run_all", none_missing)
    records = experiment.experiment(read_design(DESIGN), DATA / "records" / "sweep")
    assert len(records) == 5 * 19  # of twenty-one arms, two at a given rate are tuned ones as well
    assert all(math.isfinite(record["scores"]["loss"]) for record in records)
    kept = {path.stem for path in (DATA / "records" / "sweep").iterdir()}
    compared = {Setting(**(r["config"] | {"target_modules": ()})).name for r in records}
    assert compared <= kept
    assert all("-validation-" in name for name in kept - compared)
    assert len(load_runs("sweep")) == len(kept)
