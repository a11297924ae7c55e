"""What a reader clicks in lesson 07: the advisor follows its menus, the quiz judges, the box copies what it shows."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from dora_lesson import recommend, widgets
from dora_lesson.advisor.tree import LEAVES, SMALLER, decision_tree, way
from dora_lesson.advisor.tree import QUESTIONS as ASKED
from dora_lesson.checks.quiz import QUESTIONS
from dora_lesson.core import METHODS as ALL
from dora_lesson.multi_gpu.config import METHODS


def test_the_tree_has_a_leaf_for_every_answer() -> None:
    assert set(LEAVES) == {*(ALL[method].label for method in METHODS), SMALLER}


@pytest.mark.parametrize("asked", [(24, "quality"), (24, "time"), (12, "quality"), (12, "time"), (6, "quality")])
def test_the_way_ends_at_the_recommended_leaf(asked: tuple[int, str]) -> None:
    found = recommend(asked[0], "llama-3.1-8b", asked[1])
    passed = way(found.answers)
    assert passed[0] == "fits" and passed[-1] == (found.method or SMALLER)
    assert all(name in ASKED for name in passed[:-1])
    fig, alt = decision_tree(found)
    assert alt.endswith(f"ends at: {found.method or 'nothing to recommend'}.")
    thick = [line for line in fig.axes[0].lines if line.get_linewidth() > 2]
    assert len(thick) == len(passed) - 1


def test_the_plain_tree_marks_nothing() -> None:
    fig, alt = decision_tree()
    assert all(line.get_linestyle() == "--" for line in fig.axes[0].lines)
    assert "QDoRA or QLoRA" in alt
    assert way(recommend(24, "llama-3.1-8b", stack="gptq").answers) == []


def test_the_advisor_follows_its_slider_and_menus() -> None:
    live = widgets.advisor()
    assert live.found.method == "QDoRA" and "QDoRA, r = 16" in live.said.value
    for name, value, method in [("vram_gb", 24, "DoRA"), ("priority", "time", "LoRA"), ("inference", "4-bit", "QLoRA")]:
        before = live.picture.value
        live.sliders[name].value = value
        assert live.found.method == method and live.picture.value != before
        assert html.escape(live.found.snippet) in live.said.value
    live.sliders["vram_gb"].value = 4
    assert live.found.method is None and "Nothing to recommend" in live.said.value
    assert repr(live).startswith("The advisor, live: run this cell")


def test_the_quiz_counts_what_is_right_and_explains_every_answer() -> None:
    quiz = widgets.quiz()
    assert "0 of 8" in quiz.score.value
    for asked, question in zip(quiz.asked, QUESTIONS, strict=True):
        for option, why in question.options.items():
            asked.choice.value = option
            word = "correct" if option == question.right else "not this one"
            assert html.unescape(asked.verdict.value) == f"{word}: {why}"
        asked.choice.value = question.right
    assert "8 of 8" in quiz.score.value
    quiz.asked[0].choice.value = next(o for o in QUESTIONS[0].options if o != QUESTIONS[0].right)
    assert "7 of 8" in quiz.score.value


def test_the_box_holds_the_text_as_it_is() -> None:
    text = 'a < b & "c"\n</textarea><script>alert(1)</script>'
    box: Any = widgets.copy_box("A <title>", text)
    shown = box._repr_html_()
    inside = re.search(r"<textarea[^>]*>(.*?)</textarea>", shown, flags=re.S)
    assert inside and html.unescape(inside.group(1)) == text
    assert "<script" not in shown and repr(box) == f"A <title>\n\n{text}"
