"""What several parts share: the error that says what to do, the data folder, and the table of methods."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

# What the lessons read: beside the package in a checkout, inside it once installed.
_BESIDE = Path(__file__).resolve().parent.parent / "data"
DATA = _BESIDE if (_BESIDE / "task_api").is_dir() else Path(__file__).resolve().parent / "data"


class Method(NamedTuple):
    """A way to fine-tune: its name in code and in prose, and how every figure draws it, never by color alone."""

    name: str
    label: str
    color: str
    marker: str
    linestyle: str | tuple[int, tuple[int, ...]]

    @property
    def four_bit(self) -> bool:
        """Whether the base is in 4 bits."""
        return self.name.startswith("q")

    @property
    def adapter(self) -> str:
        """ "lora" or "dora"; empty for full fine-tuning and for a base as it is."""
        return self.name[-4:] if self.name.endswith(("lora", "dora")) else ""


# Colors of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by color-blind readers too.
METHODS = {
    method.name: method
    for method in [
        Method("base", "base", "#666666", "x", ":"),
        Method("full", "full fine-tuning", "#000000", "s", "-"),
        Method("lora", "LoRA", "#E69F00", "o", "--"),
        Method("dora", "DoRA", "#0072B2", "^", "-"),
        Method("qlora", "QLoRA", "#D55E00", "v", "-."),
        Method("qdora", "QDoRA", "#009E73", "D", (0, (5, 1, 1, 1, 1, 1))),
    ]
}
ADAPTERS = ("lora", "dora", "qlora", "qdora")  # the methods that train an adapter


class SetupError(RuntimeError):
    """Something about the machine stands in the way; the message says what to do."""


def whole(least: int = 1, **values: Any) -> list[int]:
    """The values as Python's integers, NumPy's among them, each `least` or more.

    Raises:
        ValueError: one of them is not; the message says its name.
    """
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}, but a whole number from {least} is expected.")
    return [int(value) for value in values.values()]


def file_in_the_way(folder: Path) -> Path | None:
    """The file that keeps a folder from being made: the path itself, or a part of it."""
    return next((part for part in (folder, *folder.parents) if part.is_file()), None)


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found, in one sentence: "steps is 0: Input should be greater than 0"."""
    problem = error.errors()[0]
    cause: Any = problem.get("ctx", {}).get("error")
    if hasattr(cause, "errors"):  # a validator built another model
        return first_problem(cause)
    field, message = ".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return message
    if problem["type"] in ("missing", "extra_forbidden"):
        return f"{field} {'is missing' if problem['type'] == 'missing' else 'is not a known key'}"
    if problem["type"] == "value_error":  # a validator of ours, whose message says what is wrong
        return f"{field}: {message}" if field else message
    return f"{field} is {problem['input']!r}: {message}"
