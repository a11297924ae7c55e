"""The final check and the quiz: right answers pass in several styles, wrong ones are named, all lessons are covered."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from dora_lesson.checks import final
from dora_lesson.checks.final import final_check, tasks
from dora_lesson.checks.quiz import QUESTIONS, Folded
from tests import form
from tools import notebooks

LESSONS = [f"{number:02}" for number in range(8)]


@pytest.fixture(autouse=True)
def a_ready_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final, "doctor", lambda: type("Report", (), {"ok": True}))


def test_every_lesson_has_a_task_and_a_question() -> None:
    assert [task.lesson for task in tasks()] == LESSONS
    assert sorted(question.lesson for question in QUESTIONS) == LESSONS


def test_the_courses_own_answers_are_right_and_none_is_not_yet(capsys: Any) -> None:
    assert final_check({task.lesson: task.answer for task in tasks()}) == 8
    assert capsys.readouterr().out.count(" correct: ") == 8
    assert final_check({lesson: None for lesson in LESSONS}) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == [*(f"{lesson} not yet" for lesson in LESSONS), "0 of 8"]


@pytest.mark.parametrize(("lesson", "answer"), [
    ("01", (5.0, 10.0)), ("02", (1, 1.0)), ("03", [8.0, 6]),
    ("04", LoraConfig(r=8, lora_alpha=16, use_dora=True)), ("05", 4.127), ("05", 4.12695), ("07", "qlora"),
    ("01", np.array([5, 10])), ("01", torch.tensor([5.0, 10.0])), ("05", np.float32(4.127)), ("07", " QLoRA "),
    ("04", {"r": np.int64(8), "lora_alpha": 16.0, "use_dora": np.True_, "use_rslora": False}),
    ("04", {"r": 8, "lora_alpha": 2 * 8**0.5, "use_dora": True, "use_rslora": True}),
    ("06", np.False_), ("06", torch.tensor(False)),
])  # fmt: skip
def test_right_answers_in_other_words(lesson: str, answer: Any, capsys: Any) -> None:
    assert final_check({lesson: answer}) == 1, capsys.readouterr().out


@pytest.mark.parametrize(("lesson", "answer", "words"), [
    ("00", "no", "says yes"),
    ("00", "perhaps", "'yes' or 'no'"),
    ("01", [6.71, 8.94], "dim=0"),
    ("01", [5], "you give 1 numbers"),
    ("01", 5, "2 numbers in brackets"),
    ("02", [1, 0], "1 − cos"),
    ("02", [3.606, 1], "compares lengths"),
    ("03", [4, 3], "divide by its length"),
    ("03", [40, 30], "before you multiply"),
    ("03", [0.8, 0.6], "direction"),
    ("03", [6, 8], "add u"),
    ("03", [7, 3], "inside the norm"),
    ("03", [1, 2], "is not right"),
    ("04", {"r": 8, "lora_alpha": 16}, "this is LoRA"),
    ("04", {"r": 8, "lora_alpha": 2, "use_dora": True}, "2 / 8 is not 2"),
    ("04", {"r": 16, "lora_alpha": 32, "use_dora": True}, "r is 16"),
    ("05", 4, "codes alone"),
    ("05", 4.5, "double"),
    ("05", 4.125, "scales of the scales"),
    ("05", "four", "a number"),
    ("05", 4.128, "that is near"),
    ("05", 4.126, "that is near"),
    ("05", 4.13, "that is near"),
    ("05", float("nan"), "nan is not right"),
    ("02", [float("nan"), 1], "is not right"),
    ("01", {5: "", 10: ""}, "2 numbers in brackets"),
    ("01", {5, 10}, "2 numbers in brackets"),
    ("01", "55", "2 numbers in brackets"),
    ("04", {"r": 8, "lora_alpha": 16, "use_dora": True, "use_rslora": True}, "16 / √8 is not 2"),
    ("04", LoraConfig(r=8, lora_alpha=16, use_dora=True, use_rslora=True), "use_rslora divides lora_alpha"),
    ("04", {"r": 8, "use_dora": True, "use_rslora": True}, "None / √8 is not 2"),
    ("06", np.True_, "whether zero is inside"),
    ("06", True, "whether zero is inside"),
    ("06", "no", "True or False"),
    ("07", "QDoRA", "every token"),
    ("07", "DoRA", "larger than the card"),
    ("07", "LoRA", "the 16-bit weights alone are larger than the card"),
    ("07", "full", "answer LoRA, DoRA"),
    ("7", "QLoRA", "'7' is not the number of a lesson; those are '00' to '07'"),
    (1, [5, 10], "1 is not the number of a lesson; those are '00' to '07', in quotes"),
])  # fmt: skip
def test_wrong_answers_are_named(lesson: str, answer: Any, words: str, capsys: Any) -> None:
    assert final_check({lesson: answer}) == 0
    assert words in capsys.readouterr().out


def test_keys_of_several_kinds_are_no_error(capsys: Any) -> None:
    assert final_check({1: 5, "x": 2, None: 3, "01": [5, 10]}) == 1
    assert "1 is not the number of a lesson" in capsys.readouterr().out


def test_a_task_that_was_changed_is_whole_again(capsys: Any) -> None:
    tasks()[1].answer.clear()
    assert tasks()[1].answer == [5, 10]
    final_check({"01": 5})
    assert "2 numbers in brackets" in capsys.readouterr().out


def test_the_machine_is_asked_and_not_taken_for_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final, "doctor", lambda: type("Report", (), {"ok": False}))
    assert final_check({"00": "no"}) == 1 and final_check({"00": "yes"}) == 0


def test_each_question_has_one_right_answer_and_explains_all() -> None:
    for question in QUESTIONS:
        assert question.right in question.options and len(question.options) >= 3
        assert all(re.search(r"\(lesson 0[0-7]\)\.$", why) for why in question.options.values()), "which to read again"
    places = [[*question.options].index(question.right) for question in QUESTIONS]
    assert len(set(places)) == 3, "the right answer does not always stand in one place"


def test_the_folded_quiz_holds_all_questions_and_tells_nothing_before_it_is_opened() -> None:
    folded = Folded()._repr_html_()
    assert folded.count("<details>") == sum(len(question.options) for question in QUESTIONS)
    outside = "".join(part.split("</details>")[-1] for part in folded.split("</summary>"))
    assert "Right:" not in outside
    for question in QUESTIONS:
        assert question.text in str(Folded())


def test_the_answers_folded_in_the_lesson_are_right() -> None:
    path = next(path for path in notebooks.lessons() if path.stem.startswith("07"))
    fold = next(cell for cell in notebooks.read(path).cells if cell.id == "final-help")
    names: dict[str, Any] = {}
    exec(form.solution(fold), names)
    assert final_check(names["my_answers"]) == 8
