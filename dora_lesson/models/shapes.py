"""Llamas by their shape alone: published configurations, random weights of that shape, and what a step on them takes.

Time and memory of a training step depend on shapes and not on what the weights are, so that an 8B model can be measured
with no download.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from dora_lesson.adapters.inject import add_adapters, matching_linears, remove_adapters, replace_module
from dora_lesson.environment import SetupError, four_bit_problem
from dora_lesson.memory.estimate import estimate
from dora_lesson.memory.tracking import measure
from dora_lesson.models.load import default_device, free_bytes, has_bfloat16

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

    In 4 bits (NF4, double quantisation) no more than one layer is ever there unpacked.
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


def measure_shape(
    name: str, *, tokens: int = 512, r: int = 16, rounds: int = 5, device: torch.device | None = None
) -> list[dict[str, Any]]:
    """Time and peak memory of one training step of LoRA and DoRA, PEFT's and this package's, in 16 and in 4 bits.

    All linear layers are adapted; AdamW; one sequence of `tokens` tokens. Times are medians of `rounds` steps after two
    that are not counted. A method that the estimate says does not fit is left out, and says so.

    Returns:
        Rows with method, by (PEFT or dora_lesson), seconds a step and peak bytes (None where not run), expected bytes
        (None for PEFT's layers) and note.

    Raises:
        ValueError: an unknown shape, or `rounds` below 1.
        SetupError: 4-bit layers do not work here.
    """
    config, device = llama_config(name), device or default_device()
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but at least one timed step is expected.")
    if problem := four_bit_problem(device):
        raise SetupError(f"4-bit layers do not work here ({problem}).")
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float16
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=8, desc=name, leave=False, disable=None)
    for bits, kinds in ((16, ("lora", "dora")), (4, ("qlora", "qdora"))):
        expected = {k: estimate(config, k, batch_size=1, sequence_length=tokens, r=r, dtype=dtype).total for k in kinds}
        room = free_bytes(device)
        if min(expected.values()) > room:
            note = f"does not fit: {min(expected.values()) / 1e9:.1f} GB expected, {room / 1e9:.1f} GB there"
            none = {"seconds": None, "peak": None}
            rows += [{"method": k, "by": "dora_lesson", **none, "expected": expected[k], "note": note} for k in kinds]
            continue
        model = random_llama(config, four_bit=bits == 4, dtype=dtype, device=device)
        for kind in kinds:
            for by, adapted, undo in _adapted(model, kind[-4:], r):
                row = {
                    "method": kind,
                    "by": by,
                    "expected": expected[kind] if by == "dora_lesson" else None,
                    "note": "",
                }
                rows.append(row | _steps(adapted, tokens, rounds))
                undo()
                bar.update()
        del model, adapted, undo
    bar.close()
    return rows


def _adapted(model: Any, method: str, r: int) -> Iterator[tuple[str, Any, Any]]:
    """The model with PEFT's adapters and with this package's, one after the other, and what takes them off again."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", use_dora=method == "dora")
    peft = get_peft_model(model, config).train()
    yield "PEFT", peft, peft.unload
    ours = add_adapters(model, method, r=r, lora_alpha=2 * r, target_modules="all-linear").train()
    yield "dora_lesson", ours, lambda: remove_adapters(model)


def _steps(model: Any, tokens: int, rounds: int) -> dict[str, Any]:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    peak = measure(step, model, optimizer).total
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "peak": peak}
