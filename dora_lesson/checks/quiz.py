"""The course's quiz: questions, and for every answer, right or wrong, why. It needs no network."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets
from pydantic import BaseModel, TypeAdapter, model_validator

from dora_lesson.core import DATA


class Question(BaseModel):
    """`options` maps each answer to its explanation; `right` is one of them; `lesson` is where it is taught."""

    lesson: str
    text: str
    right: str
    options: dict[str, str]

    @model_validator(mode="after")
    def _right_is_an_option(self) -> Question:
        if self.right not in self.options:
            raise ValueError(f"right is {self.right!r}, which is not among the options")
        return self


QUESTIONS = TypeAdapter(list[Question]).validate_json((DATA / "quiz.json").read_text(encoding="utf-8"))


class Quiz(ipywidgets.VBox):
    """Questions with one right answer each; a click on an answer says whether it is right, and why."""

    def __init__(self) -> None:
        self.asked = [_Asked(number, question, self._count) for number, question in enumerate(QUESTIONS, start=1)]
        self.score = ipywidgets.HTML()
        super().__init__([*self.asked, self.score])
        self._count()

    def _count(self) -> None:
        right = sum(asked.right for asked in self.asked)
        self.score.value = f"<b>{right} of {len(self.asked)} right</b>"

    def __repr__(self) -> str:
        return "A quiz: run this cell in JupyterLab or Colab to answer it. The same questions stand below, folded."


class _Asked(ipywidgets.VBox):
    def __init__(self, number: int, question: Question, after: Callable[[], None]) -> None:
        self.question, self._after, self.right = question, after, False
        self.choice = ipywidgets.RadioButtons(options=[*question.options], value=None, layout={"width": "max-content"})
        self.verdict = ipywidgets.HTML()
        self.choice.observe(self._judge, names="value")
        asked = ipywidgets.HTML(f"<b>{number}. {html.escape(question.text)}</b>")
        super().__init__([asked, self.choice, self.verdict])

    def _judge(self, _: Any) -> None:
        self.right = self.choice.value == self.question.right
        word = "correct" if self.right else "not this one"
        self.verdict.value = html.escape(f"{word}: {self.question.options[self.choice.value]}")
        self._after()


def quiz() -> Quiz:
    """The course's quiz, without a network."""
    return Quiz()


class Folded:
    """The quiz on a page where nothing runs: each answer opens to its explanation."""

    def _repr_html_(self) -> str:
        return "".join(_folded(number, question) for number, question in enumerate(QUESTIONS, start=1))

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(QUESTIONS, start=1):
            lines.append(f"{number}. {question.text}")
            lines += [
                f"   {'(right)' if option == question.right else '(wrong)'} {option}: {why}"
                for option, why in question.options.items()
            ]
        return "\n".join(lines)


def _folded(number: int, question: Question) -> str:
    options = "".join(
        f"<details><summary>{html.escape(option)}</summary>"
        f"{'Right' if option == question.right else 'Not this one'}: {html.escape(why)}</details>"
        for option, why in question.options.items()
    )
    return f"<p><b>{number}. {html.escape(question.text)}</b></p>{options}"
