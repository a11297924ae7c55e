"""What a model costs by its configuration alone: parameters, and the bytes of fine-tuning it, part by part."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dora_lesson.adapters.inject import add_adapters, matching_linears
from dora_lesson.core import whole
from dora_lesson.memory.peft_extra import peft_extra
from dora_lesson.memory.shapes import on_meta
from dora_lesson.memory.tracking import saved_by

METHODS = ("full", "lora", "dora", "qlora", "qdora")
# Bytes of states for a trained parameter; 8-bit AdamW has a float32 scale for 256 elements of either state.
OPTIMIZERS = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "sgd": 0.0}
_BLOCK, _SECOND_BLOCK = 64, 256  # weights that share a scale, and scales that share one (QLoRA paper, section 3)
_TABLES = 4 * (16 + 256 + 1)  # a layer's 16 levels, the 256 levels of its scales, and their mean


def trainable_count(module: nn.Module) -> int:
    """Number of trainable parameters of a layer or a model."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def adapter_parameters(
    config: Any, method: str = "dora", *, r: int, target_modules: str | Sequence[str] = "all-linear"
) -> tuple[int, int]:
    """`(trainable, total)` parameters of a model with adapters, exactly, without loading or making its weights.

    Trainable are r (d_in + d_out) a layer for LoRA (paper: Hu et al., section 4.1) and d_out more for DoRA; total is
    the base's parameters and these.

    Args:
        config: a configuration of transformers, such as `AutoConfig.from_pretrained(...)` or `LlamaConfig(...)`.
        method: "dora" or "lora".
        r: rank, an integer from 1.
        target_modules: as in PEFT.

    Raises:
        ValueError: an unknown method, a rank below 1, or names that match nothing.
    """
    if method not in ("lora", "dora"):
        raise ValueError(f"method is {method!r}, but one of lora, dora is expected.")
    (r,) = whole(r=r)
    model = on_meta(config)
    layers = [model.get_submodule(name) for name in matching_linears(model, target_modules)]
    trainable = sum(r * (x.in_features + x.out_features) + (method == "dora") * x.out_features for x in layers)
    return trainable, sum(p.numel() for p in model.parameters()) + trainable


@dataclass(frozen=True, repr=False)
class MemoryEstimate:
    """Bytes by part, as `estimate` computes them; `held` between steps, `total` at the peak of a step."""

    method: str
    parts: dict[str, int]
    accumulates: bool = False

    @property
    def held(self) -> int:
        """Bytes that stay between steps: weights, constants, adapters, optimizer states."""
        return sum(size for part, size in self.parts.items() if part not in _PASSING)

    @property
    def total(self) -> int:
        """Bytes at the peak: what is held, and the larger of what one pass keeps and all gradients at its end.

        Gradients grow while activations are freed, so that the two are not there at once, unless several passes are
        accumulated into one step.
        """
        passing = self.parts["activations"] + self.parts["temporaries"]
        gradients = self.parts["gradients"]
        return self.held + (passing + gradients if self.accumulates else max(passing, gradients))

    def __repr__(self) -> str:
        lines = [f"{part:22} {size / 1e6:11,.1f} MB" for part, size in self.parts.items()]
        return "\n".join([*lines, f"{'peak':22} {self.total / 1e6:11,.1f} MB  ({self.method})"])


_PASSING = ("gradients", "activations", "temporaries")


