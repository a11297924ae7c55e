"""Llamas by their shape alone: their published configurations."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from dora_lesson.core import DATA

# Sizes from the models' configurations on the hub; all are Llamas.
SHAPES: dict[str, dict[str, Any]] = json.loads((DATA / "shapes.json").read_text(encoding="utf-8"))


def spelled_alike(name: str) -> str:
    """A model's name without what people write differently: its owner, "Instruct", dots, dashes, capitals."""
    words = re.findall(r"[a-z]+|[0-9]+", name.rsplit("/", 1)[-1].lower())
    return "-".join(word for word in words if word not in ("instruct", "chat", "hf", "meta"))


SHAPE_OF = {spelled_alike(shape): shape for shape in SHAPES} | {"bundled": "smollm2-135m"}


def llama_config(name: str) -> Any:
    """The configuration of a published Llama, without network or account, by its name as people write it.

    Raises:
        ValueError: a name that is not among `SHAPES`.
    """
    from transformers import LlamaConfig

    shape = name if name in [*SHAPES] else SHAPE_OF.get(spelled_alike(str(name)))
    if shape is None:
        raise ValueError(f"The shape is {name!r}, but one of {', '.join(SHAPES)} is expected.")
    return LlamaConfig(**SHAPES[shape])


def require_language_model(config: Any) -> None:
    """Refuse a configuration that is not one of a dense language model, in a sentence."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

    kind = type(config).__name__
    if not isinstance(config, PretrainedConfig):
        raise ValueError(f"config is a {kind}, but a configuration is expected, such as llama_config('llama-3.1-8b').")
    if inner := getattr(config, "text_config", None):
        dense = type(inner) in MODEL_FOR_CAUSAL_LM_MAPPING and not _experts(inner)
        todo = "pass its text_config, which is the language model's" if dense else "take a language model alone"
        raise ValueError(f"{kind} is of a multimodal model, which is not counted here: {todo}.")
    if experts := _experts(config):
        raise ValueError(f"{kind} is of a mixture of experts ({experts}), which is not counted here: try a dense one.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is not of a causal language model: try one such as llama_config('llama-3.1-8b').")


def _experts(config: Any) -> str | None:
    """The name under which a configuration says how many experts there are, if there are any."""
    counts = {name: value for name, value in vars(config).items() if re.search("num_experts|_experts$", name)}
    return next((name for name, value in counts.items() if isinstance(value, int) and value > 0), None)


def quantization_method(config: Any) -> str | None:
    """The method that a checkpoint's weights are packed by, as its configuration names it, or None."""
    packed = getattr(config, "quantization_config", None) or {}
    method = packed.get("quant_method") if isinstance(packed, dict) else getattr(packed, "quant_method", None)
    return str(getattr(method, "value", method)) if method else None


def on_meta(config: Any) -> Any:
    """The model of this configuration without memory behind it; made once, for it takes a tenth of a second.

    Raises:
        ValueError: there is no such model, or it cannot be counted.
    """
    from transformers import AutoModelForCausalLM

    require_language_model(config)
    key = (type(config), config.to_json_string())
    if key not in _made:
        try:
            with torch.device("meta"):
                _made[key] = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # each kind of model checks its configuration in its own way, or not at all
            raise ValueError(f"{type(config).__name__} makes no model ({error}): look at its values.") from error
    return _made[key]


_made: dict[Any, Any] = {}
