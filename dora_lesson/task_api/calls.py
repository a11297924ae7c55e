"""The calls of the Task API: which actions there are, what a call must hold, and where it stands in a reply."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

Call = dict[str, Any]

# A field's description is what a wrong value is told to be.
_Text = Annotated[str, Field(pattern=r"\S", description="a text")]
_Task = Annotated[int, Field(gt=0, description="the number of a task")]
_Date = Annotated[
    str, Field(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$", description="a date such as 2026-03-14")
]
_Time = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="a time such as 09:30")]
_Priority = Annotated[Literal["high", "low"], Field(description="high or low")]


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Create(_Call):
    action: Literal["create"]
    title: _Text
    due: _Date = Field(default=None)
    time: _Time = Field(default=None)
    priority: _Priority = Field(default=None)


class Complete(_Call):
    action: Literal["complete"]
    task: _Task


class Update(_Call):
    """Changes of one task; null removes its due, time or priority."""

    action: Literal["update"]
    task: _Task
    title: _Text = Field(default=None)
    due: _Date | None = None
    time: _Time | None = None
    priority: _Priority | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Update:
        if self.model_fields_set <= {"action", "task"}:
            raise ValueError("update changes nothing")
        return self


class Delete(_Call):
    action: Literal["delete"]
    task: _Task


class List(_Call):
    action: Literal["list"]
    due: _Date = Field(default=None)
    until: _Date = Field(default=None)
    priority: _Priority = Field(default=None)


class Search(_Call):
    action: Literal["search"]
    query: _Text


class Nothing(_Call):
    action: Literal["none"]


_MODELS = {"create": Create, "complete": Complete, "update": Update, "delete": Delete}
_MODELS |= {"list": List, "search": Search, "none": Nothing}
ACTIONS = tuple(_MODELS)
_ANY_CALL: TypeAdapter[Any] = TypeAdapter(
    Annotated[Create | Complete | Update | Delete | List | Search | Nothing, Field(discriminator="action")]
)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a call."""
    return _ANY_CALL.json_schema()


def validate_call(call: Any) -> str | None:
    """What is wrong with a call, in a few words, or None."""
    action = call.get("action") if isinstance(call, dict) else call
    if not isinstance(call, dict) or action not in ACTIONS:
        return f"unknown action {action!r}: one of {', '.join(ACTIONS)} is expected"
    try:
        _ANY_CALL.validate_python(call)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][1]) if len(problem["loc"]) > 1 else ""
        if problem["type"] == "extra_forbidden":
            return f"{action} takes no field {key!r}"
        if problem["type"] == "missing":
            return f"{action} needs the field {key!r}"
        if not key:
            return problem["msg"].removeprefix("Value error, ")
        return f"{key} is {call[key]!r}, but {_expected(_MODELS[action], key)} is expected"
    return None


def _expected(model: type[BaseModel], key: str) -> str:
    schema = model.model_json_schema()["properties"][key]
    text: str = schema.get("description") or schema["anyOf"][0]["description"]
    return text


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
