"""Constraints in; method, configuration, memory, cost, reasons and what would change the answer, out.

The tree asks three questions. Does a step fit at all? May and can the base stay in 16 bits? Is DoRA wanted, and can it
be had? `choose` is the tree, `recommend` puts its answer in words, and `tree_figure` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dora_lesson.advisor import advice
from dora_lesson.advisor.memory_fit import Fit, find_fit
from dora_lesson.advisor.request import PACKED, Request, checked
from dora_lesson.advisor.snippet import lora_config, snippet
from dora_lesson.core import METHODS as ALL


@dataclass(frozen=True)
class Recommendation:
    """The answer. Print it.

    `method` is LoRA, DoRA, QLoRA or QDoRA, or None where nothing can be recommended; then `r` is 0, `fit` None and
    `config` and `snippet` are empty. `config` holds the arguments of PEFT's `LoraConfig`. `answers` are the tree's
    questions, as far as they were asked, with yes or no.
    """

    request: Request
    method: str | None
    fit: Fit | None
    answers: dict[str, bool]
    config: dict[str, Any]
    snippet: str
    cost: list[str]
    reasons: list[str]
    would_change: list[str]

    @property
    def headline(self) -> str:
        """The method and the rank; DoRA is named with the method that it is to be run beside."""
        beside = f", beside {self.method.replace('D', 'L')}" if self.method and "DoRA" in self.method else ""
        return f"{self.method}, r = {self.r}{beside}" if self.fit else "Nothing to recommend"

    @property
    def r(self) -> int:
        """The rank."""
        return self.fit.r if self.fit else 0

    @property
    def memory(self) -> Any:
        """The `MemoryEstimate` of a training step with this course's layers; `fit.peak` adds what PEFT's take."""
        return self.fit.expected if self.fit else None

    def __str__(self) -> str:
        asked = self.request
        served = "beside a packed base" if asked.inference == "4-bit" else asked.inference
        head = f"{asked.label} on {asked.vram_gb:g} GB, {asked.priority} first, served {served} ({asked.stack})"
        if self.fit is None:
            lines = [f"{self.headline}: {head}"]
        else:
            fit = self.fit
            again = ", gradient checkpointing" if fit.gradient_checkpointing else ""
            lines = [
                f"{self.headline}: {head}",
                f"  setting  {fit.batch_size} × {fit.sequence_length} tokens a pass, "
                f"{fit.gradient_accumulation_steps} passes a step{again}",
                f"  memory   {fit.peak / 1e9:.1f} GB at the peak with PEFT's layers "
                f"({fit.expected.total / 1e9:.1f} with this course's), of {asked.room / 1e9:.1f} that may be "
                "planned",
            ]
        for title, said in [("cost", self.cost), ("why", self.reasons), ("what would change it", self.would_change)]:
            lines += [f"  {title}", *(f"    - {each}" for each in said)] if said else []
        return "\n".join(lines)


def choose(request: Request) -> str | None:
    """The tree: lora, dora, qlora or qdora, or None where nothing can be had."""
    if request.stack in PACKED and request.inference == "merged":
        return None
    wanted = request.priority == "quality" and request.inference == "merged"
    sixteen = request.stack not in PACKED and request.inference != "4-bit" and request.priority != "memory"
    tried = ["dora"] * (sixteen and wanted) + ["lora"] * sixteen
    tried += ["qdora"] * (wanted and request.stack != "deepspeed") + ["qlora"]
    return next((method for method in tried if request.least(method).peak <= request.room), None)


def recommend(
    vram_gb: float,
    model: Any,
    priority: str = "quality",
    *,
    inference: str = "merged",
    stack: str = "peft",
    sequence_length: int = 512,
    bfloat16: bool = True,
) -> Recommendation:
    """Choose between LoRA, DoRA, QLoRA and QDoRA for one GPU.

    DoRA is named, as a candidate to be run beside LoRA, where quality is first, the adapter will be merged, the stack
    takes it and a step of it fits: elsewhere its price is certain and its gain small or not shown
    (`reasons.findings`). The base stays in 16 bits where a step fits so, of LoRA if not of DoRA, unless memory is
    first, it is served in 4 bits, or it came packed. `fitting.find_fit` chooses the setting.

    Args:
        vram_gb: memory of the GPU in GB (1e9 bytes), as `doctor` reports it.
        model: a shape of `llama_config`, "bundled", a model of the hub, or a configuration of transformers.
        priority: quality, time or memory.
        inference: merged (into 16-bit weights, after training), unmerged (the adapter beside the 16-bit base) or 4-bit
            (the adapter beside a packed base).
        stack: what it trains or serves with: peft, vllm, deepspeed, fsdp; or gptq, awq, torchao: a base packed so.
        sequence_length: tokens of the longest chat.
        bfloat16: whether the card has it; a T4 has not.

    Raises:
        ValueError: a value that is not among those.
        SetupError: the configuration of a model of the hub cannot be had.
    """
    request = checked(vram_gb, model, priority, inference, stack, sequence_length, bfloat16)
    method = choose(request)
    fit = method and find_fit(request.config, method, request.room, frugal=priority == "memory", **request.sizes)
    instead = [*advice.would_change(request, method, choose)]
    if not fit:
        asked = {} if stack in PACKED and inference == "merged" else {"fits": False}
        return Recommendation(request, None, None, asked, {}, "", [], [*advice.why_not(request)], instead)
    dtype = "bfloat16" if bfloat16 else "float16"
    return Recommendation(
        request=request,
        method=ALL[fit.method].label,
        fit=fit,
        answers={"fits": True, "sixteen": fit.method[0] != "q", "dora": fit.method.endswith("dora")},
        config=lora_config(fit),
        snippet=snippet(fit, request.model_id, dtype, packed_already=stack in PACKED),
        cost=[*advice.cost(request, fit)],
        reasons=[*advice.why(request, fit)],
        would_change=instead,
    )
