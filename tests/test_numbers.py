"""A number of a lesson's prose that claims a result is printed by a cell or bound to a published figure.

What claims a result: a number with a decimal point, a sign or a thousands separator, or with a unit behind it (%, °,
GB, MB, s, times, points, fold: `UNIT` in `bound_numbers.py`). A whole number without a unit is taken as a setting or as
a count of things in sight. So is what stands in the title cell, in code, mathematics, a link's target, folded help, a
prompt (`> `) or a paragraph that begins with **Predict:**, and so is a name: 8B, 4-bit, 1e-4, section 4.1, PEFT 0.21.

Printed: an output within six cells holds the number, with as many decimals or more, and its unit: right behind it, as
the label of its row, or above it as the label of its column (a share printed as 0.05 is not 5 % in the prose). `−` and
`-`, `1,000` and `1000` are the same; a number without a sign may stand for the size of one that has it. What nbval does
not compare does not count. A record's number is printed by a cell, too.

Bound: a comment right after the number's last digit holds a path of `data/published`, as `load_published` takes it. No
renderer shows it (JupyterLab, Colab, GitHub), in tables and bold text either:

    The paper has 74.7<!--commonsense/LLaMA-7B/LoRA--> %, and PEFT's record +26<!--peft_record/.../more time %--> %.

The entry must be that number, rounded to the digits shown; where the entry is a text, the number must occur in it. Any
number can be bound, a whole one as well, and is then compared.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat.v4 as nbf
import pytest

from dora_lesson.evidence import published
from tests import bound_numbers, form
from tools import notebooks

# Numbers that claim no result although they look like it, as "cell: number", with the reason.
EXEMPT: dict[str, dict[str, str]] = {
    "01_magnitude_and_direction": {"small: 0.9999999": "a number to look at, not one that was measured"},
    "04_dora_with_peft": {"exercise-budget: 900,000": "the budget that the exercise sets"},
    "05_qdora_4bit_llama": {
        "exercise-t4_setting: 15": "the card's size, which the exercise sets",
        "exercise-t4_setting: 4,096": "the tokens that the exercise asks for",
    },
    "07_choose_your_adapter": dict.fromkeys(["questions: 8", "questions: 10"], "the rule of others, told to be judged"),
}


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_the_numbers_of_the_prose_are_printed_or_bound(path: Path) -> None:
    assert bound_numbers.problems(notebooks.read(path), EXEMPT.get(path.stem, {})) == []


def test_only_lessons_have_exemptions() -> None:
    assert set(EXEMPT) <= {path.stem for path in notebooks.lessons()}


def lesson(prose: str, *printed: str, **output: Any) -> Any:
    """A title, some prose, and a cell for each of `printed`."""
    cells = [
        nbf.new_markdown_cell("# 00 Small\n\n**7.5 minutes.**", id="title"),
        nbf.new_markdown_cell(prose, id="read"),
    ]
    for text in printed:
        cells.append(nbf.new_code_cell("...", outputs=[nbf.new_output("stream", name="stdout", text=text)], **output))
    return nbf.new_notebook(cells=cells)


def problems(prose: str, *printed: str, **output: Any) -> list[str]:
    return bound_numbers.problems(lesson(prose, *printed, **output), {})


CLAIMS = """\
It scores 71.2.
**71.2**
(71.2)
| LoRA | 71.2 |
It gains +4 here.
It gains −4 here.
It trains 3,544,576 numbers.
It takes 16 GB.
It is 20 % slower.
It is 20 per cent slower.
From 2 to 30 % of it.
It is 2 times slower.
It is 9-fold.
It gains 3 points.
A turn of 5°."""


@pytest.mark.parametrize("claim", CLAIMS.splitlines())
def test_a_claim_without_a_source_is_reported(claim: str) -> None:
    reported = problems(claim, "nothing of it: 1, 2.0, 1e-3\n")
    assert reported and all("neither printed nearby nor bound" in problem for problem in reported)


@pytest.mark.parametrize(
    "setting",
    [
        "r = 16, 3 seeds, 40 steps of 2 chats, in 2026.",
        "An 8B Llama in 4-bit, SmolLM2-1.7B, a 4.5-bit format, at 1e-4.",
        "`71.2` or $71.2$",
        "See section 4.1, Table 15 and Eqs. 3 and 4.",
        "Lessons 03 to 05, arXiv 2602.04998, PEFT 0.21.",
        "1. First\n2. Then",
        "> Ask for 71.2 %.",
        "**Predict:** 1, 10 or 30 %?",
        "[a link](https://example.org/?v=7.1)",
        "```\n# it`s 71.2 %\n```",
        "<details><summary>Nudge</summary>\n\n71.2 %\n\n</details>",
    ],
)
def test_settings_and_names_need_no_source(setting: str) -> None:
    assert problems(setting) == []


@pytest.mark.parametrize(
    ("claim", "output"),
    [
        ("It scores 71.2.", "71.2"),
        ("It scores 71.2.", "score=71.1832"),
        ("It trains 3,544,576.", "3544576 trained"),
        ("It falls by 4.5 points.", "-4.5 points"),
        ("It changes by −0.5.", "by -0.50"),
        ("It takes 16 GB.", "GB  16.06"),
        ("From 2 to 30 % of it.", "1.9 to 30.4 %"),
        ("It is 20 per cent slower.", "20.1 %"),
        ("It is 20 % slower.", "20.1 per cent"),
        ("It takes 12 s.", "12 seconds"),
        ("It takes 16 GB.", "memory (GB): 16.06"),
        ("It takes 16 GB.", "GB  4.2 16.06"),
        ("It takes 16 GB.", "layers     GB\n    16   3.0\n     4  16.1"),
        ("It takes 16 GB.", "GB     layers\n16.06  3"),
        ("It is 5 % slower.", "4, 5 and 7 % slower"),
        ("A turn of 5°.", "cos 0.996, about 5°"),
    ],
)
def test_a_printed_number_passes(claim: str, output: str) -> None:
    assert problems(claim, output) == []


@pytest.mark.parametrize(
    ("claim", "output"),
    [
        ("It scores 71.0.", "71"),
        ("From 2 to 30 % of it.", "30 %"),
        ("It scores 71.2.", "71.26"),
        ("It scores 71.2.", "171.2 and 71.25e3"),
        ("It changes by −0.5.", "0.5"),
        ("It is 5 % slower.", "0.05"),
        ("It is 5 % slower.", "5 layers"),
        ("It is 1 % slower.", "0.6 %"),
        ("It takes 12 s.", "12 items"),
        ("It takes 12 s.", "12 steps in 3 s"),
        ("It is 5 % slower.", "5 layers, 80 % done"),
        ("It is 5 % slower.", "80 % of 5 layers"),
        ("It is 5 % slower.", "80 %  5"),
        ("It is 5 % slower.", "80 %\n5"),
        ("It takes 16 GB.", "16 layers in 3 GB"),
        ("It takes 16 GB.", "layers     GB\n    16   3.0"),
        ("It takes 16 GB.", "    GB\n   3.0\n\n    16"),
        ("It is 2 times slower.", "2 layers, sometimes"),
    ],
)
def test_another_number_or_unit_does_not_count(claim: str, output: str) -> None:
    assert problems(claim, output) != []


def test_only_nearby_compared_output_counts() -> None:
    assert problems("It scores 71.2.", *["-"] * 5, "71.2") == []
    assert problems("It scores 71.2.", *["-"] * 6, "71.2") != []
    assert problems("It scores 71.2.", "71.2", metadata={"tags": ["nbval-ignore-output"]}) != []
    notebook = lesson("It scores 71.2.", "-")
    figure = {"text/html": '<img alt="A bar of 71.2">', "text/plain": "A bar of 71.2"}
    notebook.cells[-1].outputs = [nbf.new_output("display_data", data=figure)]
    assert bound_numbers.problems(notebook, {}) != []
    notebook.cells[-1].outputs = [nbf.new_output("display_data", data={"text/html": "<td>71.2</td>"})]
    assert bound_numbers.problems(notebook, {}) == []


def test_an_exemption_covers_one_number_and_must_be_needed() -> None:
    notebook = lesson("A budget of 2.5, or 3.5.", "3.5")
    assert bound_numbers.problems(notebook, {"read: 2.5": "set by the exercise"}) == []
    assert bound_numbers.problems(notebook, {"read: 2.5": "set", "read: 9.5": "gone"}) == [
        "the exemption 'read: 9.5' is not needed"
    ]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Published figures of their own, and a way to change one."""
    monkeypatch.setattr(published, "DATA", tmp_path)
    (tmp_path / "published").mkdir()
    figures = {
        "source": {"where": "Table 1", "url": "https://example.org", "status": "paper"},
        **{"LoRA": 74.7, "loss": -0.62, "text": "LoRA 71.2, DoRA 3,544,576", "rows": [1.5]},
    }

    def change(**changed: Any) -> None:
        (tmp_path / "published" / "table.json").write_text(json.dumps(figures | changed))

    change()
    return change


