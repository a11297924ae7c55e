"""What the advisor is asked: the constraints, checked, and the model's configuration looked up."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dora_lesson.advisor.memory_fit import Fit, setting, usable_bytes
from dora_lesson.memory.plan import KNOWN, hub_config
from dora_lesson.models.load import BUNDLED
from dora_lesson.models.shapes import SHAPES, llama_config

PRIORITIES = ("quality", "time", "memory")
INFERENCE = ("merged", "unmerged", "4-bit")
PACKED = ("gptq", "awq", "torchao")  # a base that was packed in 4 bits before it came to you
STACKS = ("peft", "vllm", "deepspeed", "fsdp", *PACKED)
_HUB = {shape: name for name, (shape, _) in KNOWN.items()} | {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


@dataclass(frozen=True)
class Request:
    """What was asked for, checked and with the model's configuration."""

    vram_gb: float
    label: str
    model_id: str
    config: Any = field(repr=False, compare=False)
    priority: str
    inference: str
    stack: str
    sequence_length: int
    bfloat16: bool

    @property
    def r(self) -> int:
        """Rank: 16, the course's; 8 where memory is first."""
        return 8 if self.priority == "memory" else 16

    @property
    def room(self) -> int:
        """Bytes of the card that may be planned."""
        return usable_bytes(self.vram_gb)

    @property
    def sizes(self) -> dict[str, Any]:
        """What all settings that are tried have in common."""
        dtype = torch.bfloat16 if self.bfloat16 else torch.float16
        return {"sequence_length": self.sequence_length, "r": self.r, "dtype": dtype}

    def least(self, method: str) -> Fit:
        """The setting of a method that takes least: checkpointing, one sequence a pass."""
        return setting(self.config, method, 1, True, **self.sizes)


def checked(
    vram_gb: float, model: Any, priority: str, inference: str, stack: str, sequence_length: int, bfloat16: bool
) -> Request:
    named = [("priority", priority, PRIORITIES), ("inference", inference, INFERENCE), ("stack", stack, STACKS)]
    for name, value, known in named:
        if value not in known:
            raise ValueError(f"{name} is {value!r}, but one of {', '.join(known)} is expected.")
    if isinstance(vram_gb, bool) or not isinstance(vram_gb, numbers.Real) or not 0 < vram_gb < 10_000:
        raise ValueError(f"vram_gb is {vram_gb!r}, but the memory of a GPU in GB is expected, such as 16.")
    if not isinstance(sequence_length, numbers.Integral) or sequence_length < 1:
        raise ValueError(f"sequence_length is {sequence_length!r}, but a whole number from 1 is expected.")
    label, model_id, config = _resolved(model)
    if stack in PACKED and label in SHAPES:  # the checkpoint that is known for this shape is not packed
        model_id = f"path/to/your-{stack}-checkpoint"
    return Request(vram_gb, label, model_id, config, priority, inference, stack, sequence_length, bfloat16)


def _resolved(model: Any) -> tuple[str, str, Any]:
    """What to call the model, what to load, and its configuration."""
    if not isinstance(model, str):
        if not hasattr(model, "to_json_string"):
            raise ValueError(f"model is a {type(model).__name__}, but a name or a configuration is expected.")
        name = getattr(model, "_name_or_path", "") or "path/to/your/model"
        return name, name, _like_a_llama(model)
    shape = KNOWN[model][0] if model in KNOWN else model
    if shape in SHAPES:
        return shape, model if model in KNOWN and model != BUNDLED else _HUB[shape], llama_config(shape)
    if "/" not in model and not Path(model).is_dir():
        raise ValueError(f"model is {model!r}, but one of {', '.join(SHAPES)}, or a model of the hub, is expected.")
    return model, model, _like_a_llama(hub_config(model))


def _like_a_llama(config: Any) -> Any:
    if not hasattr(config, "num_key_value_heads") or not hasattr(config, "intermediate_size"):
        raise ValueError(f"model is a {type(config).__name__}, but a Llama, or a model built like one, is expected.")
    return config
