"""One run of a paired comparison: a base, a method, a rank, a rate and a seed in; a record out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dora_lesson.adapters.inject import adapted_layers, add_adapters
from dora_lesson.models.load import load_base
from dora_lesson.task_api.dataset import Item, encode_chat, load_task_api
from dora_lesson.training.finetune import Collator, finetune


@dataclass(frozen=True)
class Setting:
    """All that decides a run.

    `base` None is the bundled model. `A_spread` is the standard deviation of A at the start, if it is drawn from a
    normal distribution; 0 is PEFT's start, Kaiming uniform.
    """

    base: str | None
    method: str
    r: int
    lora_alpha: float
    lora_dropout: float
    A_spread: float
    target_modules: tuple[str, ...]
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    split: str
    held_out: int
    dtype: str
    schedule: str = "linear, a tenth of the steps of warm-up; AdamW without weight decay"

    @property
    def name(self) -> str:
        """Of the record's file: what tells the runs of one design apart."""
        size = f"-r{self.r}-alpha{self.lora_alpha:g}" if self.r else ""
        return f"{self.method}{size}-rate{self.learning_rate:g}-{self.split}-seed{self.seed}"


def one_run(setting: Setting) -> dict[str, Any]:
    """Train, judge on the held-out chats, and return what the run gave, with its setting."""
    four_bit = setting.method.startswith("q")
    model, tokenizer = load_base(setting.base or "bundled", four_bit=four_bit, dtype=setting.dtype)
    torch.manual_seed(setting.seed)
    if setting.method == "full":
        model.requires_grad_(True)
    else:
        size: dict[str, Any] = {"r": setting.r, "lora_alpha": setting.lora_alpha, "lora_dropout": setting.lora_dropout}
        add_adapters(model, setting.method[-4:], **size, target_modules=setting.target_modules)
    if setting.A_spread:
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_A, std=setting.A_spread)
    began = time.process_time()
    result = finetune(
        model, tokenizer, load_task_api("train"), steps=setting.steps, batch_size=setting.batch_size,
        learning_rate=setting.learning_rate, seed=setting.seed, label=setting.name,
    )  # fmt: skip
    spent = time.process_time() - began
    clock = {} if torch.cuda.is_available() else {"processor_seconds": round(spent, 2)}
    losses, right = reply_losses(model, tokenizer, list(load_task_api(setting.split))[: setting.held_out])
    return {
        "config": as_config(setting),
        "trained_parameters": result.trained_parameters,
        "seconds": round(result.seconds, 2),
        **clock,
        "peak_memory_bytes": result.peak_memory_bytes,
        "losses": [round(loss, 4) for loss in result.losses],
        "scores": {"loss": round(sum(losses) / len(losses), 5), "accuracy": round(sum(right) / len(right), 5)},
        "item_losses": [round(loss, 4) for loss in losses],
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
        chosen = order[start : start + batch_size]
        batch = collate([chats[i] for i in chosen])
        labels = batch.pop("labels")[:, 1:].to(device)
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        logits = model(**batch).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        counts = (labels != -100).sum(dim=1)
        means = (loss.sum(dim=1) / counts).tolist()
        hits = ((logits.argmax(dim=-1) == labels).sum(dim=1) / counts).tolist()
        for i, mean, share in zip(chosen, means, hits, strict=True):
            losses[i], right[i] = mean, share
    return losses, right


def as_config(setting: Setting) -> dict[str, Any]:
    return {**dataclasses.asdict(setting), "target_modules": list(setting.target_modules)}
