"""One table from a class's notebooks, whatever state they come in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as nbf
import pandas as pd
import pytest

from tools import collect, notebooks

LESSON_01 = ["decompose", "recompose", "magnitude_change", "direction_change"]
AXIS = "wrong: m holds the lengths of the columns (dim=0); take the norm over dim=1, along each row.\n"


def print_in_check(notebook: Any, name: str, text: str) -> None:
    cell = next(cell for cell in notebook.cells if cell.id == f"check-{name}")
    cell.outputs = [nbf.new_output("stream", name="stdout", text=text)] if text else []


def half_done() -> Any:
    """Lesson 01 as it may come back: one right, one wrong, one not run, one check cell deleted."""
    notebook = notebooks.read(notebooks.NOTEBOOKS / "01_magnitude_and_direction.ipynb")
    print_in_check(notebook, "decompose", AXIS)
    print_in_check(notebook, "recompose", "correct: row i is m[i] times row i of V, whatever the shape.\n")
    print_in_check(notebook, "magnitude_change", "")
    notebook.cells = [cell for cell in notebook.cells if cell.id != "check-direction_change"]
    return notebook


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    for name in ("ada", "ben/again", "ben/.ipynb_checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    nbformat.write(half_done(), tmp_path / "ada" / "lesson one.ipynb")
    nbformat.write(half_done(), tmp_path / "ben" / ".ipynb_checkpoints" / "01.ipynb")  # Jupyter's own copy
    nbformat.write(half_done(), tmp_path / "ben" / "again" / "01.ipynb")
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    (tmp_path / "list.ipynb").write_text("[]")
    nbformat.write(nbf.new_notebook(cells=[nbf.new_code_cell("1 + 1")]), tmp_path / "other.ipynb")
    return tmp_path


def test_a_class_becomes_one_table(submissions: Path) -> None:
    table, wrong = collect.collect(submissions)
    assert list(table.columns) == ["file", "done", *LESSON_01, "problem"]
    rows = table.set_index("file").to_dict("index")
    assert list(rows) == ["ada/lesson one.ipynb", "ben/again/01.ipynb", "broken.ipynb", "list.ipynb", "other.ipynb"]
    expected = ["wrong", "correct", "not run", "missing"]
    assert [rows["ada/lesson one.ipynb"][name] for name in LESSON_01] == expected
    assert rows["ada/lesson one.ipynb"]["done"] == 1 and rows["ada/lesson one.ipynb"]["problem"] == ""
    assert rows["broken.ipynb"]["problem"].startswith("not a notebook")
    assert rows["list.ipynb"]["problem"].startswith("not a notebook")
    assert rows["other.ipynb"]["problem"] == "no check of this course in it"
    assert rows["broken.ipynb"]["done"] == 0
    assert wrong == {f"decompose: {AXIS.strip()}": 2}


def test_every_exercise_of_an_untouched_lesson_is_not_yet() -> None:
    lessons = collect.exercises()
    for path, names in zip(notebooks.lessons(), lessons, strict=True):
        assert names, f"{path.name} has no exercise that can be collected"
        assert collect.read(path, lessons) == (dict.fromkeys(names, "not yet"), [])


def test_a_notebook_without_ids_is_read(tmp_path: Path) -> None:
    notebook = half_done()
    for cell in notebook.cells:
        del cell["id"]
    notebook.nbformat_minor = 0
    nbformat.write(notebook, tmp_path / "colab.ipynb")
    row, _ = collect.read(tmp_path / "colab.ipynb", collect.exercises())
    assert row == dict(zip(LESSON_01, ["wrong", "correct", "not run", "missing"], strict=True))


@pytest.mark.parametrize(
    ("source", "printed", "verdicts"),
    [
        ("checks.decompose(my_decompose)\nchecks.recompose(my_recompose)", "wrong: x\ncorrect: y\n", "wrong correct"),
        ("checks.recompose(my_recompose); checks.decompose(my_decompose)", "wrong: x\ncorrect: y\n", "correct wrong"),
        ("checks.decompose(my_decompose)\n1 / 0\nchecks.recompose(my_recompose)", "correct: x\n", "correct not-run"),
        ("checks.decompose(my_decompose)\nchecks.recompose(my_recompose)", "", "not-run not-run"),
        ("# checks.decompose(my_decompose)\nchecks.recompose(my_recompose)", "correct: x\n", "missing correct"),
        ("print('...')\nchecks.decompose(my_decompose)", "not yet: mine\nwrong: x\n", "wrong missing"),
    ],
)
def test_each_check_in_a_cell_has_its_own_verdict(source: str, printed: str, verdicts: str) -> None:
    cell = nbf.new_code_cell(source, outputs=[nbf.new_output("stream", name="stdout", text=printed)])
    lines = collect.printed_lines(nbf.new_notebook(cells=[cell]))
    states = [lines[name].split(":")[0] or "not-run" if name in lines else "missing" for name in LESSON_01[:2]]
    assert " ".join(states) == verdicts


def test_a_copy_of_a_check_that_did_not_run_changes_nothing() -> None:
    done = nbf.new_code_cell(
        "checks.decompose(my_decompose)", outputs=[nbf.new_output("stream", name="stdout", text="correct: x\n")]
    )
    copied = nbf.new_code_cell("checks.decompose(my_decompose)")
    assert collect.printed_lines(nbf.new_notebook(cells=[done, copied])) == {"decompose": "correct: x"}
    assert collect.printed_lines(nbf.new_notebook(cells=[copied])) == {"decompose": ""}


def test_the_command_prints_the_table_and_writes_it(
    submissions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "results.csv"
    monkeypatch.setattr(sys, "argv", ["collect", str(submissions), str(csv)])
    collect.main()
    printed = capsys.readouterr().out
    assert "ada/lesson one.ipynb" in printed and f"2 x decompose: {AXIS.strip()}" in printed
    assert pd.read_csv(csv, keep_default_na=False)["recompose"].tolist() == ["correct", "correct", "", "", ""]


def test_a_folder_without_notebooks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no \.ipynb file: give the folder"):
        collect.collect(tmp_path / "nowhere")
