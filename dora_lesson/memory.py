"""What a layer trains, makes and keeps: parameters, its largest temporary, what it saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dora_lesson.adapters import matching_linears


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
    from transformers import AutoModelForCausalLM

    if method not in ("lora", "dora"):
        raise ValueError(f"method is {method!r}, but one of lora, dora is expected.")
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"r is {r!r}, but a whole number from 1 is expected.")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = [model.get_submodule(name) for name in matching_linears(model, target_modules)]
    trainable = sum(r * (x.in_features + x.out_features) + (method == "dora") * x.out_features for x in layers)
    return trainable, sum(p.numel() for p in model.parameters()) + trainable


def largest_temporary(function: Callable[..., Any], *args: Any) -> int:
    """Elements of the largest tensor that `function(*args)` makes on its way, views of older tensors left out."""
    with _LargestTensor() as largest:
        function(*args)
    return largest.elements


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd saves in one forward pass of `x` (..., d_in), each storage counted once.

    What the layer holds anyway is left out: parameters, buffers and, in a `DoRALinear`, the two vectors ‖W‖ and ‖V‖.
    """
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    held = [*layer.parameters(), *layer.buffers(), *(t for _, t in getattr(layer, "_kept", {}).values())]
    own = {_storage(t) for t in held}
    return sum({_storage(t): t.untyped_storage().nbytes() for t in saved if _storage(t) not in own}.values())


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        older = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and _storage(t) not in older:
                self.elements = max(self.elements, t.numel())
        return out
