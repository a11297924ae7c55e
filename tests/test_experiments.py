"""Runs of a design: rates are tuned, finished runs are kept, and a record says all that made it."""

from __future__ import annotations

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

from dora_lesson import load_base, load_runs, load_task_api
from dora_lesson.core import DATA, SetupError
from dora_lesson.evidence import paired_run
from dora_lesson.evidence.design import DESIGNS, Design, read_design
from dora_lesson.evidence.paired_run import PairedRunConfig, make_run, reply_losses
from dora_lesson.evidence.records import PROVENANCE, provenance
from dora_lesson.experiments import run as experiments
from dora_lesson.experiments.__main__ import main
from dora_lesson.task_api.dataset import encode_chat
from tests.test_design import ARM, SMALL, design

TUNED = [ARM | {"rates": [1e-3, 2e-3, 4e-3]}]
FIXED = [ARM | {"methods": ["dora"], "rates": [1e-3]}]
Runs = Iterator[tuple[PairedRunConfig, dict[str, Any]]]


def tuned(folder: Path, **changed: Any) -> Design:
    return design(folder, **{"arms": TUNED} | changed)


def fake_runs(monkeypatch: pytest.MonkeyPatch, best: dict[str, float], made: list[str]) -> None:
    """Runs that take no time: the loss is the distance, in doublings, from the method's best rate."""

    def run_all(runs: list[PairedRunConfig], command: str, jobs: int) -> Runs:
        for run in reversed(runs):  # whatever the order in which they are done
            made.append(run.name)
            loss = abs(math.log2(run.learning_rate / best[run.method]))
            loss = math.nan if run.learning_rate > best.get("diverges above", 0.05) else loss
            made_by = {**provenance(command, [run.seed]), "config": run.model_dump(mode="json")}
            yield run, {**made_by, "scores": {"loss": loss}, "seconds": 1.0}

    monkeypatch.setattr(experiments, "_run_all", run_all)


def test_each_arm_is_compared_at_its_best_rate_which_lies_inside_those_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 16e-3}, made := [])
    records = experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    rates = {(r["config"]["method"], r["config"]["learning_rate"]) for r in records}
    assert rates == {("lora", 2e-3), ("dora", 16e-3)}
    assert [r["config"]["seed"] for r in records] == [0, 0, 1, 1]
    assert {r["config"]["split"] for r in records} == {"test"}
    tuning = [name for name in made if "validation" in name]
    assert len(tuning) == 6 + 3  # dora's 8e-3, 16e-3, and 32e-3, which shows that 16e-3 is the best
    assert all(name.endswith("seed100") for name in tuning)


def test_an_arm_at_a_given_rate_shares_the_runs_of_the_tuned_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    fixed = [ARM | {"methods": ["lora"], "rates": [rate]} for rate in (2e-3, 4e-3)]
    records = experiments.experiment(tuned(tmp_path, arms=TUNED + fixed), tmp_path / "runs")
    assert len(made) == len(set(made)) == 6 + 3 * 2
    assert len(records) == 3 * 2


def test_a_rate_at_which_a_run_diverged_is_never_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 0.04, "dora": 2e-3}, made := [])
    records = experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    assert records[0]["config"]["learning_rate"] == pytest.approx(0.032)
    assert any("rate0.064" in name for name in made)  # was tried, and gave NaN
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3, "diverges above": 0.0}, made := [])
    with pytest.raises(ValueError, match="All rates tried for lora at r = 2 diverged"):
        experiments.experiment(tuned(tmp_path), tmp_path / "other")
    assert not any("test" in name for name in made)


