"""The calls of the Task API: which actions there are, what a call must hold, and where it stands in a reply."""

from __future__ import annotations

import json
import re
from typing import Any

ACTIONS = {
    "create": {"title", "due", "time", "priority"},
    "complete": {"task"},
    "update": {"task", "title", "due", "time", "priority"},
    "delete": {"task"},
    "list": {"due", "until", "priority"},
    "search": {"query"},
    "none": set(),
}
REQUIRED = {"create": "title", "complete": "task", "update": "task", "delete": "task", "search": "query"}
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")

Call = dict[str, Any]


def validate_call(call: Any) -> str | None:
    """What is wrong with a call, in a few words, or None."""
    if not isinstance(call, dict) or call.get("action") not in ACTIONS:
        action = call.get("action") if isinstance(call, dict) else call
        return f"unknown action {action!r}: one of {', '.join(ACTIONS)} is expected"
    action, fields = call["action"], {key: value for key, value in call.items() if key != "action"}
    if extra := sorted(set(fields) - ACTIONS[action]):
        return f"{action} takes no field {extra[0]!r}"
    needed = REQUIRED.get(action)
    if needed and needed not in fields:
        return f"{action} needs the field {needed!r}"
    if action == "update" and len(fields) < 2:
        return "update changes nothing"
    for key, value in fields.items():
        if value is None and action == "update" and key in ("due", "time", "priority"):
            continue
        if problem := _field_problem(key, value):
            return problem
    return None


def _field_problem(key: str, value: Any) -> str | None:
    if key == "task":
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if fits else f"task is {value!r}, but the number of a task is expected"
    if not isinstance(value, str) or not value.strip():
        return f"{key} is {value!r}, but a text is expected"
    if key in ("due", "until") and not _DATE.fullmatch(value):
        return f"{key} is {value!r}, but a date such as 2026-03-14 is expected"
    if key == "time" and not _TIME.fullmatch(value):
        return f"time is {value!r}, but one such as 09:30 is expected"
    if key == "priority" and value not in ("high", "low"):
        return f"priority is {value!r}, but high or low is expected"
    return None


def find_call(reply: str) -> Call | None:
    """The first line of the reply that is a JSON object with an action, or None."""
    for line in reply.splitlines():
        try:
            call = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(call, dict) and "action" in call:
            return call
    return None
