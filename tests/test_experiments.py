"""Runs of a design: all are made, finished ones are kept, and a record says all that made it."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tqdm import tqdm

from dora_lesson import load_base, load_task_api
from dora_lesson.adapters.inject import adapted_layers, matching_linears
from dora_lesson.core import DATA, SetupError
from dora_lesson.evidence import paired_run
from dora_lesson.evidence.design import DESIGNS, Design, read_design
from dora_lesson.evidence.paired_run import PairedRunConfig, make_run, matched_ranks, reply_losses
from dora_lesson.evidence.records import PROVENANCE, provenance, read_runs
from dora_lesson.experiments import run as experiments
from dora_lesson.experiments.__main__ import main
from dora_lesson.task_api.chats import encode_chat
from tests.test_design import ARM, SMALL, design

FIXED = [ARM | {"methods": ["dora"], "rates": [1e-3]}]
Runs = Iterator[tuple[PairedRunConfig, dict[str, Any]]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were made, in runs that take no time."""
    names: list[str] = []

    def run_all(runs: list[PairedRunConfig], command: str, jobs: int) -> Runs:
        for run in reversed(runs):  # whatever the order in which they are done
            names.append(run.name)
            made_by = {**provenance(command, [run.seed]), "config": run.model_dump(mode="json")}
            yield run, {**made_by, "scores": {"loss": 1.0}, "seconds": 1.0}

    monkeypatch.setattr(experiments, "_run_all", run_all)
    return names


def test_every_rate_of_an_arm_is_run_with_every_seed_and_the_base_once(made: list[str], tmp_path: Path) -> None:
    arms = [ARM, {"methods": ["base"], "rates": [0]}]
    records = experiments.experiment(design(tmp_path, arms=arms), tmp_path / "runs.jsonl")
    names = [PairedRunConfig.model_validate(record["config"]).name for record in records]
    expected = [f"{m}-r2-alpha4-rate{q}-seed{s}" for s in (0, 1) for m in ("lora", "dora") for q in (0.001, 0.002)]
    assert sorted(names) == sorted([*expected, "base-rate0-seed0"]) and len(made) == 9
    assert names[:4] == expected[:4]  # a pair is complete early


