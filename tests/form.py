"""The form that a reader expects of every lesson. `problems` lists where a notebook departs from it."""

from __future__ import annotations

import ast
import html.parser
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import notebooks

# Lesson number: (fewest cells, most, fewest words, most).
SIZES = {"00": (15, 60, 700, 3000)}
DEFAULT_SIZE = (35, 60, 1500, 3000)
MEDIAN_LINES, MOST_LINES = 8, 25  # of a code cell, blank lines among them
MACHINE = re.compile(r"/(home|root|tmp|work|Users|usr|opt|var)/|[A-Z]:\\\\|site-packages|\.venv")
NOISE = re.compile(r"Warning\b|Traceback|\d+%\|")
FAILED = re.compile(r": +False$", flags=re.M)
FOLDS = ["Nudge", "Outline", "Solution"]


def problems(path: Path, notebook: Any, url: str) -> list[str]:
    """One sentence for each departure from the form; an empty list is a pass."""
    rules = [_outputs, _figures, _sizes, _frame, _exercises, _exemptions, _prose]
    departures = [problem for rule in rules for problem in rule(notebook, path.stem[:2])]
    title = notebook.cells[0].source
    if notebooks.badge(url, path.name) not in title.splitlines():
        departures.append("the title cell has no badge, or one that points elsewhere: run `make badges`")
    if not re.match(rf"# {path.stem[:2]} \S", title):
        departures.append(f"the title does not begin with '# {path.stem[:2]} '")
    setups = [cell.source for cell in notebook.cells if "setup" in _tags(cell)]
    if setups != [notebooks.setup_cell(url)]:
        departures.append("there is not exactly one set-up cell as stamped: run `make badges`")
    return departures


def shortened(notebook: Any) -> Any:
    """The lesson with two steps of each training and six short answers; `pytest --nbval` runs it whole."""
    for cell in _code(notebook):
        source = re.sub(r"\bsteps=(\d+)", "steps=2", cell.source)
        source = re.sub(r"\btest\[:\d+\]", "test[:6]", source)
        cell.source = re.sub(r"\banswer\(([^()]*?), label=", r"answer(\1, max_new_tokens=16, label=", source)
    return notebook


def objectives(source: str) -> list[str]:
    return re.findall(r"^- (.+)$", source, flags=re.M)


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _markdown(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def _texts(output: Any) -> Iterator[str]:
    yield output.get("text", "")
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield re.sub(r"base64,[A-Za-z0-9+/=]*", "", data)


def _outputs(notebook: Any, _: str) -> Iterator[str]:
    for cell in _code(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{cell.id}: an error among the outputs"
            if output.get("name") == "stderr":
                yield f"{cell.id}: something on stderr"
            for text in _texts(output):
                if MACHINE.search(text):
                    yield f"{cell.id}: a path of the machine in an output"
                if NOISE.search(text):
                    yield f"{cell.id}: a warning or a progress bar in an output"
                if FAILED.search(text) and "false-is-right" not in _tags(cell):
                    yield f"{cell.id}: a proof that failed; tag the cell false-is-right if the lesson means it"


class _Images(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs).get("alt") or "")


def _figures(notebook: Any, _: str) -> Iterator[str]:
    cells = _code(notebook)
    for position, cell in enumerate(cells):
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                yield f"{cell.id}: a figure without alternative text: show it with plots.show"
            images = _Images()
            images.feed(data.get("text/html", ""))
            if any(len(alt) < 30 for alt in images.alts):
                yield f"{cell.id}: alternative text that says too little"
            printed = [o for c in cells[position : position + 2] for o in c.outputs if o.output_type == "stream"]
            if images.alts and not any(re.search(r"\d", o.text) for o in printed):
                yield f"{cell.id}: a figure without a printed sentence with its numbers"


def words(cell: Any) -> int:
    """How many words a reader sees; the comments that bind numbers to their sources do not count."""
    return len(re.sub(r"<!--.*?-->", "", cell.source, flags=re.S).split())


def _sizes(notebook: Any, number: str) -> Iterator[str]:
    fewest, most, few_words, many_words = SIZES.get(number, DEFAULT_SIZE)
    if not fewest <= len(notebook.cells) <= most:
        yield f"{len(notebook.cells)} cells; {fewest} to {most} are the form"
    written = sum(words(cell) for cell in _markdown(notebook))
    if not few_words <= written <= many_words:
        yield f"{written} words; {few_words} to {many_words} are the form"
    lengths = {cell.id: len(cell.source.splitlines()) for cell in _code(notebook)}
    if statistics.median(lengths.values()) > MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lengths.values())} lines; {MEDIAN_LINES} are the form"
    for name, length in lengths.items():
        if length > MOST_LINES:
            yield f"{name}: {length} lines of code; move some into the package"


