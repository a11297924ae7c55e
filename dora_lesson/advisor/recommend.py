"""Constraints in; method, configuration, memory, cost, reasons and what would change the answer, out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dora_lesson.advisor import reasons, text
from dora_lesson.advisor.changes import Change, find_changes
from dora_lesson.advisor.findings import Finding
from dora_lesson.advisor.memory_fit import TrainingSetup, find_setup
from dora_lesson.advisor.request import Request, parse_request
from dora_lesson.advisor.script import lora_config, script
from dora_lesson.advisor.tree import choose, way
from dora_lesson.core import METHODS
from dora_lesson.memory.estimate import MemoryEstimate


@dataclass(frozen=True)
class Recommendation:
    """The answer. Print it.

    `method` is LoRA, DoRA, QLoRA or QDoRA, or None where nothing can be recommended; then `r` is 0, `setup` None and
    `config` is empty. `config` holds the arguments of PEFT's `LoraConfig`. `way` are the questions of
    the tree that were asked, and the leaf; it is empty where the constraints alone leave no method.
    """

    request: Request
    method: str | None
    setup: TrainingSetup | None
    way: list[str]
    config: dict[str, Any]
    cost: list[Finding]
    reasons: list[Finding]
    would_change: list[Change]

    @property
    def headline(self) -> str:
        """The method and the rank; DoRA is named with the method that it is to be run beside."""
        return f"{self.method}, r = {self.r}{text.beside(self.method)}" if self.method else "Nothing to recommend"

    @property
    def against(self) -> list[Finding]:
        """Those of `reasons` that speak against the method: what to hold against the answer."""
        other = "lora" if self.method and "DoRA" in self.method else "dora"
        return [reason for reason in self.reasons if reason.side == other]

    @property
    def changes_in_words(self) -> list[str]:
        """`would_change` as sentences; changes of one kind share a sentence."""
        return text.changes_in_words(self)

    @property
    def r(self) -> int:
        """The rank."""
        return self.setup.r if self.setup else 0

    @property
    def memory(self) -> MemoryEstimate | None:
        """The memory of a training step with this course's layers; `setup.peak` adds what PEFT's take."""
        return self.setup.estimate if self.setup else None

    def script(self, data: str | Path = "chats.jsonl", base: str | Path | None = None, steps: int | None = None) -> str:
        """A program on PEFT and transformers, without this package, that trains what is recommended.

        It reads the chats, masks all but the last reply of each, trains, saves the adapter, and where the model will be
        served merged puts it into a base that is not packed, saves that, loads it again, and asks it once. Empty where
        nothing is recommended.

        Args:
            data: a file with one JSON object a line, `{"messages": [{"role": ..., "content": ...}, ...]}`.
            base: a model of the hub, or a folder; None is that of the request.
            steps: of the optimizer; None is one pass over the chats, and 100 at least.

        Raises:
            ValueError: `steps` is not a whole number from 1, or `data` or `base` no name.
        """
        return script(self.request, self.setup, data, base, steps) if self.setup else ""

    def __str__(self) -> str:
        return text.in_words(self)


def recommend(
    vram_gb: float,
    model: Any,
    priority: str = "quality",
    *,
    inference: str = "merged",
    packed: str = "no",
    server: str = "transformers",
    trainer: str = "one gpu",
    gpus: int | None = None,
    base_format: str = "16-bit",
    examples: int | None = None,
    effective_batch_size: int = 16,
    optimizer: str = "adamw",
    sequence_length: int = 512,
    device: str = "cuda",
    bfloat16: bool = True,
) -> Recommendation:
    """Choose between LoRA, DoRA, QLoRA and QDoRA for the cards, the data and the server that you have.

    DoRA is named, as a candidate to be run beside LoRA, where quality is first, the adapter will be merged, the trainer
    takes it and a step of it fits: elsewhere its price is certain and its gain small or not shown (`findings`). The
    base stays in 16 bits where a step fits so, of LoRA if not of DoRA, unless memory is first, it is served in 4 bits,
    or it came packed. `memory_fit.find_setup` chooses batch size and checkpointing.

    Args:
        vram_gb: memory of the GPU in GB (1e9 bytes), as `doctor` reports it; of each, where there are several.
        model: a Llama by name, "bundled", a model of the hub, a folder, or a configuration of transformers.
        priority: quality, time or memory.
        inference: merged (into 16-bit weights, after training), unmerged (the adapter beside the 16-bit base) or 4-bit
            (the adapter beside a packed base).
        packed: how the served weights are packed: no, nf4, gguf or awq. What is merged is packed after that.
        server: what answers: transformers, vllm, tgi, llama.cpp or ollama.
        trainer: one gpu, fsdp (which shards weights, gradients and states) or deepspeed (taken to be ZeRO-2).
        gpus: how many train together; None is 2 where the trainer is for several.
        base_format: 16-bit; or gptq, awq, torchao: a base that came packed so.
        examples: how many chats there are to train on; steps, epochs and warm-up follow.
        effective_batch_size: sequences a step; what does not go through at once is accumulated.
        optimizer: adamw or adamw_8bit. 8 bits are taken, too, where nothing fits without.
        sequence_length: tokens of the longest chat.
        device: cuda, mps (Apple) or cpu; `vram_gb` is the memory that training may take there.
        bfloat16: whether the card has it; a T4 has not.

    Raises:
        ValueError: a value that is not among those, or values that exclude each other.
        SetupError: the configuration of a model of the hub cannot be had.
    """
    return recommend_for(parse_request(**locals()))


def require_recommendation(recommendation: Any) -> Recommendation:
    """What `recommend` returned.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(recommendation, Recommendation):
        kind = type(recommendation).__name__
        raise ValueError(f"recommendation is a {kind}, but what recommend(...) returned is expected.")
    return recommendation


def as_call(request: Request) -> str:
    """The request as a line of Python, to ask it again; what is as usual is left out."""
    usual = {name: each.default for name, each in inspect.signature(recommend).parameters.items()}
    given = {name: getattr(request, name) for name in usual if name not in ("vram_gb", "model")}
    if request.gpus == 1:
        del given["gpus"]
    words = [
        repr(request.vram_gb).removesuffix(".0"),
        request.named,
        *(f"{k}={v!r}" for k, v in given.items() if v != usual[k]),
    ]
    return f"recommend({', '.join(words)})"


def recommend_for(request: Request) -> Recommendation:
    """The recommendation for a request, such as one of `Recommendation.would_change`."""
    method = choose(request)
    setup = find_setup(request, method) if method else None
    return Recommendation(
        request=request,
        method=METHODS[method].label if method else None,
        setup=setup,
        way=way(request),
        config=lora_config(setup) if setup else {},
        cost=[*reasons.costs(request, setup)] if setup else [],
        reasons=[*(reasons.reasons(request, setup) if setup else reasons.obstacles(request))],
        would_change=find_changes(request),
    )
