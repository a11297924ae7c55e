"""The calls of the Task API: which actions there are, what a call must hold, and where it stands in a reply."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Call = dict[str, Any]

ACTIONS: dict[str, tuple[list[str], list[str]]] = {  # the fields that a call needs, and those that it may have
    "create": (["title"], ["due", "time", "priority"]),
    "complete": (["task"], []),
    "update": (["task"], ["title", "due", "time", "priority"]),
    "delete": (["task"], []),
    "list": ([], ["due", "until", "priority"]),
    "search": (["query"], []),
    "none": ([], []),
}
_REMOVABLE = ("due", "time", "priority")  # null in an update removes them

_DAY = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"
_TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
_TEXT: Any = Annotated[str, Field(pattern=r"\S", description="a text")]
_DATE: Any = Annotated[str, Field(pattern=_DAY, description="a date such as 2026-03-14")]
_FIELDS: dict[str, Any] = {
    "task": Annotated[int, Field(gt=0, description="the number of a task")],
    "title": _TEXT,
    "query": _TEXT,
    "due": _DATE,
    "until": _DATE,
    "time": Annotated[str, Field(pattern=_TIME, description="a time such as 09:30")],
    "priority": Annotated[Literal["high", "low"], Field(description="high or low")],
}


def _model(action: str) -> type[BaseModel]:
    needed, optional = ACTIONS[action]
    fields: dict[str, Any] = {"action": (Literal[action], ...)} | {name: (_FIELDS[name], ...) for name in needed}
    for name in optional:
        removable = action == "update" and name in _REMOVABLE
        fields[name] = (_FIELDS[name] | None if removable else _FIELDS[name], None)
    return create_model(action.capitalize(), __config__=ConfigDict(extra="forbid", strict=True), **fields)


MODELS = {action: _model(action) for action in ACTIONS}


def validate_call(call: Any) -> str | None:
    """What is wrong with a call, in a few words, or None."""
    action = call.get("action") if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(action, str) or action not in ACTIONS:
        return f"unknown action {action!r}: one of {', '.join(ACTIONS)} is expected"
    try:
        MODELS[action].model_validate(call)
    except ValidationError as error:
        problem, key = error.errors()[0], str(error.errors()[0]["loc"][0])
        if problem["type"] == "extra_forbidden":
            return f"{action} takes no field {key!r}"
        if problem["type"] == "missing":
            return f"{action} needs the field {key!r}"
        return f"{key} is {call[key]!r}, but {_FIELDS[key].__metadata__[0].description} is expected"
    return "update changes nothing" if action == "update" and len(call) == 2 else None


def reply_lines(reply: str) -> list[str]:
    """The lines of a reply. JSON allows other line separators than this inside a text."""
    return reply.replace("\r\n", "\n").split("\n")


def call_lines(reply: str) -> list[str]:
    """The lines of a reply that look like a call."""
    return [line for line in reply_lines(reply) if line.lstrip().startswith("{")]


def find_call(reply: str) -> Call | None:
    """The first line of the reply that is a JSON object with an action, or None."""
    for line in reply_lines(reply):
        try:
            call = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(call, dict) and "action" in call:
            return call
    return None
