"""How far the weights of a model have moved in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from dora_lesson.adapters.geometry import direction_change, magnitude_change
from dora_lesson.adapters.inject import matching_linears
from dora_lesson.adapters.linear4bit import frozen_weight
from dora_lesson.adapters.lora import LoRALinear
from dora_lesson.evidence.paired_run import PairedRunConfig


@torch.no_grad()
def effective_weights(model: nn.Module, target_modules: str | Sequence[str]) -> dict[str, Tensor]:
    """Name to a copy of the weight (d_out, d_in) that each selected layer applies now, its adapter merged in."""
    layers = {name: model.get_submodule(name) for name in matching_linears(model, target_modules)}
    return {
        name: layer.merged_weight() if isinstance(layer, LoRALinear) else frozen_weight(layer).detach().clone()  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


class Movement(TrainerCallback):
    """ΔM and ΔD (paper, Eqs. 3 and 4) of every adapted matrix, at some steps: rows of (step, layer, part, ΔM, ΔD)."""

    def __init__(self, config: PairedRunConfig) -> None:
        self.targets = config.target_modules
        self.steps = [round(config.steps * (i + 1) / config.checkpoints) for i in range(config.checkpoints)]
        self.start: dict[str, Tensor] = {}
        self.rows: list[tuple[int, int, str, float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.start = effective_weights(model, self.targets) if self.steps else {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step not in self.steps:
            return
        for name, W in effective_weights(model, self.targets).items():
            numbers = [int(part) for part in name.split(".") if part.isdigit()]
            layer, part = numbers[0] if numbers else -1, name.split(".")[-1].removesuffix("_proj")
            changes = magnitude_change(self.start[name], W).item(), direction_change(self.start[name], W).item()
            self.rows.append((state.global_step, layer, part, *(float(f"{change:.4g}") for change in changes)))
