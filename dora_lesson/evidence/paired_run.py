"""One run of a paired comparison: a base, a method, a rank, a rate and a seed in; losses, scores and costs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback

from dora_lesson.adapters.inject import adapted_layers, add_adapters
from dora_lesson.models.load import load_base
from dora_lesson.task_api.dataset import Item, encode_chat, load_task_api
from dora_lesson.training.finetune import Collator, finetune

RunMethod = Literal["base", "qbase", "full", "lora", "dora", "qlora", "qdora"]
RunLevel = Literal["plain", "spoken", "first edition"]


class PairedRunConfig(BaseModel):
    """All that decides a run.

    `base` None is the bundled model. `lora_A_std` is the standard deviation of A at the start, if it is drawn from a
    normal distribution; 0 is PEFT's start, Kaiming uniform. `level` is that of the Task API set, of which `held_out`
    chats of `split` are judged by their loss; the set of the first edition can only be read of in older records.
    "base" and "qbase" are the base as it is, in full size and in 4 bits. `experiments` also records how the weights
    moved, at `checkpoints` steps, and scores the replies to `scored` test items.
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
    level: RunLevel = "plain"
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


def make_run(
    config: PairedRunConfig,
    callbacks: Iterable[TrainerCallback] = (),
    score: Callable[[Any, Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train and judge; return what the run gave, with its configuration, as JSON can hold it.

    Args:
        config: all that decides the run.
        callbacks: for `finetune`.
        score: is given the trained model and its tokenizer, and returns further entries.
    """
    model, tokenizer = load_base(config.base or "bundled", four_bit=config.method[0] == "q", dtype=config.dtype)
    run: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if config.trains:
        run |= _train(model, tokenizer, config, callbacks)
    losses, right = reply_losses(
        model, tokenizer, list(load_task_api(config.split, level=config.level))[: config.held_out]
    )
    run["scores"] = {"loss": round(sum(losses) / len(losses), 5), "accuracy": round(sum(right) / len(right), 5)}
    run["item_losses"] = [round(loss, 4) for loss in losses]
    return run | (score(model, tokenizer) if score else {})


def _train(model: Any, tokenizer: Any, config: PairedRunConfig, callbacks: Iterable[TrainerCallback]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        size: dict[str, Any] = config.model_dump(include={"r", "lora_alpha", "lora_dropout", "target_modules"})
        add_adapters(model, config.method[-4:], **size)
    if config.lora_A_std:
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_A, std=config.lora_A_std)
    started = time.process_time()
    settings: dict[str, Any] = config.model_dump(include={"steps", "batch_size", "learning_rate", "seed"})
    result = finetune(
        model, tokenizer, load_task_api("train", level=config.level), **settings, callbacks=callbacks, label=config.name
    )
    clock = {} if torch.cuda.is_available() else {"processor_seconds": round(time.process_time() - started, 2)}
    return {
        "trained_parameters": result.trained_parameters,
        "seconds": round(result.seconds, 2),
        **clock,
        "peak_memory_bytes": result.peak_memory_bytes,
        "losses": [round(loss, 4) for loss in result.losses],
    }


@torch.no_grad()
def reply_losses(model: Any, tokenizer: Any, items: Iterable[Item]) -> tuple[list[float], list[float]]:
    """For each item, over its reply's tokens: the mean loss (nats a token), and the share guessed right at first."""
    collate, device = Collator(tokenizer.pad_token_id), next(model.parameters()).device
    losses, right = [], []
    model.eval()
    for item in items:
        batch = collate([encode_chat(tokenizer, item["messages"])])
        labels = batch.pop("labels")[0, 1:].to(device)
        logits = model(input_ids=batch.pop("input_ids").to(device), logits_to_keep=batch["logits_to_keep"]).logits
        logits, judged = logits[0, :-1].float(), labels != -100
        losses.append(F.cross_entropy(logits, labels).item())
        right.append((logits.argmax(dim=-1) == labels)[judged].float().mean().item())
    return losses, right