def test_a_second_call_makes_nothing_and_a_cut_off_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    first = experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    count = len(made)
    assert experiments.experiment(tuned(tmp_path), tmp_path / "runs") == first
    assert len(made) == count
    lost = tmp_path / "runs" / f"{made[-1]}.json"
    lost.unlink()
    bars: list[Any] = []
    monkeypatch.setattr(experiments, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    assert made[count:] == [lost.stem]
    assert bars[0].n == count and bars[0].initial == count - 1  # the time left follows from what is made, not read


def test_a_folder_of_other_runs_is_refused_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    count = len(made)
    experiments.experiment(tuned(tmp_path, seeds=[0, 1, 5]), tmp_path / "runs")  # more seeds of the same design
    assert len(made) == count + 2
    before = {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    with pytest.raises(ValueError, match=r"its steps is 1, and the design has 9.*Nothing is written over"):
        experiments.experiment(tuned(tmp_path, seeds=[7, 8], steps=9), tmp_path / "runs")
    arms = [ARM | {"ranks": [64]}]
    with pytest.raises(ValueError, match="no arm has its method, r and lora_alpha"):
        experiments.experiment(design(tmp_path, arms=arms), tmp_path / "runs")
    with pytest.raises(ValueError, match="is not a run of this design"):
        experiments.experiment(design(tmp_path, arms=arms), DATA / "records" / "sweep")
    assert len(made) == count + 2
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == before


def test_runs_of_two_versions_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, made := [])
    first = experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    monkeypatch.setattr(experiments, "versions", lambda: {"torch": "9"})
    assert experiments.experiment(tuned(tmp_path), tmp_path / "runs") == first  # a complete folder may be read
    (tmp_path / "runs" / f"{made[-1]}.json").unlink()
    with pytest.raises(ValueError, match="was made with other versions"):
        experiments.experiment(tuned(tmp_path), tmp_path / "runs")


def test_no_more_chats_are_held_out_than_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, [])
    with pytest.raises(ValueError, match="held_out is 201, but the validation split has 200 chats"):
        experiments.experiment(tuned(tmp_path, held_out=201), tmp_path / "runs")
    experiments.experiment(design(tmp_path, held_out=201, arms=FIXED), tmp_path / "runs")  # tunes nothing
    with pytest.raises(ValueError, match="the test split has 400 chats"):
        experiments.experiment(design(tmp_path, held_out=401, arms=FIXED), tmp_path / "other")


def killed(run: PairedRunConfig, command: str) -> dict[str, Any]:
    if run.seed:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that runs out of memory
    return {**provenance(command, [0]), "config": run.model_dump(mode="json"), "scores": {"loss": 1.0}}


