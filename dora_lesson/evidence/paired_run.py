"""One run of a paired comparison: a base, a method, a rank, a rate and a seed in; losses, scores and costs out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback

from dora_lesson.adapters.inject import adapted_layers, insert_layers, matching_linears
from dora_lesson.models.load import load_base
from dora_lesson.task_api.chats import encode_chat
from dora_lesson.task_api.dataset import Item, load_task_api
from dora_lesson.training.finetune import Collator, finetune

RunMethod = Literal["base", "qbase", "full", "lora", "dora", "lora_matched", "qlora", "qdora", "qlora_matched"]


class PairedRunConfig(BaseModel):
    """All that decides a run.

    `base` None is the bundled model. "base" and "qbase" are the base as it is, in full size and in 4 bits;
    "lora_matched" is LoRA with as many trained numbers as DoRA has (`matched_ranks`). `lora_A_std` is the standard
    deviation of A at the start, if it is drawn from a normal distribution; 0 is PEFT's start, Kaiming uniform.
    `full_magnitude` lets QDoRA's magnitude start as that of the weights before they are packed; `magnitude_rate` is the
    rate of DoRA's magnitudes as a multiple of `learning_rate`, and 0 leaves them as they start. `bf16` computes the
    training in bfloat16, by autocast; the judging is in `dtype`.
    `level` is that of the Task API set, of whose validation and test splits `held_out` chats each are judged by their
    loss. `experiments` also records how the weights moved, at `checkpoints` steps, and scores the replies to `scored`
    test items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = None
    method: RunMethod
    r: int = Field(default=0, ge=0)
    lora_alpha: float = Field(default=0.0, ge=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_A_std: float = Field(default=0.0, ge=0)
    full_magnitude: bool = False
    magnitude_rate: float = Field(default=1.0, ge=0)
    target_modules: tuple[str, ...] | str = Field(min_length=1)
    learning_rate: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    level: Literal["plain", "spoken"] = "plain"
    held_out: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bf16: bool = False
    scored: int = Field(default=0, ge=0)
    checkpoints: int = Field(default=0, ge=0)
    schedule: str = "linear, a tenth of the steps of warm-up; AdamW without weight decay"

    @property
    def trains(self) -> bool:
        return self.method not in ("base", "qbase")

    @property
    def name(self) -> str:
        """What tells the runs of a design apart, in a word."""
        size = f"-r{self.r}-alpha{self.lora_alpha:g}" if self.r else ""
        size += f"-dropout{self.lora_dropout:g}" if self.lora_dropout else ""
        size += f"-A{self.lora_A_std:g}" if self.lora_A_std else ""
        size += "-full-magnitude" if self.full_magnitude else ""
        size += f"-magnitude-rate{self.magnitude_rate:g}" if self.magnitude_rate != 1 else ""
        return f"{self.method}{size}-rate{self.learning_rate:g}-seed{self.seed}"


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
    run["item_losses"] = {}
    for split, entry in (("validation", "validation"), ("test", "scores")):
        items = list(load_task_api(split, level=config.level))[: config.held_out]
        losses, right = reply_losses(model, tokenizer, items)
        run[entry] = {"loss": round(sum(losses) / len(losses), 5), "accuracy": round(sum(right) / len(right), 5)}
        run["item_losses"][split] = [round(loss, 4) for loss in losses]
    return run | (score(model, tokenizer) if score else {})


def matched_ranks(model: Any, names: Sequence[str], r: int) -> dict[str, int]:
    """A rank for each layer, r or r + 1, with which LoRA trains as many numbers as DoRA does at r.

    DoRA trains d_out numbers a layer besides, one rank more costs d_in + d_out. Of each kind of layer the same share
    gets it, evenly over the depth, so that at most one layer of each kind is missing.
    """
    layers = {name: model.get_submodule(name) for name in names}
    extra = sum(layer.out_features for layer in layers.values())
    share = extra / sum(layer.in_features + layer.out_features for layer in layers.values())
    ranks, seen = {}, Counter[str]()
    for name in names:
        kind = name.rpartition(".")[2]
        ranks[name] = r + int((seen[kind] + 1) * share) - int(seen[kind] * share)
        seen[kind] += 1
    return ranks


def _train(model: Any, tokenizer: Any, config: PairedRunConfig, callbacks: Iterable[TrainerCallback]) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        _add_adapters(model, config)
    if config.magnitude_rate != 1:
        magnitudes = [layer.magnitude for layer in adapted_layers(model).values()]
        callbacks = [_MagnitudeRate(magnitudes, config.magnitude_rate), *callbacks]
    started = time.process_time()
    settings: dict[str, Any] = config.model_dump(include={"steps", "batch_size", "learning_rate", "seed", "bf16"})
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


def _add_adapters(model: Any, config: PairedRunConfig) -> None:
    """The adapter of a run: its ranks and its start."""
    names = matching_linears(model, config.target_modules)
    matched = config.method.endswith("_matched")
    ranks = matched_ranks(model, names, config.r) if matched else dict.fromkeys(names, config.r)
    alpha = config.lora_alpha / config.r
    settings: dict[str, dict[str, Any]] = {
        name: {"r": r, "lora_alpha": alpha * r, "lora_dropout": config.lora_dropout} for name, r in ranks.items()
    }
    insert_layers(model, "dora" if "dora" in config.method else "lora", settings)
    if config.lora_A_std:
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_A, std=config.lora_A_std)
    if config.full_magnitude:
        full, _ = load_base(config.base or "bundled", dtype=config.dtype)
        for name, layer in adapted_layers(model).items():
            norms = torch.linalg.vector_norm(full.get_submodule(name).weight, dim=1, dtype=torch.float32)
            layer.load_state_dict({"magnitude": norms}, strict=False)


class _MagnitudeRate(TrainerCallback):
    """Multiplies every step of the magnitudes: AdamW's step, without weight decay, is proportional to its rate."""

    def __init__(self, magnitudes: list[Any], factor: float) -> None:
        self.magnitudes, self.factor = magnitudes, factor
        for magnitude in magnitudes:
            magnitude.requires_grad_(factor != 0)

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = [magnitude.clone() for magnitude in self.magnitudes]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for magnitude, before in zip(self.magnitudes, self.before, strict=True):
            magnitude.add_(magnitude - before, alpha=self.factor - 1)


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