def test_arms_that_share_runs_make_them_once(made: list[str], tmp_path: Path) -> None:
    arms = [ARM, ARM | {"methods": ["lora"], "rates": [2e-3, 4e-3]}]
    assert len(experiments.experiment(design(tmp_path, arms=arms), tmp_path / "runs.jsonl")) == len({*made}) == 10


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_second_call_makes_nothing_and_a_cut_off_one_goes_on(
    made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "runs.jsonl"
    first = experiments.experiment(design(tmp_path), path)
    count = len(made)
    assert experiments.experiment(design(tmp_path), path) == first
    assert len(made) == count == len(lines(path))
    path.write_text("".join(f"{line}\n" for line in lines(path)[:-1]))
    bars: list[Any] = []
    monkeypatch.setattr(experiments, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    experiments.experiment(design(tmp_path), path)
    assert made[count:] == made[count - 1 : count]
    assert bars[0].n == count and bars[0].initial == count - 1  # the time left follows from what is made, not read


def test_a_line_that_was_cut_off_is_named(made: list[str], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    experiments.experiment(design(tmp_path), path)
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match=r"line 8 of runs\.jsonl is not valid JSON .* delete it, and make it again"):
        experiments.experiment(design(tmp_path), path)


def test_a_line_with_another_kind_of_config_is_a_sentence(made: list[str], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    experiments.experiment(design(tmp_path), path)
    path.write_text(path.read_text().replace('"r": 2', '"r": "two"', 1))
    with pytest.raises(ValueError, match=r"^A record's config is not that of a run \(r is 'two'.*make it again\.$"):
        experiments.experiment(design(tmp_path), path)


def test_a_file_of_other_runs_is_refused_and_kept(made: list[str], tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    experiments.experiment(design(tmp_path), path)
    count = len(made)
    experiments.experiment(design(tmp_path, seeds=[0, 1, 5]), path)  # more seeds of the same design
    assert len(made) == count + 4
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"its steps is 1, and the design has 9.*Nothing is written over"):
        experiments.experiment(design(tmp_path, seeds=[7, 8], steps=9), path)
    with pytest.raises(ValueError, match="no arm has its method, r and lora_alpha"):
        experiments.experiment(design(tmp_path, arms=[ARM | {"ranks": [64]}]), path)
    assert len(made) == count + 4 and path.read_bytes() == before


def test_runs_of_two_versions_are_not_mixed(made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = experiments.experiment(design(tmp_path), path)
    monkeypatch.setattr(experiments, "versions", lambda: {"torch": "9"})
    assert experiments.experiment(design(tmp_path), path) == first  # a complete file may be read
    path.write_text("".join(f"{line}\n" for line in lines(path)[:-1]))
    with pytest.raises(ValueError, match="was made with other versions"):
        experiments.experiment(design(tmp_path), path)


@pytest.mark.parametrize("key", ["held_out", "scored"])
@pytest.mark.usefixtures("made")
def test_no_more_chats_are_judged_than_there_are(tmp_path: Path, key: str) -> None:
    experiments.experiment(design(tmp_path, **{key: 200}), tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="asks for more than the 200 chats of the validation split"):
        experiments.experiment(design(tmp_path, **{key: 201}), tmp_path / "other.jsonl")


def killed(run: PairedRunConfig, command: str) -> dict[str, Any]:
    if run.seed:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that runs out of memory
    return {**provenance(command, [0]), "config": run.model_dump(mode="json"), "scores": {"loss": 1.0}}


@pytest.mark.slow
def test_a_killed_run_is_named_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experiments, "_quiet_run", killed)
    with pytest.raises(SetupError, match=r"The run dora-r2-.*-seed1 was killed, most likely for want of memory"):
        experiments.experiment(design(tmp_path, arms=FIXED), tmp_path / "runs.jsonl")
    assert [*read_runs(tmp_path / "runs.jsonl")] == ["dora-r2-alpha4-rate0.001-seed0"]


def test_a_record_that_was_written_meanwhile_is_kept(
    made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inner, path = experiments._run_all, tmp_path / "runs.jsonl"

    def with_another(runs: list[PairedRunConfig], command: str, jobs: int) -> Runs:
        for run, record in inner(runs, command, jobs):
            path.write_text(json.dumps(record | {"date": "theirs"}) + "\n")
            yield run, record

    monkeypatch.setattr(experiments, "_run_all", with_another)
    with pytest.raises(ValueError, match="another experiment writes"):
        experiments.experiment(design(tmp_path), path)
    assert [json.loads(line)["date"] for line in lines(path)] == ["theirs"]


def test_the_command_plans_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--file", str(tmp_path / "none.jsonl")]) == 0
    assert "smallest that this design detects" in capsys.readouterr().out
    assert not (tmp_path / "none.jsonl").exists()
    (tmp_path / "file").touch()
    (tmp_path / "design.yaml").write_text((DESIGNS / "control.yaml").read_text())
    (tmp_path / "set.jsonl").write_text('{"messages": []}\n')
    for arguments, message in [
        (["--design", str(tmp_path / "none.yaml"), "--file", str(tmp_path / "none.jsonl")], "There is no design"),
        (["--jobs", "0", "--file", str(tmp_path / "none.jsonl")], "jobs is 0"),
        (["--file", str(tmp_path / "file" / "inside")], "file: File exists"),
        (["--plan", "--design", str(tmp_path / "design.yaml")], "Pass --file, a place for these runs"),
        (["--plan", "--base", "some/llama"], "Pass --file, a place for these runs"),
        (["--plan", "--file", str(tmp_path / "set.jsonl")], "line 1 of set.jsonl does not say its command"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


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
    assert main(["--design", str(path), "--file", str(tmp_path / "runs.jsonl"), "--jobs", "2"]) == 0
    assert "2 runs to compare" in capsys.readouterr().out
    runs = read_runs(tmp_path / "runs.jsonl")
    assert sorted(runs) == [f"dora-r2-alpha4-rate0.001-seed{s}" for s in (0, 1)]
    record = runs["dora-r2-alpha4-rate0.001-seed1"]
    assert all(record[key] for key in PROVENANCE)
    assert str(path) in record["command"]
    assert record["config"]["target_modules"] == ["q_proj"]
    assert len(record["losses"]) == 1
    for split, entry in [("validation", "validation"), ("test", "scores")]:
        assert record[entry]["loss"] == pytest.approx(sum(record["item_losses"][split]) / 2, abs=1e-3)
    assert record["item_losses"]["validation"] != record["item_losses"]["test"]
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 100e6


def test_matched_lora_trains_as_many_numbers_as_dora_and_its_ranks_are_spread(bundled: tuple[Any, Any]) -> None:
    model = bundled[0]
    names = matching_linears(model, ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])
    layers = {name: model.get_submodule(name) for name in names}
    ranks = matched_ranks(model, names, 4)
    prices = {name: layer.in_features + layer.out_features for name, layer in layers.items()}
    trained = sum(ranks[name] * price for name, price in prices.items())
    dora = sum(4 * prices[name] + layer.out_features for name, layer in layers.items())
    assert 0 <= dora - trained < 0.003 * dora
    assert {*ranks.values()} == {4, 5}
    raised = Counter(name.split(".")[-1] for name in names if ranks[name] == 5)
    assert raised == dict.fromkeys(["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"], 13)
    halves = [sum(ranks[name] - 4 for name in part) for part in (names[:75], names[75:])]
    assert abs(halves[0] - halves[1]) <= 5


@pytest.mark.parametrize(
    ("method", "trained"), [("lora", 768), ("lora_matched", 896), ("qdora", 960), ("full", None), ("qbase", 0)]
)
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
    assert len(record["right"]) == len(record["persona"]) == 2
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


def test_a_magnitude_can_start_as_that_of_the_full_weights(tiny_base: Path) -> None:
    model, _ = load_base(tiny_base, four_bit=True)
    paired_run._add_adapters(model, config(tiny_base, "qdora", full_magnitude=True))
    full, _ = load_base(tiny_base)
    for name, layer in adapted_layers(model).items():
        norms = full.get_submodule(name).weight.norm(dim=1)
        torch.testing.assert_close(layer.magnitude.detach(), norms)
        assert not torch.equal(norms, layer.weight_norm())


def test_magnitudes_step_as_far_as_their_rate_says(tiny_base: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    moved, trained, lora_B = {}, {}, {}
    for factor in (0, 1, 4):
        model, tokenizer = load_base(tiny_base)
        start = model.get_submodule(name).weight.norm(dim=1)
        run = paired_run._train(model, tokenizer, config(tiny_base, steps=1, magnitude_rate=factor), [])
        layer = model.get_submodule(name)
        moved[factor], trained[factor] = layer.magnitude.detach() - start, run["trained_parameters"]
        lora_B[factor] = layer.lora_B.detach()
    assert trained[1] - trained[0] == 3 * 64 and trained[4] == trained[1]
    assert moved[0].abs().max() == 0 < moved[1].abs().min()
    torch.testing.assert_close(moved[4], 4 * moved[1], rtol=1e-3, atol=1e-6)
    assert torch.equal(lora_B[4], lora_B[1])


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


@pytest.mark.parametrize("path", sorted((DATA / "records").glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_recorded_runs_are_those_of_their_design(path: Path) -> None:
    """Some may be missing yet; none is another's, and none diverged."""
    runs = read_runs(path)
    assert {*runs} <= {run.name for run in read_design(DESIGNS / f"{path.stem}.yaml").runs}
    assert all(math.isfinite(run["scores"]["loss"]) for run in runs.values())
