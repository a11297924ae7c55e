"""Cleaning and stamping lessons: stable, idempotent, and from one place."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as nbf
import pytest

from tests.conftest import ROOT
from tools import notebooks


def untidy() -> Any:
    view = {"model_id": "0123456789abcdef", "version_major": 2, "version_minor": 0}
    outputs = [
        nbf.new_output("stream", name="stdout", text="a\n"),
        nbf.new_output("stream", name="stdout", text="b\n"),
        nbf.new_output("stream", name="stderr", text="c\n"),
        nbf.new_output(
            "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": " 0%|  | 0/3"}
        ),
        nbf.new_output("execute_result", data={"application/vnd.jupyter.widget-view+json": view}, execution_count=7),
    ]
    code = nbf.new_code_cell("x = 1\n\n", outputs=outputs, execution_count=7, metadata={"collapsed": True, "tags": []})
    code.id = "code"
    return nbf.new_notebook(
        cells=[code], metadata={"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.12.1"}}
    )


def test_clean_leaves_one_stable_form() -> None:
    once = notebooks.clean(untidy())
    cell = once.cells[0]
    assert once.metadata == notebooks.METADATA
    assert (cell.source, cell.metadata, cell.execution_count) == ("x = 1", {}, 1)
    assert [output.get("text") for output in cell.outputs] == ["a\nb\n", "c\n", None]
    other = untidy()
    other.cells[0].outputs[-1].data["application/vnd.jupyter.widget-view+json"]["model_id"] = "fedcba"
    assert notebooks.text(notebooks.clean(other)) == notebooks.text(once)
    assert notebooks.text(notebooks.clean(once)) == notebooks.text(once)


def test_a_line_that_the_kernel_sends_in_pieces_is_one_output() -> None:
    """print writes a text and its line end apart, and the kernel may send what it has between them."""
    pieces = "import time\nprint('a', end='', flush=True)\ntime.sleep(1)\nprint()"
    done = notebooks.execute(nbf.new_notebook(cells=[nbf.new_markdown_cell("words"), nbf.new_code_cell(pieces)]))
    assert [output.text for output in done.cells[1].outputs] == ["a\n"]


def test_clean_gives_ids_to_cells_without_one() -> None:
    notebook = nbf.new_notebook(cells=[nbf.new_markdown_cell("words"), *untidy().cells, nbf.new_code_cell("y")])
    notebook.cells[0].id = "cell-1"
    del notebook.cells[1]["id"], notebook.cells[2]["id"]
    once = notebooks.clean(notebook)
    assert [cell.id for cell in once.cells] == ["cell-1", "cell-2", "cell-3"]
    assert once.cells[1].outputs[-1].data["application/vnd.jupyter.widget-view+json"]["model_id"]
    nbformat.validate(once)


def submitted(path: Path, *sources: str, minor: int = 5) -> Path:
    notebook = nbf.new_notebook(cells=[nbf.new_code_cell(source) for source in sources])
    for cell in notebook.cells if minor < 5 else []:
        del cell["id"]
    notebook.nbformat_minor = minor
    path.parent.mkdir()
    path.write_text(json.dumps(notebook))
    return path


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["notebooks", *map(str, arguments)])
    try:
        notebooks.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_one_broken_submission_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "PICTURE", tmp_path / "picture.png")
    broken = submitted(tmp_path / "ada" / "01.ipynb")
    broken.write_text("[]")
    raises = submitted(tmp_path / "ben" / "01.ipynb", "print('a')", "1 / 0", "print('b')")
    good = submitted(tmp_path / "eve" / "01.ipynb", "print('c')", minor=0)
    assert run_command(monkeypatch, "run", broken, raises, good) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"run: {broken} stays unchanged (") and broken.read_text() == "[]"
    name = notebooks.read(raises).cells[1].id
    assert lines[1:] == [f"run: {raises}; {name} raised ZeroDivisionError: division by zero", f"run: {good}"]
    outputs = [cell.outputs[0] for cell in notebooks.read(raises).cells]
    assert [output.get("text") for output in outputs] == ["a\n", None, "b\n"]
    assert notebooks.read(good).cells[0].outputs[0].text == "c\n"
    assert not notebooks.PICTURE.exists()  # which belongs to the course's own lesson


def test_the_picture_is_renewed_with_its_lesson(
    fork: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "PICTURE", fork / "picture.png")
    assert run_command(monkeypatch, "clean", fork / "notebooks" / "00_start_here.ipynb") == 0
    assert not notebooks.PICTURE.exists()
    monkeypatch.chdir(fork)
    assert run_command(monkeypatch, "clean", f"notebooks/{notebooks.PICTURED}") == 0
    assert notebooks.PICTURE.read_bytes() == notebooks.picture()


@pytest.fixture
def fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the lessons and the README, which the tools take for the repository."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name in ["README.md", "pyproject.toml"]:
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def test_the_committed_lessons_are_stamped(fork: Path) -> None:
    assert notebooks.stamp(notebooks.repository()) == []


def test_a_fork_is_restamped_everywhere_from_one_place(fork: Path) -> None:
    changed = notebooks.stamp("https://github.com/someone/my-dora")
    assert len(changed) == len(notebooks.lessons()) + 1
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert "github/someone/my-dora/blob" in text
        assert "dora-lesson/" not in text
    assert all("git+https://github.com/someone/my-dora" in path.read_text() for path in notebooks.lessons())
    assert notebooks.stamp("https://github.com/someone/my-dora") == []
    notebooks.stamp(notebooks.repository(ROOT / "pyproject.toml"))
    for path in notebooks.lessons():
        assert path.read_text(encoding="utf-8") == (ROOT / "notebooks" / path.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("url", ["", "https://example.org/x/y", "https://github.com/only-owner", "not a url"])
def test_a_bad_address_is_refused_in_one_sentence(tmp_path: Path, url: str) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(f'[project.urls]\nRepository = "{url}"\n' if url else "[project]\n")
    with pytest.raises(SystemExit, match=r"set .project.urls. Repository to https://github.com/OWNER/REPO"):
        notebooks.repository(pyproject)


def test_the_readmes_picture_is_the_lessons_figure() -> None:
    assert notebooks.PICTURE.read_bytes() == notebooks.picture()
