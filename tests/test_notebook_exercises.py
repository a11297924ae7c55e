"""Folded solutions, put into their stubs by machine, pass; what a lesson writes by hand is what the package ships."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch

from dora_lesson import DoRALinear, checks
from tests import form
from tests.parity import Case, outputs_and_gradients, relative_error, twins
from tools import notebooks
from tools.lift import lift

ALWAYS = ("01",)  # its later cells use what the exercises return, and nothing trains
SOLVED = [
    pytest.param(path, id=path.stem, marks=() if path.stem[:2] in ALWAYS else pytest.mark.nightly)
    for path in notebooks.lessons()
]


def lesson(number: str) -> Any:
    return notebooks.read(next(path for path in notebooks.lessons() if path.stem.startswith(number)))


def imports_and_definitions(source: str) -> CodeType:
    """A cell without what it computes and prints."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    statements: list[ast.stmt] = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    return compile(ast.Module(statements, []), "<cell>", "exec")


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_the_folded_solutions_pass_their_checks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here without the cells between them, of which a solution may use imports and functions alone."""
    namespace: dict[str, Any] = {}
    for cell in notebooks.read(path).cells:
        if cell.id.startswith("help-"):
            name = cell.id.removeprefix("help-")
            exec(form.solution(cell), namespace)
            namespace[name] = getattr(checks, name)(namespace[f"my_{name}"])
            assert capsys.readouterr().out.startswith("correct: ")
            assert namespace[name] is namespace[f"my_{name}"]
        elif cell.cell_type == "code" and not {"setup", "exercise"} & set(cell.metadata.get("tags", [])):
            exec(imports_and_definitions(cell.source), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLVED)
def test_a_solved_lesson_goes_on_offline(path: Path, kernels_offline: Path) -> None:
    notebook = form.shortened(notebooks.read(path))
    cells = {cell.id: cell for cell in notebook.cells}
    names = [name.removeprefix("try-") for name in cells if name.startswith("try-")]
    for name in names:
        cells[f"try-{name}"].source = form.solution(cells[f"help-{name}"])
    notebooks.execute(notebook)  # raises where a cell does
    assert kernels_offline.exists(), "the kernel ran without the hook that forbids connections"
    for name in names:
        (output,) = cells[f"check-{name}"].outputs
        assert output.text.startswith("correct: ") and output.text.count("\n") == 1


@pytest.fixture
def small_base(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of random weights that the lessons take for their base, by `DORA_LESSON_BASE`."""
    monkeypatch.setenv("DORA_LESSON_BASE", str(tiny_base))
    return tiny_base


def printed_by_cells(notebook: Any) -> dict[str, str]:
    return {cell.id: "".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells if "outputs" in cell}


@pytest.mark.nightly
def test_lesson_05_runs_on_another_llama(small_base: Path) -> None:
    """On the GPU if there is one: no cell may count on the bundled model's size."""
    printed = printed_by_cells(notebooks.execute(form.shortened(lesson("05"))))
    assert printed["choose"].startswith(f"{small_base}, in 4 bits")
    assert "over 4 bits, 38,016 trained" in printed["peft-config"]
    assert "not in the optimizer" in printed["silent-run"]


RENAMED = """
def renamed(item):
    return item | {"messages": [m | {"content": m["content"].replace("TaskMaster", "Bo")} for m in item["messages"]]}
"""


@pytest.mark.nightly
def test_the_capstone_of_lesson_07_runs_once_it_is_filled_in() -> None:
    notebook = lesson("07")
    cells = {cell.id: cell for cell in notebook.cells}
    for name, before, filled in [
        ("items", "[persona_item()]", "[renamed(item) for item in load_task_api('train').select(range(30))]"),
        ("items", "written =", RENAMED + "\n\nwritten ="),
        ("capstone-run", "steps=60", "steps=2"),
    ]:
        assert before in cells[name].source
        cells[name].source = cells[name].source.replace(before, filled)
    printed = printed_by_cells(notebooks.execute(notebook))
    boxes = printed["capstone-compare"].splitlines()[-7:]
    assert [line[:3] for line in boxes[:5]] == ["[x]"] * 5 and boxes[6].startswith("[x] merged")
    assert all("% of the rubric" in boxes[i] for i in (3, 5, 6))


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