def estimate(
    config: Any,
    method: str,
    *,
    batch_size: int,
    sequence_length: int,
    r: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
    dtype: torch.dtype | str = torch.bfloat16,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    gradient_accumulation_steps: int = 1,
    double_quantization: bool = True,
    reply_length: int | None = None,
    peft: bool = False,
) -> MemoryEstimate:
    """Bytes of fine-tuning a model of this configuration, part by part, without its weights.

    With P parameters of the model, Q of them in linear layers other than the output, N trained ones and e bytes an
    element of `dtype`:

    - weights: e P; in 4 bits e (P − Q) + Q / 2 (QLoRA paper, section 3).
    - quantization constants: for a layer with n = d_in d_out / 64 blocks, n + 4 ⌈n / 256⌉ and 1,092 bytes of tables
      with double quantization, else 4 n + 64.
    - adapters: 4 N, and for DoRA 4 a magnitude, for the ‖W‖ that the layer keeps.
    - gradients: 4 N; for full fine-tuning e P, and twice the embedding more where it is the output layer too, whose two
      gradients are made apart and then added.
    - optimizer states: 8 N for AdamW in float32, 2.03 N in 8 bits (Dettmers et al., arXiv 2110.02861), 0 for plain SGD;
      full fine-tuning in 16 bits adds 4 P for the float32 copy of the weights (ZeRO, Rajbhandari et al., arXiv
      1910.02054, section 3.1: 16 bytes in all; whoever steps 16-bit weights without that copy holds half).
    - activations: counted, by running one and two blocks of this shape without memory behind the tensors and adding up
      what autograd saves. A DoRA layer saves its product x Vᵀ besides: e tokens d_out. In float16 both adapters
      multiply in float32, as PEFT's do, and save float32. With gradient checkpointing, the input of each block, e
      tokens hidden, and the larger of the loss's share and one block's (Chen et al., arXiv 1604.06174).
    - temporaries: two float32 gradients on the way back through the loss, 8 bytes a logit; or the largest weight
      unpacked from 4 bits, if that is larger.

    The layers are this package's, or with `peft` PEFT's (`peft_extra`), without dropout; batches are padded. Left out
    are what the process, the CUDA context (up to 1 GB) and the allocator's gaps take, work inside one block of the
    backward pass, what an optimizer's step forms unless it is fused (up to 4 bytes a trained number), and the scores of
    all pairs of tokens where a card has no fused attention for the case. Measured steps peak within 1 % on the bundled
    model, for all five methods, and within 5 % (12 % with checkpointing) where blocks outweigh the loss.

    Args:
        config: a configuration of transformers.
        method: full, lora, dora, qlora or qdora.
        batch_size, sequence_length: of one pass.
        reply_length: how many of its last positions a sequence is given logits for, as `finetune` asks for those of the
            replies alone; None is all.
        r, target_modules: as in PEFT; without effect for full fine-tuning.
        dtype: of weights and activations; for 4 bits, of what is not packed and of the products.
        optimizer: adamw, adamw_8bit or sgd.
        gradient_checkpointing: whether blocks are run again in the backward pass.
        gradient_accumulation_steps: passes a step.
        double_quantization: whether the scales of 4-bit weights are packed too.
        peft: whether the adapters are PEFT's, which save and form more.

    Raises:
        ValueError: an unknown method or optimizer, a number below 1, or names that match nothing.
    """
    for name, value, known in [("method", method, METHODS), ("optimizer", optimizer, tuple(OPTIMIZERS))]:
        if value not in known:
            raise ValueError(f"{name} is {value!r}, but one of {', '.join(known)} is expected.")
    flags = {"gradient_checkpointing": gradient_checkpointing, "double_quantization": double_quantization, "peft": peft}
    for flag, is_on in flags.items():
        if is_on not in (True, False):  # NumPy's are among them
            raise ValueError(f"{flag} is {is_on!r}, but True or False is expected.")
    dtype = _dtype(dtype)
    r, batch_size, sequence_length = whole(r=r, batch_size=batch_size, sequence_length=sequence_length)
    reply = sequence_length if reply_length is None else reply_length
    passes, reply = whole(gradient_accumulation_steps=gradient_accumulation_steps, reply_length=reply)
    model, e = on_meta(config), dtype.itemsize
    linears = [] if method == "full" else [model.get_submodule(name) for name in matching_linears(model, "all-linear")]
    names = [] if method == "full" else matching_linears(model, target_modules)
    adapted = [model.get_submodule(name) for name in names]
    P, V = sum(p.numel() for p in model.parameters()), config.vocab_size
    Q = sum(layer.weight.numel() for layer in linears) if method.startswith("q") else 0
    N = sum(r * (layer.in_features + layer.out_features) for layer in adapted)
    outputs = sum(layer.out_features for layer in adapted) if method.endswith("dora") else 0
    full, tokens, width = method == "full", batch_size * sequence_length, max(4, e)  # width: of what an adapter trains
    states = int(OPTIMIZERS[optimizer] * (P if full else N + outputs)) + (4 * P if full and e < 4 else 0)
    tied = 2 * V * config.hidden_size if config.tie_word_embeddings else 0
    unpacked = max(layer.weight.numel() for layer in linears) * e if Q else 0
    reply = min(reply, sequence_length)
    # A name in full is of one block, and here all blocks are alike.
    kinds = target_modules if target_modules == "all-linear" else sorted({name.rpartition(".")[2] for name in names})
    one, two = _activations(config, None if full else (r, kinds), batch_size, sequence_length, reply, dtype)
    blocks = config.num_hidden_layers
    kept = 4 if dtype == torch.float16 else e  # of the product x Vᵀ; in float16 the adapters multiply in float32
    block, rest = two - one + kept * tokens * outputs // blocks, 2 * one - two
    temporaries = max(8 * batch_size * reply * V, unpacked)
    if gradient_checkpointing:  # one block is whole at a time, after the loss is done with
        if block + unpacked > rest + temporaries:
            rest, temporaries = block, unpacked
        block = e * tokens * config.hidden_size
    if peft and not full:
        saved, formed = peft_extra(method.endswith("dora"), adapted, tokens, blocks, gradient_checkpointing)
        rest, temporaries = rest + saved, temporaries + formed
    return MemoryEstimate(
        method,
        {
            "weights": e * (P - Q) + Q // 2,
            "quantization constants": sum(_constants(layer, double_quantization) for layer in linears) if Q else 0,
            "adapters": width * (N + 2 * outputs),
            "optimizer states": states,
            "gradients": e * (P + tied) if full else width * (N + outputs),
            "activations": rest + blocks * block,
            "temporaries": temporaries,
        },
        accumulates=passes > 1,
    )


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < 2:
        raise ValueError(f"dtype is {dtype!r}, but one such as torch.bfloat16 is expected.")
    return named


