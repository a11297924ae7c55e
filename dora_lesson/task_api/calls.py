"""The calls of the Task API: which actions there are, what a call holds, and where it stands in a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import ValidationError

from dora_lesson.task_api.days import clock, meaning_of

Call = dict[str, Any]


def _number(task: Any) -> Any:
    """The number in "4" and "#4"; anything else as it is."""
    found = re.fullmatch(r"\s*#?\s*(\d{1,9})\s*", task) if isinstance(task, str) else None
    return int(found[1]) if found else task


def _read_by(read: Callable[[str], Any]) -> AfterValidator:
    """Take what `read` understands, as it was said."""
    return AfterValidator(lambda said: (read(said), said)[1])


_Number = Annotated[int, Field(gt=0), BeforeValidator(_number), Field(description="the number of a task")]
_Text = Annotated[str, Field(pattern=r"\S", description="a text")]
# The calendar need not have the day: that is for the app to say.
_Day = Annotated[str, _read_by(meaning_of), Field(description="a day such as tomorrow, thursday or 14 march")]
_Time = Annotated[str, _read_by(clock), Field(description="a time such as 3pm or 15:00")]
_Priority = Annotated[Literal["high", "low"], Field(description="high or low")]


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Create(_Call):
    """A new task."""

    action: Literal["create"]
    title: _Text
    due: _Day | None = None
    time: _Time | None = None
    priority: _Priority | None = None


class Complete(_Call):
    """A task is done."""

    action: Literal["complete"]
    task: _Number


class Update(_Call):
    """A task changes. A field that is null is removed, one that is left out stays."""

    action: Literal["update"]
    task: _Number
    title: _Text = ""
    due: _Day | None = None
    time: _Time | None = None
    priority: _Priority | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Update:
        if len(self.model_fields_set) == 2:
            raise ValueError("update changes nothing")
        return self


class Delete(_Call):
    """A task goes, done or not."""

    action: Literal["delete"]
    task: _Number


class List(_Call):
    """Show the tasks of a day, those up to a day, those from one day to another, those of a priority, or all."""

    action: Literal["list"]
    due: _Day | None = None
    until: _Day | None = None
    priority: _Priority | None = None


class Search(_Call):
    """Show the tasks with these words in the title."""

    action: Literal["search"]
    query: _Text


class Nothing(_Call):
    """The list stays as it is."""

    action: Literal["none"]


ACTIONS = ["create", "complete", "update", "delete", "list", "search", "none"]
_ANY = Create | Complete | Update | Delete | List | Search | Nothing
_CALLS: TypeAdapter[Any] = TypeAdapter(Annotated[_ANY, Field(discriminator="action")])


def read_call(call: Any) -> Any:
    """A call as the object of its action, such as `Create`.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    if not isinstance(call, dict):
        raise ValueError(f"a call is {call!r:.60}, but a dict is expected, such as {{'action': 'list'}}")
    if not isinstance(call.get("action"), str) or call["action"] not in ACTIONS:
        raise ValueError(f"unknown action {call.get('action')!r:.60}: one of {', '.join(ACTIONS)} is expected")
    try:
        return _CALLS.validate_python(call)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][-1])
        if problem["type"] == "extra_forbidden":
            raise ValueError(f"{call['action']} takes no field {key!r}") from None
        if problem["type"] == "missing":
            raise ValueError(f"{call['action']} needs the field {key!r}") from None
        if key not in call:
            raise ValueError(problem["msg"].removeprefix("Value error, ")) from None
        expected = _EXPECTED[key].__metadata__[-1].description
        raise ValueError(f"{key} is {call[key]!r:.60}, but {expected} is expected") from None


_EXPECTED: dict[str, Any] = {"task": _Number, "title": _Text, "query": _Text, "due": _Day, "until": _Day}
_EXPECTED |= {"time": _Time, "priority": _Priority}


def validate_call(call: Any) -> str | None:
    """What is wrong with a call, in a few words, or None."""
    try:
        read_call(call)
    except ValueError as error:
        return str(error)
    return None


def call_schema() -> dict[str, Any]:
    """The JSON schema of the calls, made from the models."""
    return _CALLS.json_schema()


def reply_lines(reply: str) -> list[str]:
    """The lines of a reply. JSON allows other line separators than this inside a text."""
    return str(reply or "").replace("\r\n", "\n").split("\n")


def call_lines(reply: str) -> list[str]:
    """The lines of a reply that look like a call."""
    return [line for line in reply_lines(reply) if line.lstrip().startswith("{")]


def text_lines(reply: str) -> list[str]:
    """The other lines of a reply, without the fences that some models put around a call."""
    return [line for line in reply_lines(reply) if not re.match(r"\s*({|```\w*\s*$)", line)]


def reply_text(reply: str) -> str:
    """The sentences of a reply."""
    return " ".join(text_lines(reply)).strip()


def find_call(reply: str) -> Call | None:
    """The first line of the reply that is a JSON object with an action, or None."""
    for line in reply_lines(reply):
        try:
            call = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested too deep
            continue
        if isinstance(call, dict) and "action" in call:
            return call
    return None
