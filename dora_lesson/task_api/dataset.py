"""The Task API set: what an item is, and how it is read. `chats` encodes and answers items, `scoring` judges replies.

An item is a chat of three messages. The system message says who the assistant is, which day it is, and the open tasks;
the user asks; the assistant replies in a sentence or two and puts one JSON call on a line of its own. In the plain
level all that is needed stands in the request or the list; the spoken one is as people say it. `data/README.md` is the
datasheet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dora_lesson.core import DATA, first_problem
from dora_lesson.task_api.calls import Call, call_lines, find_call, validate_call

CATEGORIES = ["creation", "completion", "updates", "queries", "coaching", "edge cases", "boundaries"]
SPLITS = ["train", "validation", "test"]
LEVELS = ["plain", "spoken"]

Item = dict[str, Any]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatItem(BaseModel):
    """An item, as a line of the set's files holds it."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    category: Literal[tuple(CATEGORIES)]  # type: ignore[valid-type]
    messages: list[Message]

    @model_validator(mode="after")
    def _has_the_form_of_the_set(self) -> ChatItem:
        if [message.role for message in self.messages] != ["system", "user", "assistant"]:
            raise ValueError("messages are expected to be system, user and assistant, in this order")
        if not all(message.content.strip() for message in self.messages):
            raise ValueError("a message is empty")
        return self


def load_task_api(split: str, folder: Path | str | None = None, *, level: str = "plain") -> Any:
    """One split of the set as a `datasets.Dataset` with the columns id, category and messages.

    Args:
        split: train, validation or test.
        folder: where `{split}.jsonl` lies; None is the course's own set.
        level: of the course's own set, plain or spoken.

    Raises:
        ValueError: an unknown split or level, or an invalid line; the message names file and line.
        FileNotFoundError: the file is not there.
    """
    from datasets import Dataset

    for name, value, known in (("split", split, SPLITS), ("level", level, LEVELS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, but one of {', '.join(known)} is expected.")
    path = (DATA / "task_api" / level if folder is None else Path(folder).expanduser()) / f"{split}.jsonl"
    make = "run `python -m tools.task_api_set` in the course's folder" if folder is None else "write one chat a line"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {make}.")
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        problem = validate_item(line)
        if problem is None and (item := json.loads(line))["id"] in lines:
            problem = f"the id {item['id']!r} is already in line {lines[item['id']]}"
        if problem is not None:
            raise ValueError(f"{path.name}, line {number}: {problem}.")
        lines[item["id"]] = number
        items.append(item)
    if not items:
        raise ValueError(f"{path} holds no items: {make}.")
    return Dataset.from_list(items)


def _lines(path: Path) -> list[str]:
    """The lines of a JSON lines file. JSON allows other line separators than this inside a text."""
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}): save it in UTF-8.") from None


def validate_item(line: str) -> str | None:
    """What keeps a JSON line from being an item, in a few words, or None."""
    try:
        item = ChatItem.model_validate_json(line)
    except ValidationError as error:
        if (first := error.errors()[0])["type"] in ("json_invalid", "model_type"):
            return f"one JSON object a line is expected, and this is none ({first['msg']})"
        return first_problem(error)
    calls = call_lines(item.messages[2].content)
    if len(calls) != 1:
        return f"the reply holds {len(calls)} lines with a call, but one is expected"
    try:
        return validate_call(json.loads(calls[0]))
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, or nested too deep
        return f"the call is not valid JSON ({error})"


def reference_call(item: Item) -> Call:
    """The call of an item's own reply.

    Raises:
        ValueError: the item has no reply, or none with a call that the list takes.
    """
    last = item["messages"][-1]
    asked = last["role"] == "assistant" and item["messages"][1:]
    call = find_call(last["content"]) if asked else None
    if problem := validate_call(call):
        raise ValueError(f"An item has no reply with a call to compare with ({problem}): pass items of the set.")
    return call or {}


def require_items(items: Iterable[Item]) -> list[Item]:
    """The items as a list.

    Raises:
        ValueError: this is one item, a slice of a dataset (which has columns), a path, or a list of something else.
    """
    listed = isinstance(items, Iterable) and not isinstance(items, str | Path | Mapping)
    found = list(items) if listed else None
    if found is None or not all(isinstance(item, Mapping) and is_chat(item.get("messages")) for item in found):
        todo = "take dataset.select(range(10)) of a dataset, and put a single item in a list"
        raise ValueError(f"A list of items is expected, each with `messages` that have a `role` and `content`: {todo}.")
    return found


def is_chat(messages: Any) -> bool:
    """Whether this is a list of messages, one at least, each with a role and a text."""
    if not isinstance(messages, list | tuple) or not messages:
        return False
    return all(isinstance(m, Mapping) and "role" in m and isinstance(m.get("content"), str) for m in messages)
