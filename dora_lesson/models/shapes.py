"""Llamas by their shape alone: their published configurations."""

from __future__ import annotations

import json
from typing import Any

from dora_lesson.core import DATA

# Sizes from the models' configurations on the hub; all are Llamas.
SHAPES: dict[str, dict[str, Any]] = json.loads((DATA / "shapes.json").read_text(encoding="utf-8"))


def llama_config(name: str) -> Any:
    """The configuration of a published Llama, without network or account.

    Raises:
        ValueError: a name that is not among `SHAPES`.
    """
    from transformers import LlamaConfig

    if name not in SHAPES:
        raise ValueError(f"The shape is {name!r}, but one of {', '.join(SHAPES)} is expected.")
    return LlamaConfig(**SHAPES[name])
