"""What the advisor is asked: the constraints, checked, and the model's configuration looked up."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dora_lesson.memory.plan import KNOWN, hub_config
from dora_lesson.models.load import BUNDLED
from dora_lesson.models.shapes import SHAPES, llama_config, require_language_model

PRIORITIES = ("quality", "time", "memory")
INFERENCE = ("merged", "unmerged", "4-bit")
PACKED = ("gptq", "awq", "torchao")  # a base that was packed in 4 bits before it came to you
STACKS = ("peft", "vllm", "deepspeed", "fsdp", *PACKED)
_HUB = {shape: name for name, (shape, _) in KNOWN.items()} | {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


@dataclass(frozen=True)
class Shape:
    """A model's configuration, told apart from others by its JSON, so that what is computed for it can be cached."""

    json: str
    config: Any = field(compare=False)


@dataclass(frozen=True)
class Request:
    """The constraints of one question to the advisor, as `recommend` takes them.

    `label` is what the model is called, `model_id` what a script loads.
    """

    vram_gb: float
    label: str
    model_id: str
    shape: Shape = field(repr=False)
    priority: str
    inference: str
    stack: str
    sequence_length: int
    bfloat16: bool

    @property
    def config(self) -> Any:
        """The model's configuration of transformers."""
        return self.shape.config

    @property
    def packed(self) -> bool:
        """Whether the base comes in 4 bits."""
        return self.stack in PACKED

    @property
    def r(self) -> int:
        """Rank: 16, the course's; 8 where memory is first."""
        return 8 if self.priority == "memory" else 16

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations that are not packed."""
        return torch.bfloat16 if self.bfloat16 else torch.float16

    def with_model(self, model: Any) -> Request:
        """The same constraints for another model."""
        return parse_request(
            self.vram_gb, model, self.priority, self.inference, self.stack, self.sequence_length, self.bfloat16
        )


def parse_request(
    vram_gb: float, model: Any, priority: str, inference: str, stack: str, sequence_length: int, bfloat16: bool
) -> Request:
    """The arguments of `recommend`, checked.

    Raises:
        ValueError, SetupError: as in `recommend`.
    """
    choices = [("priority", priority, PRIORITIES), ("inference", inference, INFERENCE), ("stack", stack, STACKS)]
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name} is {value!r}, but one of {', '.join(known)} is expected.")
    if isinstance(vram_gb, bool) or not isinstance(vram_gb, numbers.Real) or not 0 < vram_gb < 10_000:
        raise ValueError(f"vram_gb is {vram_gb!r}, but the memory of a GPU in GB is expected, such as 16.")
    whole = isinstance(sequence_length, numbers.Integral) and not isinstance(sequence_length, bool)
    if not whole or sequence_length < 1:
        raise ValueError(f"sequence_length is {sequence_length!r}, but a whole number from 1 is expected.")
    if not isinstance(bfloat16, bool):
        raise ValueError(f"bfloat16 is {bfloat16!r}, but True or False is expected.")
    label, model_id, config = _look_up(model)
    require_language_model(config)
    if not hasattr(config, "num_key_value_heads") or not hasattr(config, "intermediate_size"):
        raise ValueError(f"model is a {type(config).__name__}, but a Llama, or a model built like one, is expected.")
    if stack in PACKED and label in SHAPES:  # the checkpoint that is known for this shape is not packed
        model_id = f"path/to/your-{stack}-checkpoint"
    shape = Shape(config.to_json_string(), config)
    return Request(vram_gb, label, model_id, shape, priority, inference, stack, sequence_length, bfloat16)


def _look_up(model: Any) -> tuple[str, str, Any]:
    """What to call the model, what to load, and its configuration."""
    if isinstance(model, Path):
        model = str(model)
    if not isinstance(model, str):
        if not hasattr(model, "to_json_string"):
            raise ValueError(f"model is a {type(model).__name__}, but a name or a configuration is expected.")
        name = getattr(model, "_name_or_path", "") or "path/to/your/model"
        return name, name, model
    shape = KNOWN[model][0] if model in KNOWN else model
    if shape in SHAPES:
        return shape, model if model in KNOWN and model != BUNDLED else _HUB[shape], llama_config(shape)
    if "/" not in model and not Path(model).is_dir():
        raise ValueError(f"model is {model!r}, but one of {', '.join(SHAPES)}, or a model of the hub, is expected.")
    return model, model, hub_config(model)
