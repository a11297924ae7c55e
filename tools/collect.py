"""Collect a class's results: one row per submitted notebook, one column per exercise, read from the checks' outputs.

    python -m tools.collect submissions results.csv

Reads every .ipynb file below the folder and runs none. A cell of the table is `correct`, `wrong`, `not yet`, `not run`
(the check printed nothing), `missing` (the check was deleted), or empty where the exercise belongs to another lesson.
The column `problem` names files that are not notebooks or not of this course.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from tools import notebooks

VERDICTS = ("correct", "wrong", "not yet")
CHECK = re.compile(r"\bchecks\.(\w+)\(my_\1\)")  # not the cell's id, which Colab does not keep


def exercises() -> list[list[str]]:
    """The names of the exercises, lesson by lesson, in the order of the course."""
    return [[*printed_lines(notebooks.read(path))] for path in notebooks.lessons()]


def printed_lines(notebook: Any) -> dict[str, str]:
    """The line that each check in the notebook printed, by exercise; empty where it printed none.

    Several checks in one cell print their lines in order.
    """
    lines: dict[str, str] = {}
    for cell in notebook.cells:
        names = CHECK.findall(re.sub("#.*", "", cell.source)) if cell.cell_type == "code" else []
        if names:
            printed = "".join(output.get("text", "") for output in cell.outputs).splitlines()
            verdicts = [line for line in printed if line.split(":")[0] in VERDICTS][-len(names) :]
            for name, line in itertools.zip_longest(names, verdicts, fillvalue=""):  # a cell that raised lacks lines
                lines[name] = line or lines.get(name, "")  # a copy of a check that did not run changes nothing
    return lines


def read(path: Path, lessons: list[list[str]]) -> tuple[dict[str, str], list[str]]:
    """One row of the table, and the lines that checks printed for wrong answers.

    Args:
        path: a submitted notebook.
        lessons: the names of the exercises, lesson by lesson.
    """
    try:
        lines = printed_lines(notebooks.read(path))
    except Exception as error:  # whatever a broken file does, the rest of the class is still read
        return {"problem": f"not a notebook ({type(error).__name__})"}, []
    # The notebook counts as the lesson with which it shares most exercises.
    lesson = max(lessons, key=lambda names: len(set(names) & set(lines)))
    if not set(lesson) & set(lines):
        return {"problem": "no check of this course in it"}, []
    row = {name: lines[name].split(":")[0] or "not run" if name in lines else "missing" for name in lesson}
    return row, [f"{name}: {lines[name]}" for name in lesson if row[name] == "wrong"]


def collect(folder: Path) -> tuple[pd.DataFrame, Counter[str]]:
    """The table of a class, and how often each wrong answer was given.

    Args:
        folder: holds the submissions, at any depth.

    Raises:
        SystemExit: there is no notebook in the folder.
    """
    files = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not files:
        raise SystemExit(f"{folder} holds no .ipynb file: give the folder of the submitted notebooks.")
    lessons, rows, wrong = exercises(), [], Counter[str]()
    for path in files:
        row, wrong_lines = read(path, lessons)
        rows.append({"file": path.relative_to(folder).as_posix()} | row)
        wrong.update(wrong_lines)
    columns = ["file", *(name for names in lessons for name in names), "problem"]
    table = pd.DataFrame(rows, columns=columns).dropna(axis="columns", how="all").fillna("")
    table.insert(1, "done", (table == "correct").sum(axis=1))
    return table, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    arguments = parser.parse_args()
    table, wrong = collect(arguments.folder)
    print(table.to_string(index=False))
    print("\n".join(f"{count} x {line}" for line, count in wrong.most_common()))
    table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