def _constants(layer: Any, double: bool) -> int:
    blocks = -(-layer.weight.numel() // _BLOCK)
    return blocks + 4 * -(-blocks // _SECOND_BLOCK) + _TABLES if double else 4 * blocks + 4 * 16


_remembered: dict[tuple[Any, ...], Any] = {}  # counts and shapes, which many estimates share


def _activations(
    config: Any, adapter: tuple[int, Any] | None, batch_size: int, length: int, reply: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes that autograd saves in a pass of fake tensors through one block and through two, with LoRA or whole."""
    key = (config.to_json_string(), config._attn_implementation, str(adapter), batch_size, length, reply, dtype)
    if key in _remembered:
        return _remembered[key]
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    sizes = []
    for blocks in (1, 2):
        small = copy.deepcopy(config)
        small.num_hidden_layers = blocks
        with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(), torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(small, dtype=dtype).train()
            if adapter is not None:
                add_adapters(model, "lora", r=adapter[0], lora_alpha=1, target_modules=adapter[1])
            tokens = torch.zeros(batch_size, length, dtype=torch.long)
            one_pass = {"input_ids": tokens, "labels": tokens[:, -reply:], "use_cache": False, "logits_to_keep": reply}
            sizes.append(saved_by(functools.partial(model, **one_pass), model.parameters))
    _remembered[key] = sizes[0], sizes[1]
    return _remembered[key]
