"""The pages around the lessons are true: links, versions, minutes, what checks say, and the workflow's commands."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dora_lesson
from dora_lesson import checks
from tests.conftest import ROOT
from tools import notebooks

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/instructors.md", "docs/glossary.md", "data/README.md"]
INSTRUCTORS = (ROOT / "docs/instructors.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Words, lines and printed words a minute, and minutes an exercise; docs/instructors.md explains them.
WORDS, LINES, PRINTED, EXERCISE, PASTED, OPENED = 150, 12, 300, 5, 1, 1
EXPRESS = ("01", "03", "04", "05")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    here = [link.split("#")[0] for link in links if not re.match(r"https?://|#|mailto:", link)]
    assert [link for link in here if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_term_of_the_glossary_stands_once_and_in_the_lesson_that_it_names() -> None:
    entries = re.split(r"^## ", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    terms = [entry.splitlines()[0] for entry in entries]
    assert terms == sorted({*terms}, key=str.lower)
    for term, entry in zip(terms, entries, strict=True):
        lessons = re.findall(r"\]\(\.\./notebooks/(\S+)\)", entry)
        assert lessons, term
        for lesson in lessons:
            cells = notebooks.read(ROOT / "notebooks" / lesson).cells
            prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            word = re.escape(term).replace(r"\-", "[- ]?")
            assert re.search(rf"\b{word}", prose, flags=re.I), f"{term} in {lesson}"


def test_the_readme_leads_to_every_page() -> None:
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    others = [*PAGES[1:], "CITATION.cff", "LICENSE", ".github/workflows/lessons.yml", ".github/workflows/site.yml"]
    assert [page for page in others if page not in links] == []


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == dora_lesson.__version__
    assert citation["license"] == "Apache-2.0"
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])
    assert any("2402.09353" in reference["url"] for reference in citation["references"])


def test_the_changelog_has_this_version_and_its_headings() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:]]
    assert all(released), headings
    assert released[0] and released[0][1] == dora_lesson.__version__


def test_a_wheel_holds_all_that_the_lessons_read() -> None:
    """All of `data` but the sources that the Task API set is built from."""
    settings = notebooks.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    data = ROOT / "data"
    patterns = settings["package-data"]["dora_lesson.data"]
    held = {file.relative_to(data) for pattern in patterns for file in data.glob(pattern)}
    there = {file.relative_to(data) for file in data.rglob("*") if file.is_file()}
    expected = {file for file in there if not {"source", "runs"} & {*file.parts}}
    assert expected and expected <= held and not any("source" in file.parts for file in held)


def test_the_workflow_calls_make_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/lessons.yml").read_text(encoding="utf-8"))
    assert {"push", "pull_request", "schedule"} <= set(workflow[True])  # YAML reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make setup", "make test-${{ matrix.part }}"]
    parts = re.findall(r'"(\w+)"', job["strategy"]["matrix"]["part"])
    assert parts == ["all", "package", "lessons", "browser"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [part for part in parts if f"\ntest-{part}: setup" not in makefile] == []


def test_the_workflow_keeps_the_model_until_the_code_that_makes_it_changes() -> None:
    workflow = (ROOT / ".github/workflows/lessons.yml").read_text(encoding="utf-8")
    assert "path: ~/.cache/dora_lesson" in workflow
    hashed = re.findall(r"hashFiles\('(.+?)'\)", workflow)
    assert hashed and all((ROOT / path).is_file() for path in hashed)


def rows(text: str, columns: int) -> list[list[str]]:
    """The rows of a page's tables that have this many columns, without the heads."""
    lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = [place for place, cells in enumerate(lines) if set("".join(cells)) == {"-"}]
    heads = {place + shift for place in rules for shift in (-1, 0)}
    return [cells for place, cells in enumerate(lines) if place not in heads and len(cells) == columns]