def test_a_killed_run_is_named_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experiments, "_quiet_run", killed)
    with pytest.raises(SetupError, match=r"The run dora-r2-.*-seed1 was killed, most likely for want of memory"):
        experiments.experiment(design(tmp_path, arms=FIXED), tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dora-r2-alpha4-rate0.001-test-seed0.json"]


def test_a_record_that_was_written_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_runs(monkeypatch, {"lora": 2e-3, "dora": 2e-3}, [])
    inner = experiments._run_all

    def with_another(runs: list[PairedRunConfig], command: str, jobs: int) -> Runs:
        for run, record in inner(runs, command, jobs):
            (tmp_path / "runs" / f"{run.name}.json").write_text("theirs")
            yield run, record

    monkeypatch.setattr(experiments, "_run_all", with_another)
    with pytest.raises(ValueError, match="another experiment runs"):
        experiments.experiment(tuned(tmp_path), tmp_path / "runs")
    assert {path.read_text() for path in (tmp_path / "runs").glob("*.json")} == {"theirs"}


def test_the_command_plans_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--folder", str(tmp_path / "none")]) == 0
    assert "smallest that this design detects" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    (tmp_path / "design.yaml").write_text((DESIGNS / "sweep.yaml").read_text())
    for arguments, message in [
        (["--design", str(tmp_path / "none.yaml"), "--folder", str(tmp_path / "none")], "There is no design"),
        (["--jobs", "0", "--folder", str(tmp_path / "none")], "jobs is 0"),
        (["--folder", str(tmp_path / "file" / "inside")], "file/inside: Not a directory"),
        (["--plan", "--design", str(tmp_path / "design.yaml")], "Pass --folder, a place for these runs"),
        (["--plan", "--base", "some/llama"], "Pass --folder, a place for these runs"),
        (["--plan", "--folder", str(DATA / "records")], "so it is not a run: pass a folder of runs"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert main(["--plan"]) == 0
    assert "holds 148 runs; the median one trained for" in capsys.readouterr().out


# Real runs, of a Llama of random weights.


def config(tiny_base: Path, method: str = "dora", **changed: Any) -> PairedRunConfig:
    arms = [{"methods": [method], "rates": [1e-3]} | ({"ranks": [2], "alpha_over_r": 2} if "ora" in method else {})]
    keys = SMALL | {"base": str(tiny_base), "arms": arms}
    return Design.model_validate(keys).arms[0][0].model_copy(update={"seed": 3} | changed)


def test_the_command_makes_records_that_say_all(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"arms": FIXED, "base": str(tiny_base)}))
    assert main(["--design", str(path), "--folder", str(tmp_path / "runs"), "--jobs", "2"]) == 0
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


@pytest.mark.parametrize(("method", "trained"), [("lora", 768), ("qdora", 960), ("full", None), ("qbase", 0)])
def test_each_method_trains_what_it_should(tiny_base: Path, method: str, trained: int | None) -> None:
    record = make_run(config(tiny_base, method))
    expected = load_base(str(tiny_base))[0].num_parameters() if trained is None else trained
    assert record.get("trained_parameters", 0) == expected
    assert math.isfinite(record["scores"]["loss"])


def test_a_run_is_the_same_again_and_another_seed_is_not(tiny_base: Path) -> None:
    first, again, other = (make_run(config(tiny_base, seed=seed)) for seed in (3, 3, 4))
    assert first["losses"] == again["losses"]
    assert first["item_losses"] == again["item_losses"]
    assert other["losses"] != first["losses"]


def test_a_run_over_4_bits_is_scored_merged_and_packed_again_and_its_movement_is_followed(tiny_base: Path) -> None:
    record = experiments._quiet_run(config(tiny_base, "qdora", scored=2, checkpoints=2, steps=2), "a command")
    scores = {"task_accuracy", "action_accuracy", "persona_consistency"}
    assert set(record["requantized"]) == scores < set(record["scores"])
    assert len(record["right"]) == len(record["replies"]) == len(record["persona"]) == 2
    assert [row[0] for row in record["movement"]] == [1, 1, 1, 2, 2, 2]  # three blocks, q_proj
    assert all(moved > 0 for row in record["movement"] for moved in row[3:])


def test_a_wide_start_is_as_wide_as_asked(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[torch.Tensor] = []
    finetune = paired_run.finetune

    def look(model: Any, *arguments: Any, **options: Any) -> Any:
        starts.extend(p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name)
        return finetune(model, *arguments, **options)

    monkeypatch.setattr(paired_run, "finetune", look)
    make_run(config(tiny_base, "lora", r=32, lora_A_std=0.5))
    assert len(starts) == 3
    assert torch.cat(starts).std().item() == pytest.approx(0.5, rel=0.05)


def test_losses_of_replies_are_the_models_own_one_by_one(bundled: tuple[Any, Any]) -> None:
    model, tokenizer = bundled
    items = list(load_task_api("test"))[:5]
    losses, right = reply_losses(model, tokenizer, items)
    for item, loss, share in zip(items, losses, right, strict=True):
        chat = encode_chat(tokenizer, item["messages"])
        ids, labels = torch.tensor([chat["input_ids"]]), torch.tensor([chat["labels"]])
        with torch.no_grad():
            out = model(input_ids=ids, labels=labels)
        assert loss == pytest.approx(out.loss.item(), abs=1e-3)  # float32, another shape
        judged = labels[0, 1:] != -100
        hits = (out.logits[0, :-1].argmax(dim=-1) == labels[0, 1:])[judged].float().mean().item()
        assert share == pytest.approx(hits, abs=0.05)


def test_the_recorded_sweep_is_that_of_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_missing(runs: list[PairedRunConfig], command: str, jobs: int) -> Runs:
        assert not runs
        return iter(())

    monkeypatch.setattr(experiments, "_run_all", none_missing)
    records = experiments.experiment(read_design(), DATA / "records" / "sweep")
    for record in load_runs("sweep"):
        assert record["config"]["base"] is None and math.isfinite(record["scores"]["loss"])
    stems = {path.stem for path in (DATA / "records" / "sweep").iterdir()}
    assert {PairedRunConfig.model_validate(record["config"]).name for record in load_runs("sweep")} == stems
    assert len(records) <= len(stems)
