"""What a recorded run holds besides its losses: how its weights moved, and the scores of its replies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from dora_lesson.adapters.geometry import direction_change, magnitude_change
from dora_lesson.adapters.inject import adapted_layers, effective_weights, merge_adapters
from dora_lesson.task_api.dataset import Item, answer, load_task_api
from dora_lesson.task_api.scoring import score
from dora_lesson.training.paired_run import PairedRunConfig


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
            layer, part = int(name.split(".")[2]), name.split(".")[-1].removesuffix("_proj")
            changes = magnitude_change(self.start[name], W).item(), direction_change(self.start[name], W).item()
            self.rows.append((state.global_step, layer, part, *(float(f"{change:.4g}") for change in changes)))


def scored_replies(model: Any, tokenizer: Any, count: int) -> dict[str, Any]:
    """Scores of the replies to the first `count` test items, the adapter merged; over 4 bits also packed again."""
    items = list(load_task_api("test"))[:count]
    adapters = adapted_layers(model)
    entries = {}
    if adapters and getattr(model, "is_quantized", False):
        repacked = merge_adapters(copy.deepcopy(model), four_bit=True)
        entries["requantized"] = _scored(repacked, tokenizer, items)["reply_scores"]
    return entries | _scored(merge_adapters(model) if adapters else model, tokenizer, items)


def _scored(model: Any, tokenizer: Any, items: Sequence[Item]) -> dict[str, Any]:
    replies = answer(model, tokenizer, items, batch_size=34, label="scoring")
    scores = score(replies, items)
    return {
        "reply_scores": {
            "task_accuracy": round(scores.task_accuracy, 4),
            "persona_consistency": round(scores.persona_consistency, 3),
        },
        "right": "".join(str(int(right)) for right in scores.right),
        "persona": scores.persona,
        "replies": replies,
    }