BOUND = "| LoRA | 74.7<!--table/LoRA--> | −0.62<!--table/loss--> |"


def test_a_bound_number_follows_its_entry(entries: Any) -> None:
    assert problems(BOUND) == []
    entries(LoRA=76.3)
    assert problems(BOUND) == ["read: 74.7 is bound to table/LoRA, which is 76.3"]
    assert problems(BOUND.replace("74.7", "76.3")) == []
    entries(loss=0.62)
    assert problems(BOUND) == ["read: −0.62 is bound to table/loss, which is 0.62"]


def test_a_lesson_fails_until_it_follows_a_changed_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = next(path for path in notebooks.lessons() if path.stem.startswith("03"))
    shutil.copytree(published.DATA / "published", tmp_path / "published")
    monkeypatch.setattr(published, "DATA", tmp_path)
    figures = json.loads((tmp_path / "published" / "detached_norm.json").read_text())
    figures["LLaMA-7B"]["memory GB"]["detached"] = 29.2
    (tmp_path / "published" / "detached_norm.json").write_text(json.dumps(figures))
    expected = ["detached: 28.2 is bound to detached_norm/LLaMA-7B/memory GB/detached, which is 29.2"]
    assert bound_numbers.problems(notebooks.read(path), {}) == expected


def test_a_bound_number_is_compared_even_if_it_is_printed_or_whole(entries: Any) -> None:
    assert problems("It has 74<!--table/LoRA--> %", "74 %") == ["read: 74 is bound to table/LoRA, which is 74.7"]
    assert problems("75<!--table/LoRA--> items and a gain of +74.7<!--table/LoRA-->.") == []


def test_a_number_can_be_bound_to_a_text_that_contains_it(entries: Any) -> None:
    assert problems("It trains 3,544,576<!--table/text--> at 71.2<!--table/text-->.") == []
    assert "where it does not occur" in problems("It trains 3,544,577<!--table/text-->.")[0]


@pytest.mark.parametrize(
    ("prose", "problem"),
    [
        ("74.7<!--table/DoRA-->", "has no entry 'DoRA'"),
        ("74.7<!--tables/LoRA-->", "no published figures 'tables'"),
        ("1.5<!--table/rows-->", "neither a number nor a text"),
        ("Much<!--table/LoRA--> more", "the mark 'table/LoRA' stands after no number"),
        ("74.7 <!--table/LoRA-->", "neither printed nearby nor bound"),
    ],
)
def test_a_mark_that_binds_nothing_is_reported(prose: str, problem: str, entries: Any) -> None:
    assert any(problem in reported for reported in problems(prose))


def test_marks_are_not_counted_as_words() -> None:
    marked, plain = "74.7<!--a path/of four words--> per cent", "74.7 per cent"
    assert form.words(nbf.new_markdown_cell(marked)) == form.words(nbf.new_markdown_cell(plain)) == 3
