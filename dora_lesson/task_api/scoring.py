"""How good a reply to an item of the Task API set is: its call, and its persona by a rubric."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dora_lesson.task_api.calls import Call, find_call, read_call, validate_call
from dora_lesson.task_api.dataset import CATEGORIES, Item, reference_call, require_items
from dora_lesson.task_api.days import WEEKDAYS, clock, first_and_last
from dora_lesson.task_api.persona import persona_points
from dora_lesson.task_api.words import content_words

# On these, months and years end differently: days that fall together on all of them mean the same.
_TODAYS = [datetime.date(*day) for day in ((2024, 1, 1), (2024, 8, 15), (2025, 2, 26), (2026, 4, 14), (2027, 12, 30))]


def normalize(call: Call) -> Call:
    """A call in the form in which calls are compared.

    Titles and queries are compared as sets of words, without punctuation and without the stop words, days and times
    by what they mean. The order of keys does not count, nor whether a task's number is written as text. A field that
    is null is left out, but in an update, where null removes a value.

    Raises:
        ValueError: the list would refuse the call.
    """
    normal: Call = {}
    for key, value in read_call(call).model_dump(exclude_unset=True).items():
        if value is None and call["action"] != "update":
            continue
        if key in ("title", "query"):
            normal[key] = frozenset(content_words(value)) or value.strip().lower()  # an emoji holds no word
        elif key in ("due", "until", "time") and value is not None:
            normal[key] = _meaning(key, value)
        else:
            normal[key] = value
    return normal


def _meaning(key: str, said: str) -> Any:
    """A time by the clock, and the dates that a day is on some todays: other words may say the same."""
    try:
        return clock(said) if key == "time" else tuple(first_and_last(said, day) for day in _TODAYS)
    except ValueError:  # "friday 6 march" is no day in most years
        name, _, date = said.strip().lower().partition(" ")
        return _meaning(key, date) if name.strip(",") in WEEKDAYS and date else said.strip().lower()


def is_right(reply: str, item: Item) -> bool:
    """Whether the list takes the reply's call, and it equals the reference after `normalize`."""
    call, reference = find_call(reply), reference_call(item)
    return validate_call(call) is None and normalize(call or {}) == normalize(reference)


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

    def table(self) -> list[tuple[Any, ...]]:
        """One row a category, the set's own first: name, items, exact calls, right actions, persona consistency."""
        rows = list(zip(self.categories, self.right, self.right_action, self.persona, strict=True))
        names = [name for name in dict.fromkeys([*CATEGORIES, *self.categories]) if name in self.categories]
        by_name = {name: [row[1:] for row in rows if row[0] == name] for name in names}
        return [(name, len(found), *map(fmean, zip(*found, strict=True))) for name, found in by_name.items()]

    def __repr__(self) -> str:
        all_items = ("all", len(self.right), self.task_accuracy, self.action_accuracy, self.persona_consistency)
        lines = [
            f"{name:11} {n:5} {exact:11.0%} {action:12.0%} {persona:12.1f}"
            for name, n, exact, action, persona in [*self.table(), all_items]
        ]
        return "\n".join([f"{'category':11} items  exact call  right action  persona 0-10", *lines])


def score(replies: Iterable[str], items: Iterable[Item]) -> Scores:
    """Exact calls, right actions and persona consistency of replies to items.

    Raises:
        ValueError: there are not as many replies as items, or none, or one of them is no text, or an item has no
            reference.
    """
    replies, items = [] if isinstance(replies, str) else list(replies), require_items(items)
    if other := [reply for reply in replies if not isinstance(reply, str)]:
        raise ValueError(f"A reply is {other[0]!r}, but a text is expected.")
    if len(replies) != len(items) or not items:
        raise ValueError(f"There are {len(replies)} replies for {len(items)} items: pass a list, one reply an item.")
    pairs = list(zip(replies, items, strict=True))
    return Scores(
        [is_right(reply, item) for reply, item in pairs],
        [(find_call(reply) or {}).get("action") == reference_call(item)["action"] for reply, item in pairs],
        [sum(persona_points(reply, item).values()) for reply, item in pairs],
        [item.get("category") or "other" for item in items],
    )
