"""Say which adapters a model holds, what they train, and whether that is DoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from dora_lesson.adapters.linear4bit import frozen_weight
from dora_lesson.adapters.lora import LoRALinear

_STARTS_AT_W = (True, None, "gaussian", "eva")  # PEFT's init_lora_weights with B = 0


@dataclass(repr=False)
class AdapterReport:
    """What `adapter_report` found: rows of (part, layers, trainable, formula), and the answer to "is it DoRA?"."""

    rows: list[tuple[str, int, int, int]]
    method: str
    problems: list[str]
    magnitude_moved: bool | None

    @property
    def trainable(self) -> int:
        """Trainable parameters of all adapters."""
        return sum(row[2] for row in self.rows)

    @property
    def is_dora(self) -> bool:
        """Whether every adapted layer has a magnitude, which trains where A or B does."""
        return self.method == "DoRA" and not self.problems

    def __repr__(self) -> str:
        total = ("all", sum(row[1] for row in self.rows), self.trainable, sum(row[3] for row in self.rows))
        lines = [f"{'part':10} layers  trainable    formula"]
        lines += [f"{row[0]:10} {row[1]:6} {row[2]:10,} {row[3]:10,}" for row in [*self.rows, total]]
        moved = {None: "", True: "; magnitudes have moved", False: "; magnitudes are where they started"}
        return "\n".join([*lines, f"method: {self.method}{moved[self.magnitude_moved]}", *self.problems])


def adapter_report(model: nn.Module) -> AdapterReport:
    """Count what the adapters in a model train, by part and against the formula, and say which method they are.

    Works for this package's layers and for PEFT's, of which it looks at the active adapters. The formula is
    r (d_in + d_out) a layer, and d_out more for DoRA. Whether magnitudes have moved is None where nobody can know:
    without DoRA, without weights, and after a start at which B A was not zero.

    Raises:
        ValueError: the model has no active adapters.
    """
    starts = {name: getattr(c, "init_lora_weights", None) for name, c in getattr(model, "peft_config", {}).items()}
    rows: dict[str, list[int]] = {}
    kinds: set[str] = set()
    problems: list[str] = []
    moved: list[bool | None] = []
    for name, module in model.named_modules():
        for part in adapters_of(module):
            kinds.add("LoRA" if part.magnitude is None else "DoRA")
            row = rows.setdefault(name.split(".")[-1], [0, 0, 0])
            row[0] += 1
            tensors = [t for t in (part.A, part.B, part.bias, part.magnitude) if t is not None]
            row[1] += sum(t.numel() for t in tensors if t.requires_grad)
            row[2] += sum(t.numel() for t in tensors)
            if part.magnitude is not None:
                if (part.A.requires_grad or part.B.requires_grad) and not part.magnitude.requires_grad:
                    problems.append(f"{name}: the update trains, but the magnitude is frozen.")
                known = starts.get(part.name, True) in _STARTS_AT_W and not getattr(module, "merged", False)
                moved.append(_has_moved(part.magnitude.detach(), part.base) if known else None)
    if not rows:
        raise ValueError("The model has no adapters that are switched on: add or enable them first.")
    method = kinds.pop() if len(kinds) == 1 else "a mixture of LoRA and DoRA"
    table = [(part, *row) for part, row in rows.items()]
    moved_at_all = None if None in moved or not moved else any(moved)
    return AdapterReport(table, method, problems, moved_at_all)  # type: ignore[arg-type]


class AdapterParts(NamedTuple):
    """One adapter over one layer, whoever made it; `magnitude` is None for LoRA."""

    base: Any
    A: Tensor
    B: Tensor
    magnitude: Tensor | None
    bias: Tensor | None  # of B, in PEFT with `lora_bias`
    r: int
    scaling: float
    lora_dropout: float
    name: str  # of the adapter, in PEFT; empty for this package's


def adapters_of(module: nn.Module) -> list[AdapterParts]:
    """The active adapters over a layer, this package's or PEFT's; empty for any other module."""
    layer: Any = module
    if isinstance(layer, LoRALinear):
        m = getattr(layer, "magnitude", None)
        A, B, p = layer.lora_A, layer.lora_B, layer.dropout.p
        return [AdapterParts(layer.base, A, B, m, None, layer.r, layer.scaling, p, "")]
    lora = hasattr(layer, "base_layer") and hasattr(layer, "lora_magnitude_vector")  # not AdaLoRA and its like
    if not lora or layer.disable_adapters:
        return []
    found = []
    for name in layer.active_adapters:
        bias = None
        if name in layer.lora_A:
            A, B, bias = layer.lora_A[name].weight, layer.lora_B[name].weight, getattr(layer.lora_B[name], "bias", None)
        elif name in layer.lora_embedding_A:
            A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        else:
            continue
        m = layer.lora_magnitude_vector[name].weight if name in layer.lora_magnitude_vector else None
        dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        base, r, scaling = layer.get_base_layer(), layer.r[name], layer.scaling[name]
        found.append(AdapterParts(base, A, B, m, bias, r, scaling, dropout, name))
    return found


def _has_moved(m: Tensor, base: Any) -> bool | None:
    """Whether a magnitude is elsewhere than at its start: ‖W‖ in float32 or, as PEFT takes it, in the base's dtype."""
    if base.weight.is_meta or not isinstance(base, nn.Linear):
        return None
    W = frozen_weight(base).detach()
    start, rounded = vector_norm(W, dim=1, dtype=m.dtype), torch.linalg.norm(W, dim=1).to(m.dtype)
    rtol = 2**-6 if getattr(base, "scales_are_rounded", False) else max(1e-6, torch.finfo(m.dtype).eps)
    near = torch.isclose(m, start, rtol=rtol, atol=0)
    return not bool((near | (m == rounded)).all())
