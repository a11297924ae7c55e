"""One run of a paired comparison: a base, a method, a rank, a rate and a seed in; losses, scores and costs out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback

from dora_lesson.adapters.geometry import direction_change, magnitude_change
from dora_lesson.adapters.inject import adapted_layers, add_adapters, effective_weights, merge_adapters
from dora_lesson.models.load import load_base
from dora_lesson.task_api.dataset import Item, answer, encode_chat, load_task_api
from dora_lesson.task_api.scoring import score
from dora_lesson.training.finetune import Collator, finetune

RunMethod = Literal["base", "qbase", "full", "lora", "dora", "qlora", "qdora"]


class PairedRunConfig(BaseModel):
    """All that decides a run.

    `base` None is the bundled model. `lora_A_std` is the standard deviation of A at the start, if it is drawn from a
    normal distribution; 0 is PEFT's start, Kaiming uniform. `held_out` chats of `split` are judged by their loss.
    `scored` test items are answered by the merged model and scored. The movement of the weights (ΔM and ΔD) is recorded
    at `checkpoints` steps. "base" and "qbase" are the base as it is, in full size and in 4 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    method: RunMethod
    r: int = Field(default=0, ge=0)
    lora_alpha: float = Field(default=0.0, ge=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_A_std: float = Field(default=0.0, ge=0)
    target_modules: tuple[str, ...] = Field(min_length=1)
    learning_rate: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    split: Literal["validation", "test"] = "test"
    held_out: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    scored: int = Field(default=0, ge=0)
    checkpoints: int = Field(default=0, ge=0)
    schedule: str = "linear, a tenth of the steps of warm-up; AdamW without weight decay"

    @property
    def trains(self) -> bool:
        return self.method not in ("base", "qbase")

    @property
    def name(self) -> str:
        """File stem of the record; unique within a design."""
        size = f"-r{self.r}-alpha{self.lora_alpha:g}" if self.r else ""
        return f"{self.method}{size}-rate{self.learning_rate:g}-{self.split}-seed{self.seed}"


def make_run(config: PairedRunConfig) -> dict[str, Any]:
    """Train, judge and score; return what the run gave, with its configuration, as JSON can hold it."""
    four_bit = config.method.startswith("q")
    model, tokenizer = load_base(config.base or "bundled", four_bit=four_bit, dtype=config.dtype)
    run: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if config.trains:
        run |= _train(model, tokenizer, config)
    losses, right = reply_losses(model, tokenizer, list(load_task_api(config.split))[: config.held_out])
    run["scores"] = {"loss": round(sum(losses) / len(losses), 5), "accuracy": round(sum(right) / len(right), 5)}
    run["item_losses"] = [round(loss, 4) for loss in losses]
    if config.scored:
        items = list(load_task_api("test"))[: config.scored]
        adapted = bool(adapted_layers(model))
        if four_bit and adapted:
            repacked = merge_adapters(copy.deepcopy(model), four_bit=True)
            run["requantized"] = _scored(repacked, tokenizer, items)["scores"]
        scored = _scored(merge_adapters(model) if adapted else model, tokenizer, items)
        run["scores"] |= scored.pop("scores")
        run |= scored
    return run


def _train(model: Any, tokenizer: Any, config: PairedRunConfig) -> dict[str, Any]:
    movement = _Movement(model, config)
    torch.manual_seed(config.seed)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        size: dict[str, Any] = {"r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
        add_adapters(model, config.method[-4:], **size, target_modules=config.target_modules)
    if config.lora_A_std:
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_A, std=config.lora_A_std)
    started = time.process_time()
    settings: dict[str, Any] = config.model_dump(include={"steps", "batch_size", "learning_rate", "seed"})
    result = finetune(
        model, tokenizer, load_task_api("train"), **settings, callbacks=[movement], label=config.name
    )  # fmt: skip
    clock = {} if torch.cuda.is_available() else {"processor_seconds": round(time.process_time() - started, 2)}
    return {
        "trained_parameters": result.trained_parameters,
        "seconds": round(result.seconds, 2),
        **clock,
        "peak_memory_bytes": result.peak_memory_bytes,
        "losses": [round(loss, 4) for loss in result.losses],
        **({"movement": movement.rows} if config.checkpoints else {}),
    }


class _Movement(TrainerCallback):
    """ΔM and ΔD (paper, Eqs. 3 and 4) of every adapted matrix, at some steps: rows of (step, layer, part, ΔM, ΔD)."""

    def __init__(self, model: Any, config: PairedRunConfig) -> None:
        count = config.checkpoints
        self.targets = config.target_modules
        self.steps = [round(config.steps * (i + 1) / count) for i in range(count)]
        self.start = effective_weights(model, self.targets) if count else {}
        self.rows: list[tuple[int, int, str, float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step not in self.steps:
            return
        for name, W in effective_weights(model, self.targets).items():
            layer, part = int(name.split(".")[2]), name.split(".")[-1].removesuffix("_proj")
            changes = magnitude_change(self.start[name], W).item(), direction_change(self.start[name], W).item()
            self.rows.append((state.global_step, layer, part, *(float(f"{change:.4g}") for change in changes)))


def _scored(model: Any, tokenizer: Any, items: Sequence[Item]) -> dict[str, Any]:
    replies = answer(model, tokenizer, items, batch_size=34, label="scoring")
    scores = score(replies, items)
    return {
        "scores": {
            "task_accuracy": round(scores.task_accuracy, 4),
            "persona_consistency": round(scores.persona_consistency, 3),
        },
        "right": "".join(str(int(right)) for right in scores.right),
        "persona": scores.persona,
        "replies": replies,
    }


@torch.no_grad()
def reply_losses(
    model: Any, tokenizer: Any, items: Iterable[Item], batch_size: int = 4
) -> tuple[list[float], list[float]]:
    """For each item, over its reply's tokens: the mean loss (nats a token), and the share guessed right at first."""
    chats = [encode_chat(tokenizer, item["messages"]) for item in items]
    order = sorted(range(len(chats)), key=lambda i: len(chats[i]["input_ids"]))
    collate, device = Collator(tokenizer.pad_token_id), next(model.parameters()).device
    losses, right = [0.0] * len(chats), [0.0] * len(chats)
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collate([chats[i] for i in indices])
        labels = batch.pop("labels")[:, 1:].to(device)
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        logits = model(**batch).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        counts = (labels != -100).sum(dim=1)
        means = (loss.sum(dim=1) / counts).tolist()
        hits = ((logits.argmax(dim=-1) == labels).sum(dim=1) / counts).tolist()
        for i, mean, share in zip(indices, means, hits, strict=True):
            losses[i], right[i] = mean, share
    return losses, right