def _frame(notebook: Any, _: str) -> Iterator[str]:
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    if not objectives(first) or objectives(first) != objectives(last):
        yield "the objectives at the top are not those at the end"
    if not all(re.match(r"[a-z]+ ", objective) for objective in objectives(first)):
        yield "an objective does not begin with a verb in lower case"
    if not re.search(r"\*\*\d+ minutes\.\*\*.*two CPU cores.*T4", first):
        yield "the minutes, on two CPU cores and on a T4, are not stated at the top"
    for part in ("**You need:**", "**After this lesson you can**"):
        if part not in first:
            yield f"the title cell lacks {part}"
    headings = re.findall(r"^## (.+)$", "\n".join(cell.source for cell in _markdown(notebook)), flags=re.M)
    for part in ("If this was hard", "Go further", "What you can do now"):
        if part not in headings:
            yield f"the section '{part}' is missing"
    if not any(heading.endswith("(core)") for heading in headings):
        yield "no section is marked (core)"
    if not any("**Predict:**" in cell.source for cell in _markdown(notebook)):
        yield "the reader is never asked to predict"


def _exercises(notebook: Any, number: str) -> Iterator[str]:
    cells = notebook.cells
    stubs = [position for position, cell in enumerate(cells) if "exercise" in _tags(cell)]
    fewest, most = (1, 4) if number == "00" else (2, 4)
    if not fewest <= len(stubs) <= most:
        yield f"{len(stubs)} exercises; {fewest} to {most} are the form"
    for position in stubs:
        stub, check, help_ = (cells[position : position + 3] + [None] * 2)[:3]
        name = stub.id.removeprefix("try-")
        if f"def my_{name}(" not in stub.source or not stub.source.rstrip().endswith("raise NotImplementedError"):
            yield f"{stub.id}: the stub does not define my_{name} and end in NotImplementedError"
        if check is None or check.id != f"check-{name}" or f"checks.{name}(my_{name})" not in check.source:
            yield f"{stub.id}: its check does not stand right under it"
        elif [o.text.count("\n") for o in check.outputs] != [1] or not check.outputs[0].text.startswith("not yet: "):
            yield f"{check.id}: the untouched exercise does not say 'not yet' in one line"
        if help_ is None or help_.id != f"help-{name}" or re.findall(r"<summary>(\w+)", help_.source) != FOLDS:
            yield f"{stub.id}: no help in three folds under its check"
        elif f"def my_{name}(" not in solution(help_):
            yield f"{help_.id}: the solution does not define my_{name}"


def solution(help_cell: Any) -> str:
    """The code in the last fold of a help cell."""
    fences = re.findall(r"```python\n(.*?)```", help_cell.source, flags=re.S)
    return fences[-1] if fences else ""


def _exemptions(notebook: Any, _: str) -> Iterator[str]:
    cells = _code(notebook)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if "nbval-ignore-output" not in _tags(cell):
            continue
        if not cell.metadata.get("why_ignored"):
            yield f"{cell.id}: exempt from comparison without a reason"
        if following is None or not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(following.source))):
            yield f"{cell.id}: exempt, and not followed by a cell that asserts what must hold"


def _prose(notebook: Any, _: str) -> Iterator[str]:
    for cell in _markdown(notebook):
        prose = re.sub(
            r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|!\[|<!--.*?-->", "", cell.source, flags=re.S
        )
        if unwanted := re.search("!|\\bsimply\\b|[\U0001f300-\U0001faff\u2600-\u27bf]", prose, flags=re.I):
            yield f"{cell.id}: {unwanted[0]!r} in the prose"
