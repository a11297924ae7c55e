"""Llamas by their shape alone: published configurations, and models of random weights in that shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dora_lesson.adapters.inject import matching_linears, replace_module

# Sizes from the models' configurations on the hub; all are Llamas. Tied: the embedding is the output layer too.
_COMMON = {"vocab_size": 128256, "num_key_value_heads": 8, "rope_theta": 500000.0, "num_attention_heads": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _COMMON
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
    "llama-3.2-1b": _COMMON
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "llama-2-7b": {
        **{"vocab_size": 32000, "num_key_value_heads": 32, "rope_theta": 10000.0, "num_attention_heads": 32},
        **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "tie_word_embeddings": False},
    },
    "smollm2-1.7b": {
        **{"vocab_size": 49152, "num_key_value_heads": 32, "rope_theta": 130000.0, "num_attention_heads": 32},
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "tie_word_embeddings": True},
    },
    "smollm2-135m": {
        **{"vocab_size": 49152, "num_key_value_heads": 3, "rope_theta": 100000.0, "num_attention_heads": 9},
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "tie_word_embeddings": True},
    },
}


def llama_config(name: str) -> Any:
    """The configuration of a published Llama, without network or account.

    Raises:
        ValueError: a name that is not among `SHAPES`.
    """
    from transformers import LlamaConfig

    if name not in SHAPES:
        raise ValueError(f"The shape is {name!r}, but one of {', '.join(SHAPES)} is expected.")
    return LlamaConfig(**SHAPES[name])


def random_llama(config: Any, *, four_bit: bool, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of this configuration with random weights, made layer by layer on the device.

    In 4 bits (NF4, double quantization) no more than one layer is ever there unpacked.
    """
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    linears = matching_linears(model, "all-linear")
    for name in linears if four_bit else []:
        d_out, d_in = model.get_submodule(name).weight.shape
        layer = bnb.nn.Linear4bit(d_in, d_out, False, dtype, quant_type="nf4", device="meta")
        W = torch.randn(d_out, d_in, dtype=dtype, device=device) * 0.02
        layer.weight = bnb.nn.Params4bit(W, requires_grad=False, quant_type="nf4").to(device)
        replace_module(model, name, layer)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.is_meta:
                value = torch.ones(p.shape) if p.dim() == 1 else torch.randn(p.shape, device=device) * 0.02
                setattr(module, name, nn.Parameter(value.to(device, dtype)))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its buffers are no weights
    model.tie_weights()
    model.is_loaded_in_4bit = four_bit  # PEFT asks for it
    return model.requires_grad_(False).train()
