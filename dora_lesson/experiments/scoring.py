"""What a recorded run may hold besides its losses: the scores of its replies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from dora_lesson.adapters.inject import adapted_layers, merge_adapters
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.dataset import Item, load_task_api
from dora_lesson.task_api.scoring import score


def scored_replies(model: Any, tokenizer: Any, count: int, level: str = "plain") -> dict[str, Any]:
    """Scores of the replies to the first `count` test items, the adapter merged; over 4 bits also packed again."""
    items = list(load_task_api("test", level=level))[:count]
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
            "action_accuracy": round(scores.action_accuracy, 4),
            "persona_consistency": round(scores.persona_consistency, 3),
        },
        "right": "".join(str(int(right)) for right in scores.right),
        "persona": scores.persona,
    }
