"""Find the numbers in a lesson's prose that claim a result without a source. test_numbers.py states the rules."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dora_lesson import load_published

NEAR = 6  # cells between a number and the output that prints it, at most
NUMBER = r"[+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
UNIT = r"%|per cent|°|degrees|[kMG]B\b|seconds\b|s\b|times\b|points?\b|fold\b"
ALIKE = [("%", "per cent"), ("°", "degrees"), ("s", "seconds"), ("point", "points"), ("times", "fold")]
MARK = r"<!--(.*?)-->"
CLAIM = re.compile(
    rf"(?<![\w.])(?<!\w[-–/])({NUMBER})(?!\w|[./,]\w|-(?!fold)\w)"  # a number that is no part of a name: not 8B, 4-bit
    rf"(?:{MARK})?"
    rf"(?=(?:(?: to | and | or |–){NUMBER}(?:{MARK})?)?[ -]?({UNIT}))?"  # in "2 to 3 %" both have the unit
)
# What is not the lesson's own prose: code, folded help, prompts, questions of what will come, mathematics, links.
APART = re.compile(
    r"```.*?```|<details>.*?</details>|^> [^\n]*|^\*\*Predict:\*\*[^\n]*|\$\$.*?\$\$|`[^`]*`|\$[^$\n]*\$|\]\([^)]*\)",
    flags=re.S | re.M,
)
# After these words a number with a point is a name: section 4.1, arXiv 2402.09353, PEFT 0.21, Llama 3.1.
NAMED = re.compile(
    rf"\b(?:[Ss]ections?|[Vv]ersions?|arXiv|Python|PEFT|torch|transformers|Llama|LLaMA) {NUMBER}"
    rf"(?:(?:,| and| to) {NUMBER})*(?!\d|\.\d|{MARK}| ?(?:{UNIT}))"
)


@dataclass(frozen=True)
class Number:
    """A number as it is written."""

    text: str

    @property
    def value(self) -> float:
        return float(self.text.replace(",", "").replace("−", "-"))

    @property
    def decimals(self) -> int:
        return len(self.text.partition(".")[2])

    def says(self, value: float) -> bool:
        """Whether `value`, rounded to the decimals shown, is this number; without a sign, its size is compared."""
        size = value if self.text[0] in "+−-" else abs(value)
        return abs(size - self.value) <= 0.5000001 * 10**-self.decimals

    def repeats(self, other: Number) -> bool:
        """Whether this is `other`, rounded to at most as many decimals and by at most a tenth of it."""
        close = abs(abs(other.value) - abs(self.value)) <= 0.1 * abs(self.value)
        return self.decimals <= other.decimals and close and self.says(other.value)


def problems(notebook: Any, exempt: dict[str, str]) -> list[str]:
    """Claims neither printed nearby nor bound, claims bound to another value, and exemptions that nothing needs."""
    reported, unused = [], set(exempt)
    printed = [(place, text) for place, cell in enumerate(notebook.cells) for text in _outputs(cell)]
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown" or place == 0:  # the title cell holds minutes and what the lesson asks for
            continue
        near = [text for position, text in printed if abs(position - place) <= NEAR]
        prose = NAMED.sub(" ", APART.sub(" ", cell.source))
        for claim in CLAIM.finditer(prose):
            text, mark, _, unit = claim.groups()
            key = f"{cell.id}: {text}"
            if mark is not None:
                reported += [f"{cell.id}: {problem}" for problem in _unbound(Number(text), mark)]
            elif not unit and not re.search(r"[+−.,-]", text):
                continue
            elif key in exempt:
                unused.discard(key)
            elif not any(_prints(output, Number(text), unit) for output in near):
                words = " ".join(prose[max(0, claim.start() - 40) : claim.end() + 20].split())
                reported.append(f"{key} is neither printed nearby nor bound, in '{words}'")
        rest = CLAIM.sub(" ", prose)
        reported += [f"{cell.id}: the mark {mark!r} stands after no number" for mark in re.findall(MARK, rest)]
    return reported + [f"the exemption {key!r} is not needed" for key in sorted(unused)]


def _outputs(cell: Any) -> Iterator[str]:
    """What a cell prints; not alternative texts, which are written by hand, nor outputs that nbval does not compare."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "<img" not in data.get("text/html", ""):
            yield output.get("text", "")
            yield data.get("text/plain", "")
            yield html.unescape(re.sub(r"<[^>]*>", " ", data.get("text/html", "")))


def _numbers(text: str) -> Iterator[tuple[Number, int, int]]:
    """The numbers of a text, with where each begins and ends."""
    for found in re.finditer(rf"(?<![\w.]){NUMBER}(?!\w)", text):
        yield Number(found[0]), *found.span()


def _prints(output: str, number: Number, unit: str | None) -> bool:
    lines = output.splitlines()
    return any(
        number.repeats(other) and (not unit or _has_unit(lines, row, start, end, unit))
        for row, line in enumerate(lines)
        for other, start, end in _numbers(line)
    )


def _has_unit(lines: list[str], row: int, start: int, end: int, unit: str) -> bool:
    """Whether the number at `start` to `end` of that row has the unit.

    The unit stands right behind the number or behind the list that the number is in, or it labels the row right before
    its numbers, or it labels the column above. A unit behind one number labels no other.
    """
    words = "|".join(next((alike for alike in ALIKE if unit in alike), [unit]))
    label = rf"(?<![^\W\d])(?<!\d)(?<!\d[ -])(?:{words})(?!\w)"
    behind = re.match(rf"(?:(?:,| to| and| or|–) ?{NUMBER})*[ -]?(?:{words})(?!\w)", lines[row][end:])
    before = re.search(rf"{label}\)?[:=]?\s*(?:{NUMBER}[\s,]+)*$", lines[row][:start])
    heads = itertools.takewhile(str.strip, reversed(lines[:row]))
    above = any(found.start() < end and found.end() > start for head in heads for found in re.finditer(label, head))
    return bool(behind or before or above)


def _unbound(number: Number, path: str) -> Iterator[str]:
    try:
        entry = load_published(path)
    except ValueError as error:
        yield str(error)
        return
    if isinstance(entry, str):
        if not any(number.repeats(other) for other, *_ in _numbers(entry)):
            yield f"{number.text} is bound to {path}, where it does not occur: {entry!r}"
    elif not isinstance(entry, int | float):
        yield f"{number.text} is bound to {path}, which is neither a number nor a text"
    elif not number.says(entry):
        yield f"{number.text} is bound to {path}, which is {entry}"