MISTAKES = rows(INSTRUCTORS[INSTRUCTORS.index("## What learners get wrong") :], 4)


@pytest.mark.parametrize("row", MISTAKES, ids=[f"{row[2].strip('`')}-{i}" for i, row in enumerate(MISTAKES)])
def test_the_check_of_each_mistake_says_the_words_given(row: list[str]) -> None:
    name, words = row[2].strip("`"), row[3].strip('"')
    lesson = ast.parse(Path(inspect.unwrap(getattr(checks, name)).__code__.co_filename).read_text(encoding="utf-8"))
    assert any(words in str(node.value) for node in ast.walk(lesson) if isinstance(node, ast.Constant))


def test_the_page_for_instructors_covers_what_learners_get_wrong() -> None:
    assert {row[2].strip("`") for row in MISTAKES} == set(checks.__all__)


# Minutes.


def sections(notebook: Any) -> list[tuple[str, Any, str]]:
    """Each piece of the lesson as (heading above it, cell, text), without folded help."""
    heading, sections = "", []
    for cell in notebook.cells:
        pieces = re.split(r"^(?=## )", cell.source, flags=re.M) if cell.cell_type == "markdown" else [cell.source]
        for piece in pieces:
            if cell.cell_type == "markdown" and (named := re.match(r"## (.+)", piece)):
                heading = named[1]
            sections.append((heading, cell, re.sub(r"<details>.*?</details>|<!--.*?-->", "", piece, flags=re.S)))
    return sections


def minutes(pieces: list[tuple[str, Any, str]], exercise: float) -> float:
    """Minutes to read and run these pieces and to do their exercises, at `exercise` minutes each."""
    spent = 0.0
    for _, cell, text in pieces:
        if cell.id.startswith("try-"):
            spent += exercise
        elif cell.cell_type == "markdown":
            spent += len(re.sub(r"\]\([^)]*\)", "", text).split()) / WORDS
        elif not cell.id.startswith(("check-", "setup", "imports")):
            spent += sum(bool(line.strip()) for line in text.splitlines()) / LINES
            spent += sum(len(output.get("text", "").split()) for output in cell.outputs) / PRINTED
    return spent


def stated(path: Path) -> int:
    return int(re.findall(r"\*\*(\d+) minutes\.\*\*", notebooks.read(path).cells[0].source)[0])


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_a_lessons_minutes_follow_from_its_length(path: Path) -> None:
    counted = minutes(sections(notebooks.read(path)), EXERCISE)
    assert abs(stated(path) - counted) <= max(5, 0.15 * counted), (
        f"{path.stem} takes {counted:.0f} minutes by its length"
    )


def test_the_express_path_takes_65_minutes() -> None:
    taken = {}
    for path in notebooks.lessons():
        if path.stem[:2] in EXPRESS:
            core = [piece for piece in sections(notebooks.read(path)) if piece[0].endswith("(core)")]
            taken[path.stem] = OPENED + minutes(core, PASTED)
    assert len(taken) == len(EXPRESS)
    assert 55 <= sum(taken.values()) <= 65, taken


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_the_pages_state_a_lessons_minutes_and_exercises(path: Path) -> None:
    number, notebook = path.stem[:2], notebooks.read(path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (in_readme,) = [row for row in rows(readme, 4) if row[0] == number]
    (here,) = [row for row in rows(INSTRUCTORS, 5) if row[0].startswith(number)]
    exercises = sum("exercise" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert (in_readme[2], here[1], here[4]) == (str(stated(path)), str(stated(path)), str(exercises))
    memory = re.findall(r"about (\d+) GB of memory", notebook.cells[0].source)
    assert [here[3]] == memory


def test_the_instructors_page_explains_the_minutes() -> None:
    counted = f"{WORDS} words of prose a minute, {LINES} lines of code, {PRINTED} words of output"
    assert f"{counted}, {EXERCISE} minutes an exercise" in INSTRUCTORS
