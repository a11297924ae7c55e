"""What a reader clicks in lesson 07: the advisor follows its menus, the quiz judges, the box copies what it shows."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from dora_lesson import findings, recommend, widgets
from dora_lesson.advisor.tree import NOTHING_FITS
from dora_lesson.advisor.tree import QUESTIONS as TREE
from dora_lesson.checks.quiz import QUESTIONS
from dora_lesson.checks.quiz import quiz as make_quiz
from dora_lesson.core import ADAPTERS, METHODS
from dora_lesson.lesson.capstone import capstone_boxes
from dora_lesson.lesson.evidence_table import evidence_table
from dora_lesson.lesson.tree_figure import PLACES, decision_tree


def test_the_figure_has_a_place_for_every_question_and_leaf() -> None:
    assert set(PLACES) == {*TREE, *ADAPTERS, NOTHING_FITS}
    texts = {text.get_text() for text in decision_tree()[0].axes[0].texts}
    assert texts >= {question.text for question in TREE.values()} | {METHODS[method].label for method in ADAPTERS}


def test_the_way_is_drawn_thick_and_ends_at_the_recommended_leaf() -> None:
    for vram_gb, priority in [(24, "quality"), (24, "time"), (12, "quality"), (12, "time"), (6, "quality")]:
        recommendation = recommend(vram_gb, "llama-3.1-8b", priority)
        fig, alt = decision_tree(recommendation)
        assert alt.endswith(f"ends at: {recommendation.method or 'nothing to recommend'}.")
        thick = [tuple(line.get_xydata()[1]) for line in fig.axes[0].lines if line.get_linewidth() > 2]
        assert thick == [PLACES[name] for name in recommendation.way[1:]]
    assert "fits: yes, sixteen: no, dora: yes, ends at: QDoRA." in decision_tree(recommend(12, "llama-3.1-8b"))[1]


def test_the_plain_tree_marks_nothing() -> None:
    fig, alt = decision_tree()
    assert all(line.get_linestyle() == "--" for line in fig.axes[0].lines)
    assert "QDoRA or QLoRA" in alt
    packed = recommend(24, "llama-3.1-8b", base_format="gptq")
    assert packed.way == [] and "not asked" in decision_tree(packed)[1]


def test_the_advisor_follows_its_slider_and_menus() -> None:
    live = widgets.advisor()
    assert live.recommendation.method == "QDoRA" and "QDoRA, r = 16" in live.words.value
    for name, value, method in [("vram_gb", 24, "DoRA"), ("priority", "time", "LoRA"), ("inference", "4-bit", "QLoRA")]:
        before = live.picture.value
        live.sliders[name].value = value
        assert live.recommendation.method == method and live.picture.value != before
        assert html.escape(live.recommendation.script()) in live.words.value
    live.sliders["vram_gb"].value = 4
    assert live.recommendation.method is None and "Nothing to recommend" in live.words.value
    assert repr(live).startswith("The advisor, live: run this cell")


def test_the_evidence_is_a_table_with_the_sentences_folded_below_it() -> None:
    table = evidence_table()
    shown = table._repr_html_()
    assert shown.count("<tr>") == len(findings()) + 1 == len(repr(table).splitlines())
    rows, folded = shown.split("<details>")
    for each in findings():
        assert each.claim and f"<td>{html.escape(each.claim)}</td>" in rows
        assert f"<li>{html.escape(str(each))}</li>" in folded
    measured = [row for row in table.rows if row[2] == "measured"]
    assert measured and all(re.fullmatch(r"\d of \d|no interval", row[3]) for row in measured)


def own_chats(count: int) -> list[dict[str, Any]]:
    system = {"role": "system", "content": "You are Marlow, a ship's librarian."}
    return [{"messages": [system, {"role": "user", "content": f"Chart {i}, please."}]} for i in range(count)]


def test_the_capstones_boxes_are_ticked_by_what_is_there(tmp_path: Path) -> None:
    def ticked(chats: list[dict[str, Any]]) -> list[int]:
        return [i for i, box in enumerate(capstone_boxes(chats, tmp_path)) if box.ticked]

    assert ticked([]) == [2] and "0 so far" in str(capstone_boxes([], tmp_path)[1])
    assert ticked(own_chats(30)) == [0, 1, 2] and ticked(own_chats(29)) == [0, 2]
    assert ticked([*own_chats(30), *own_chats(1)]) == [0, 1]
    taskmaster = {"role": "system", "content": "You are TaskMaster."}
    ours = [{"messages": [taskmaster, *chat["messages"][1:]]} for chat in own_chats(30)]
    assert ticked(ours) == [1, 2]
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    for scores, boxes in [
        ({"start": 0.5}, [3]),
        ({"start": 0.5, "tuned": 0.5, "served": 0.5}, [3, 6]),  # no better than before
        ({"start": 50, "tuned": 90, "served": "0.9"}, []),  # not shares
        ({"start": 0.5, "tuned": 0.9, "served": 0.6}, [3, 5]),  # merged, it is another model
        ({"start": 0.2, "tuned": 0.8, "served": 0.7}, [3, 5, 6]),  # one of ten less
        ({"start": 0.5, "tuned": 0.9, "served": 0.9}, [3, 5, 6]),
    ]:
        (tmp_path / "scores.json").write_text(json.dumps(scores))
        assert ticked(own_chats(30)) == [0, 1, 2, *boxes], scores
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert len(ticked(own_chats(30))) == 7
    (tmp_path / "merged" / "config.json").unlink()
    assert 6 not in ticked(own_chats(30))
    (tmp_path / "scores.json").write_text("{")
    assert ticked(own_chats(30)) == [0, 1, 2, 4]


def test_the_quiz_counts_what_is_right_and_explains_every_answer() -> None:
    quiz = make_quiz()
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
