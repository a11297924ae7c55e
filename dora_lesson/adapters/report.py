"""Say which adapters a model holds, what they train, and whether that is DoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from dora_lesson.adapters.layers import LoRALinear
from dora_lesson.adapters.linear4bit import frozen_weight


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
        """Whether every adapted layer has a trainable magnitude."""
        return self.method == "DoRA" and not self.problems

    def __repr__(self) -> str:
        total = ("all", sum(row[1] for row in self.rows), self.trainable, sum(row[3] for row in self.rows))
        lines = [f"{'part':10} layers  trainable    formula"]
        lines += [f"{row[0]:10} {row[1]:6} {row[2]:10,} {row[3]:10,}" for row in [*self.rows, total]]
        moved = {None: "", True: "; magnitudes have moved", False: "; magnitudes are where they started"}
        return "\n".join([*lines, f"method: {self.method}{moved[self.magnitude_moved]}", *self.problems])


def adapter_report(model: nn.Module) -> AdapterReport:
    """Count what the adapters in a model train, by part and against the formula, and say which method they are.

    Works for this package's layers and for PEFT's. The formula is r (d_in + d_out) a layer, and d_out more for DoRA.

    Raises:
        ValueError: the model has no adapters.
    """
    rows: dict[str, list[int]] = {}
    kinds: set[str] = set()
    problems: list[str] = []
    moved: list[bool] = []
    for name, layer in model.named_modules():
        parts = _parts(layer)
        if parts is None:
            continue
        base, A, B, m = parts
        kinds.add("LoRA" if m is None else "DoRA")
        row = rows.setdefault(name.split(".")[-1], [0, 0, 0])
        row[0] += 1
        row[1] += sum(t.numel() for t in (A, B, m) if t is not None and t.requires_grad)
        row[2] += A.shape[0] * (A.shape[1] + B.shape[0]) + (0 if m is None else B.shape[0])
        if m is not None:
            if A.requires_grad and not m.requires_grad:
                problems.append(f"{name}: A and B train, but the magnitude is frozen.")
            if not base.weight.is_meta:
                start = vector_norm(frozen_weight(base), dim=1, dtype=m.dtype)
                moved.append(not torch.allclose(m.detach(), start, rtol=1e-6))
    if not rows:
        raise ValueError("The model has no adapters: add them first.")
    method = kinds.pop() if len(kinds) == 1 else "a mixture of LoRA and DoRA"
    table = [(part, *row) for part, row in rows.items()]
    return AdapterReport(table, method, problems, any(moved) if moved else None)  # type: ignore[arg-type]


def _parts(layer: nn.Module) -> tuple[Any, Tensor, Tensor, Tensor | None] | None:
    """The base layer, A, B and m (None for LoRA) of an adapted layer, this package's or PEFT's; None for any other."""
    if isinstance(layer, LoRALinear):
        return layer.base, layer.lora_A, layer.lora_B, getattr(layer, "magnitude", None)
    if not hasattr(layer, "base_layer") or not getattr(layer, "lora_A", None):
        return None
    adapter = next(iter(layer.lora_A))  # type: ignore[arg-type]
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight  # type: ignore[index, operator, union-attr]
    vectors: Any = getattr(layer, "lora_magnitude_vector", {})
    m = vectors[adapter].weight if adapter in vectors else None
    return layer.base_layer, A, B, m
