"""How good a reply to an item of the Task API set is: its call, and its persona by a rubric."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dora_lesson.task_api.calls import Call, find_call
from dora_lesson.task_api.dataset import CATEGORIES, Item, reference_call
from dora_lesson.task_api.days import clock, resolve
from dora_lesson.task_api.persona import persona_points
from dora_lesson.task_api.words import content_words

_DAYS = datetime.date(2024, 1, 1), datetime.date(2024, 8, 15)


def normalize(call: Call) -> Call:
    """A call in the form in which calls are compared.

    Texts lose case and outer spaces. Titles and queries are compared as sets of words, without punctuation and
    without the stop words, days and times by what they mean. The order of keys does not count, nor whether a task's
    number is written as text. A field that is null is left out, but in an update, where null removes a value.
    """
    normal: Call = {}
    for key, value in call.items():
        if value is None and call.get("action") != "update":
            continue
        if key in ("title", "query"):
            normal[key] = frozenset(content_words(str(value)))
        elif key in ("due", "until", "time") and value is not None:
            normal[key] = _meaning(key, str(value))
        elif key == "task" and re.fullmatch(r"#?\s*\d{1,9}", str(value).strip()):
            normal[key] = int(str(value).strip().lstrip("# "))
        else:
            normal[key] = str(value).strip().lower() if value is not None else None
    return normal


def _meaning(key: str, said: str) -> Any:
    """A time by the clock, and what a day means on a Monday and on a Thursday: other words may say the same."""
    try:
        return clock(said) if key == "time" else tuple(resolve(said, day) for day in _DAYS)
    except ValueError:
        return said.strip().lower()


def is_right(reply: str, item: Item) -> bool:
    """Whether the reply's call is valid and equals the reference after `normalize`."""
    call, reference = find_call(reply), reference_call(item)
    return call is not None and normalize(call) == normalize(reference)


def has_right_action(reply: str, item: Item) -> bool:
    """Whether the reply's call has the reference's action, whatever else it holds."""
    call = find_call(reply)
    return call is not None and call["action"] == reference_call(item)["action"]


@dataclass(repr=False)
class Scores:
    """What `score` found. The lists run over the items, in order, so that two models can be compared item by item."""

    right: list[bool]
    right_action: list[bool]
    persona: list[int]
    categories: list[str]

    @property
    def task_accuracy(self) -> float:
        """Share of items whose call equals the reference, 0 to 1."""
        return sum(self.right) / len(self.right)

    @property
    def action_accuracy(self) -> float:
        """Share of items whose call has the reference's action, 0 to 1."""
        return sum(self.right_action) / len(self.right_action)

    @property
    def persona_consistency(self) -> float:
        """Mean points of the rubric, 0 to 10."""
        return sum(self.persona) / len(self.persona)

    def table(self) -> list[tuple[str, int, float, float, float]]:
        """One row a category, in the set's order: name, items, exact calls, right actions, persona consistency."""
        by_name = {name: [i for i, other in enumerate(self.categories) if other == name] for name in CATEGORIES}
        return [
            (
                name,
                len(items),
                fmean(self.right[i] for i in items),
                fmean(self.right_action[i] for i in items),
                fmean(self.persona[i] for i in items),
            )
            for name, items in by_name.items()
            if items
        ]

    def __repr__(self) -> str:
        all_items = ("all", len(self.right), self.task_accuracy, self.action_accuracy, self.persona_consistency)
        lines = [
            f"{name:11} {n:5} {exact:11.0%} {action:12.0%} {persona:12.1f}"
            for name, n, exact, action, persona in [*self.table(), all_items]
        ]
        return "\n".join([f"{'category':11} items  exact call  right action  persona 0-10", *lines])


def score(replies: Sequence[str], items: Iterable[Item]) -> Scores:
    """Exact calls, right actions and persona consistency of replies to items.

    Raises:
        ValueError: there are not as many replies as items, or none, or one of them is no text.
    """
    items = list(items)
    if other := [reply for reply in replies if not isinstance(reply, str)]:
        raise ValueError(f"A reply is {other[0]!r}, but a text is expected.")
    if len(replies) != len(items) or not items:
        raise ValueError(f"There are {len(replies)} replies for {len(items)} items: pass one reply an item.")
    return Scores(
        [is_right(reply, item) for reply, item in zip(replies, items, strict=True)],
        [has_right_action(reply, item) for reply, item in zip(replies, items, strict=True)],
        [sum(persona_points(reply, item).values()) for reply, item in zip(replies, items, strict=True)],
        [item["category"] for item in items],
    )
