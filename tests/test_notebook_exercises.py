"""Folded solutions, put into their stubs by machine, pass; what a lesson writes by hand is what the package ships."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dora_lesson import DoRALinear, checks, load_base
from tests import form
from tests.parity import Case, outputs_and_gradients, relative_error, twins
from tests.test_adapters import small_llama
from tools import notebooks
from tools.lift import lift


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_solutions_pass_their_checks_and_the_lesson_goes_on_with_them_offline(
    path: Path, kernels_offline: Path
) -> None:
    notebook = form.shortened(notebooks.read(path))
    cells = {cell.id: cell for cell in notebook.cells}
    names = [name.removeprefix("try-") for name in cells if name.startswith("try-")]
    for name in names:
        cells[f"try-{name}"].source = form.solution(cells[f"help-{name}"])
        cells[f"check-{name}"].source += f"\nassert {name} is my_{name}"
    notebooks.execute(notebook)  # raises where a cell does
    assert kernels_offline.exists(), "the kernel ran without the hook that forbids connections"
    for name in names:
        said = cells[f"check-{name}"].outputs[0].text
        assert said.startswith("correct: "), f"{name}: {said}"
        assert said.count("\n") == 1


@pytest.fixture
def small_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of random weights that the lessons take for their base, by `DORA_LESSON_BASE`."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    small_llama(vocab_size=49152, num_hidden_layers=3, **shape).save_pretrained(tmp_path)
    load_base()[1].save_pretrained(tmp_path)
    monkeypatch.setenv("DORA_LESSON_BASE", str(tmp_path))
    return tmp_path


def said_by_cells(notebook: Any) -> dict[str, str]:
    return {cell.id: "".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells if "outputs" in cell}


def test_lesson_05_runs_on_another_llama(small_base: Path) -> None:
    """On the GPU if there is one: no cell may count on the bundled model's size."""
    path = next(path for path in notebooks.lessons() if path.stem.startswith("05"))
    said = said_by_cells(notebooks.execute(form.shortened(notebooks.read(path))))
    assert said["choose"].startswith(f"{small_base}, in 4 bits")
    assert "over 4 bits, 38,016 trained" in said["peft-config"]
    assert "not in the optimizer" in said["silent-run"]


@pytest.mark.usefixtures("small_base")
def test_the_capstone_of_lesson_07_runs_once_it_is_filled_in() -> None:
    path = next(path for path in notebooks.lessons() if path.stem.startswith("07"))
    notebook = notebooks.read(path)
    cells = {cell.id: cell for cell in notebook.cells}
    for name, before, filled in [
        ("items", "[persona_item()]", "[{**item} for item in load_task_api('train')][:40]"),
        ("capstone-run", "steps=60", "steps=1"),
        ("capstone-compare", "SEEDS = []", "SEEDS = [0, 1]"),
        ("capstone-compare", "[1e-3, 2e-3, 4e-3], [100, 101, 102]", "[1e-3, 2e-3], [100]"),
    ]:
        assert before in cells[name].source
        cells[name].source = cells[name].source.replace(before, filled)
    said = said_by_cells(notebooks.execute(notebook))
    assert "40 read back" in said["items"]
    assert "lora: tuned to 0.00" in said["capstone-compare"]
    assert "persona consistency: LoRA" in said["capstone-compare"]
    assert "time: DoRA took" in said["capstone-compare"]


def test_every_check_belongs_to_an_exercise() -> None:
    tried = {cell.id for path in notebooks.lessons() for cell in notebooks.read(path).cells}
    assert {f"try-{name}" for name in checks.__all__} <= tried


@pytest.mark.parametrize("bias", [True, False])
def test_the_plain_layer_of_lesson_03_is_the_packages_layer(bias: bool) -> None:
    PlainDoRA = lift("03_dora_by_hand", "plain-layer")["PlainDoRA"]
    ours, _, x, dy = twins(Case(d_out=24, d_in=16, r=4, bias=bias))
    assert isinstance(ours, DoRALinear)
    plain = PlainDoRA(copy.deepcopy(ours.base), ours.r, ours.lora_alpha)
    names = {"A": "lora_A", "B": "lora_B", "m": "magnitude"}
    with torch.no_grad():
        for mine, theirs in names.items():
            getattr(plain, mine).copy_(getattr(ours, theirs))
    expected = outputs_and_gradients(ours, x, dy)
    again = x.clone().requires_grad_()
    y = plain(again)
    gradients = torch.autograd.grad(y, [again, plain.A, plain.B, plain.m], dy)
    got = dict(zip(["y", "dx", "dlora_A", "dlora_B", "dmagnitude"], [y, *gradients], strict=True))
    for name, value in expected.items():
        assert relative_error(got[name], value) < 1e-12, name
