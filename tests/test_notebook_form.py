"""Every lesson keeps the course's form, and the form names what a notebook does otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat.v4 as nbf
import pytest

from tests import form
from tools import notebooks

URL = notebooks.repository()


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_lesson_keeps_the_form(path: Path) -> None:
    assert form.problems(path, notebooks.read(path), URL) == []


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_lesson_is_stored_in_its_one_stable_form(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == notebooks.text(notebooks.clean(notebooks.read(path)))


# A small lesson that keeps the form, and what breaks it.

PATH = Path("00_small.ipynb")
OBJECTIVES = "- say what a sound lesson looks like\n- tell it from an unsound one"
FOLDED = "\n".join(f"<details><summary>{fold}</summary>\n\nwords\n\n</details>" for fold in ("Nudge", "Outline"))


def small_lesson() -> Any:
    def code(name: str, source: str, *outputs: Any, tags: tuple[str, ...] = (), **metadata: Any) -> Any:
        cell = nbf.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} | metadata)
        cell.id = name
        return cell

    def markdown(name: str, source: str) -> Any:
        cell = nbf.new_markdown_cell(source)
        cell.id = name
        return cell

    def printed(text: str) -> Any:
        return nbf.new_output("stream", name="stdout", text=text)

    figure = nbf.new_output(
        "display_data",
        data={"text/html": f'<img alt="{"a line that rises " * 3}" src="data:image/png;base64,AAAA">'},
    )
    title = (
        f"# 00 Small\n\n{notebooks.badge(URL, PATH.name)}\n\n"
        "**10 minutes.** Run All takes 1 minute on two CPU cores; not timed on a T4 yet.\n\n"
        f"**You need:** nothing.\n\n**After this lesson you can**\n\n{OBJECTIVES}"
    )
    solution = "<details><summary>Solution</summary>\n\n```python\ndef my_one():\n    return 1\n```\n\n</details>"
    cells = [
        markdown("title", title),
        code("setup", notebooks.setup_cell(URL), printed("Ready.\n"), tags=("setup",)),
        markdown("one", "## One (core)\n\n" + "plain words " * 350 + "\n\n**Predict:** what follows?"),
        code("figure", "show()", figure, printed("It rises from 1 to 2.\n")),
        code("try-one", "def my_one():\n    raise NotImplementedError", tags=("exercise",)),
        code("check-one", "one = checks.one(my_one)", printed("not yet: it is to be written.\n"), tags=("check",)),
        markdown("help-one", f"{FOLDED}\n{solution}"),
        code("clock", "print(now())", printed("12:00\n"), tags=("nbval-ignore-output",), why_ignored="A clock."),
        code("clock-holds", "assert now()"),
        *[markdown(f"more-{n}", "More.") for n in range(5)],
        markdown("further", "## If this was hard\n\nRead on.\n\n## Go further\n\nGo."),
        markdown("done", f"## What you can do now\n\n{OBJECTIVES}"),
    ]
    return notebooks.clean(nbf.new_notebook(cells=cells))


def test_the_small_lesson_keeps_the_form() -> None:
    assert form.problems(PATH, small_lesson(), URL) == []


def cell(notebook: Any, name: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == name)


def replace(name: str, old: str, new: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        target = cell(notebook, name)
        assert old in target.source
        target.source = target.source.replace(old, new)

    return change


def put_output(name: str, text: str, stream: str = "stdout") -> Callable[[Any], None]:
    return lambda notebook: cell(notebook, name).outputs.append(nbf.new_output("stream", name=stream, text=text))


def set_attribute(name: str, attribute: str, value: Any) -> Callable[[Any], None]:
    return lambda notebook: setattr(cell(notebook, name), attribute, value)


def drop(name: str) -> Callable[[Any], None]:
    return lambda notebook: notebook.cells.remove(cell(notebook, name))


def bare_png(notebook: Any) -> None:
    cell(notebook, "figure").outputs.append(nbf.new_output("display_data", data={"image/png": "AAAA"}))


def short_alt(notebook: Any) -> None:
    cell(notebook, "figure").outputs[0].data["text/html"] = '<img alt="plot" src="">'


def silent_figure(notebook: Any) -> None:
    cell(notebook, "figure").outputs.pop()


def error_output(notebook: Any) -> None:
    cell(notebook, "clock").outputs.append(nbf.new_output("error", ename="E", evalue="e", traceback=[]))


def lengthen(notebook: Any) -> None:
    for each in notebook.cells:
        if each.cell_type == "code":
            each.source += "\n" * 8 + "pass"


BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (error_output, "error among"),
    (put_output("clock", "careful\n", "stderr"), "stderr"),
    (put_output("clock", "saved in /home/me/x\n"), "path of the machine"),
    (put_output("clock", "FutureWarning: soon\n"), "a warning"),
    (put_output("clock", " 40%|####      | 4/10\n"), "progress bar"),
    (put_output("clock", "the two agree: False\nand more\n"), "a proof that failed"),
    (bare_png, "without alternative text"),
    (short_alt, "says too little"),
    (silent_figure, "printed sentence"),
    (replace("clock-holds", "assert now()", "assert now()\n" * 25 + "now()"), "26 lines of code"),
    (lengthen, "the median code cell has 9"),
    (replace("one", "plain words " * 350, ""), "words"),
    (replace("one", "plain words", "plain words " * 10), "words"),
    (lambda notebook: notebook.cells.extend(nbf.new_markdown_cell("More.") for _ in range(50)), "cells;"),
    (replace("done", "tell it", "know it"), "objectives"),
    (replace("title", "10 minutes", "some time"), "minutes"),
    (replace("title", "**You need:**", "Needs"), "You need"),
    (replace("further", "## Go further", "Go"), "Go further"),
    (replace("further", "## If this was hard", "If"), "If this was hard"),
    (replace("one", "(core)", ""), "core"),
    (replace("one", "**Predict:**", ""), "predict"),
    (replace("title", "dora-lesson/", "somebody/"), "badge"),
    (replace("title", "# 00", "# 01"), "title does not begin"),
    (replace("setup", "start_lesson", "begin"), "set-up cell"),
    (replace("try-one", "raise NotImplementedError", "return 1"), "stub"),
    (drop("check-one"), "check does not stand"),
    (put_output("check-one", "and more\n"), "one line"),
    (set_attribute("check-one", "outputs", []), "one line"),
    (replace("help-one", "Outline", "Hint"), "three folds"),
    (replace("help-one", "my_one", "one"), "solution does not define"),
    (lambda notebook: cell(notebook, "clock").metadata.pop("why_ignored"), "without a reason"),
    (replace("clock-holds", "assert now()", "now()"), "asserts what must hold"),
    (replace("one", "plain words", "simply words"), "'simply' in the prose"),
    (replace("more-1", "More.", "More \U0001f680"), "in the prose"),
]


@pytest.mark.parametrize(("break_it", "says"), BROKEN, ids=[says.replace(" ", "-") for _, says in BROKEN])
def test_each_departure_from_the_form_is_named(break_it: Callable[[Any], None], says: str) -> None:
    notebook = copy.deepcopy(small_lesson())
    break_it(notebook)
    problems = form.problems(PATH, notebook, URL)
    assert any(says in problem for problem in problems), problems
