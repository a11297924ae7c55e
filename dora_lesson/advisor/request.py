"""What the advisor is asked: the constraints, checked, and the model's configuration looked up."""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dora_lesson.advisor.model import HUB, look_up
from dora_lesson.core import whole
from dora_lesson.memory.shapes import quantization_method, require_language_model

PRIORITIES = ("quality", "time", "memory")
INFERENCE = ("merged", "unmerged", "4-bit")
SERVERS = {  # what each reads: weights as they are, or packed in one of these formats
    "transformers": ("no", "nf4", "awq"),
    "vllm": ("no", "nf4", "awq"),
    "tgi": ("no", "nf4", "awq"),
    "llama.cpp": ("no", "gguf"),
    "ollama": ("no", "gguf"),
}
PACKED = ("no", "nf4", "gguf", "awq")
TRAINERS = ("one gpu", "fsdp", "deepspeed")
BASE_FORMATS = ("16-bit", "gptq", "awq", "torchao")  # all but the first: packed in 4 bits before it came to you
WHOLE_ON_EACH_GPU = ("gptq", "awq")  # their packed weights are buffers, which FSDP does not shard
OPTIMIZERS = ("adamw", "adamw_8bit")
DEVICES = ("cuda", "mps", "cpu")
MOST = 10**9  # of anything that is counted


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
    packed: str
    server: str
    trainer: str
    gpus: int
    base_format: str
    examples: int | None
    effective_batch_size: int
    optimizer: str
    sequence_length: int
    device: str
    bfloat16: bool

    @property
    def config(self) -> Any:
        """The model's configuration of transformers."""
        return self.shape.config

    @property
    def came_packed(self) -> bool:
        """Whether the base comes in 4 bits."""
        return self.base_format != "16-bit"

    @property
    def named(self) -> str:
        """The model as `recommend` takes it to get this very checkpoint, in Python."""
        if self.model_id == "path/to/your/model":
            return "config"  # an object that has no name
        known = self.model_id in (HUB.get(self.label), f"path/to/your-{self.base_format}-checkpoint")
        return repr(self.label if known else self.model_id)

    @property
    def r(self) -> int:
        """Rank: 16, the course's; 8 where memory is first."""
        return 8 if self.priority == "memory" else 16

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations that are not packed; most processors are slow in 16 bits.

        transformers casts a base packed by AWQ from bfloat16 to float16 on a GPU.
        """
        if self.device == "cpu" or (self.device == "mps" and not self.bfloat16):  # where float16 has no loss scaling
            return torch.float32
        return torch.bfloat16 if self.bfloat16 and self.base_format != "awq" else torch.float16

    @property
    def trained_as_served(self) -> bool:
        """Whether the adapter will stand beside the very weights, packed as NF4, that it is trained over."""
        return self.inference == "4-bit" and self.packed == "nf4"

    @property
    def may_lack_a_chat_template(self) -> bool:
        """Whether the checkpoint goes by the name of a base model, which no chat was taught."""
        named = "/" in self.model_id and not self.model_id.startswith("path/to/") and not Path(self.model_id).is_dir()
        return named and not re.search(_CHATS, self.model_id)

    def with_model(self, model: Any) -> Request:
        """The same constraints for another model."""
        label, model_id, config = look_up(model, self.base_format)
        return replace(self, label=label, model_id=model_id, shape=Shape(config.to_json_string(), config))

    def over_16_bits(self) -> Request:
        """The same constraints over the 16-bit checkpoint that a packed base was made from."""
        if not self.came_packed:
            return self
        model_id = HUB.get(self.label, "path/to/the-16-bit-checkpoint")
        packed = _format(self.inference, self.packed, self.server, "16-bit")
        return replace(self, base_format="16-bit", model_id=model_id, packed=packed)

    def served(self, inference: str) -> Request:
        """The same constraints for another way to serve, packed as the server reads it."""
        kept = self.packed if inference == "4-bit" or inference == self.inference else "no"
        return replace(self, inference=inference, packed=_format(inference, kept, self.server, self.base_format))


def parse_request(vram_gb: float, model: Any, **given: Any) -> Request:
    """The arguments of `recommend`, checked.

    Raises:
        ValueError, SetupError: as in `recommend`.
    """
    for name, known in _CHOICES.items():
        given[name] = given[name].lower() if isinstance(given[name], str) else given[name]  # vLLM, TGI, Ollama
        if given[name] not in known:
            raise ValueError(f"{name} is {given[name]!r}, but one of {', '.join(known)} is expected.")
    if isinstance(vram_gb, bool) or not isinstance(vram_gb, numbers.Real) or not 0 < vram_gb < 10_000:
        raise ValueError(f"vram_gb is {vram_gb!r}, but the memory of a GPU in GB is expected, such as 16.")
    one = given["trainer"] == "one gpu"
    given["gpus"] = given["gpus"] if given["gpus"] is not None else 1 if one else 2
    for name in ("sequence_length", "effective_batch_size", "gpus", "examples"):
        if name != "examples" or given[name] is not None:
            (given[name],) = whole(**{name: given[name]})
            if given[name] > MOST:
                raise ValueError(f"{name} is larger than any there is: pass at most {MOST:,}.")
    if not isinstance(given["bfloat16"], bool | np.bool_):
        raise ValueError(f"bfloat16 is {given['bfloat16']!r}, but True or False is expected.")
    given["bfloat16"] = bool(given["bfloat16"])
    label, model_id, config = look_up(model, given["base_format"])
    require_language_model(config)
    if not all(isinstance(getattr(config, name, None), int) for name in ("num_key_value_heads", "intermediate_size")):
        raise ValueError(f"model is a {type(config).__name__}, but a Llama, or a model built like one, is expected.")
    packed_as = quantization_method(config)
    if packed_as and packed_as != given["base_format"]:
        known = f"pass base_format={packed_as!r}" if packed_as in BASE_FORMATS else "take the 16-bit model it came from"
        raise ValueError(f"{label} comes packed by {packed_as}: {known}.")
    given["packed"] = _format(*(given[name] for name in ("inference", "packed", "server", "base_format")))
    request = Request(float(vram_gb), label, model_id, Shape(config.to_json_string(), config), **given)
    if problem := contradiction(request):
        raise ValueError(problem)
    return request


# In the names of models that were taught to chat; Qwen3 and Phi-4 say it of their base models alone.
_CHATS = re.compile(r"instruct|chat|-it\b|\br1\b|assistant|hermes|zephyr|aya|(qwen3|phi-4)(?!.*base)", flags=re.I)


_CHOICES: dict[str, tuple[str, ...]] = {
    "priority": PRIORITIES,
    "inference": INFERENCE,
    "packed": PACKED,
    "server": (*SERVERS,),
    "trainer": TRAINERS,
    "base_format": BASE_FORMATS,
    "optimizer": OPTIMIZERS,
    "device": DEVICES,
}


def _format(inference: str, packed: str, server: str, base_format: str) -> str:
    """How the served weights are packed: where it is left open, as the server reads a packed base."""
    open_ = inference == "4-bit" and packed == "no" and base_format == "16-bit"  # what came packed stays as it came
    return SERVERS[server][1] if open_ else packed


def contradiction(request: Request) -> str | None:
    """Why no answer can hold for these constraints together, in a sentence."""
    context = getattr(request.config, "max_position_embeddings", None)
    if context and request.sequence_length > context:
        return f"sequence_length is {request.sequence_length}, but {request.label} reads at most {context} tokens."
    if request.came_packed and request.packed not in ("no", request.base_format):
        return f"packed is {request.packed!r}, but the base came packed as {request.base_format}: leave packed out."
    if request.came_packed and "gguf" in SERVERS[request.server]:
        return f"base_format is {request.base_format!r}, but {request.server} reads GGUF alone: take the 16-bit base."
    if request.packed not in SERVERS[request.server]:
        formats = ", ".join(SERVERS[request.server])
        return f"packed is {request.packed!r}, but {request.server} reads one of {formats}."
    if request.inference == "unmerged" and request.packed != "no":
        return f"packed is {request.packed!r}: for an adapter beside a packed base, pass inference='4-bit'."
    if (request.trainer == "one gpu") != (request.gpus == 1):
        return f"trainer is {request.trainer!r} and gpus {request.gpus}: several GPUs need 'fsdp' or 'deepspeed'."
    if request.device != "cuda" and request.trainer != "one gpu":
        return f"device is {request.device!r} and trainer {request.trainer!r}, which needs several CUDA devices."
    if request.trainer == "fsdp" and request.base_format in WHOLE_ON_EACH_GPU:
        packed = f"base_format is {request.base_format!r}, whose packed weights FSDP does not shard"
        return f"{packed}: take the 16-bit base, or one GPU that holds all of it."
    if request.optimizer == "adamw_8bit" and request.device == "mps":
        return "optimizer is 'adamw_8bit', which bitsandbytes does not have for mps: pass 'adamw'."
    if request.optimizer == "adamw_8bit" and request.trainer == "fsdp":
        return "optimizer is 'adamw_8bit', which stops at the tensors that FSDP shards: pass 'adamw'."
    return None
