"""The words of a recommendation: cost, reasons, what would change it, and what to do where nothing can be had."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dora_lesson import reasons
from dora_lesson.constraints import PACKED, Request
from dora_lesson.fitting import Fit, needed_gb, setting, usable_bytes
from dora_lesson.memory import adapter_parameters
from dora_lesson.shapes import SHAPES, llama_config

Lines = Iterator[str]


def cost(request: Request, fit: Fit) -> Lines:
    """What training and answering will take, beside memory."""
    dora, four_bit = fit.method.endswith("dora"), fit.method.startswith("q")
    trained, total = adapter_parameters(request.config, "dora" if dora else "lora", r=fit.r)
    yield f"{trained:,} trained numbers ({100 * trained / total:.2f} %), a file of {4 * trained / 1e6:.0f} MB"
    if dora:
        yield reasons.line("training time").text
    if fit.gradient_checkpointing:
        yield "checkpointing runs each block forward twice: six operations a weight and token in place of four"
    if four_bit:
        yield "each pass unpacks each weight again, which takes time that a 16-bit base does not"
    if request.inference == "merged":
        weights = 2 * (total - trained) / 1e9
        where = (
            "" if weights < usable_bytes(request.vram_gb) / 1e9 else ", which this card cannot hold: serve it elsewhere"
        )
        yield f"merged, it answers as fast as the base, with {weights:.1f} GB of 16-bit weights{where}"
    else:
        base = "packed base, which is unpacked at every token" if request.inference == "4-bit" else "base"
        yield f"the adapter costs time at every token, beside the {base}"


def why(request: Request, fit: Fit) -> Lines:
    """The reasons of a choice, each with its evidence."""
    dora, four_bit = fit.method.endswith("dora"), fit.method.startswith("q")
    if not four_bit:
        yield "a step fits with the base in 16 bits, so nothing is lost to rounding"
    elif request.stack in PACKED:
        yield f"the base came packed by {request.stack}"
        yield str(reasons.line("packed bases"))
    elif request.inference == "4-bit":
        yield "the adapter is trained over the packed base that it will be served beside"
        yield str(reasons.line("packed again"))
    elif request.priority == "memory":
        yield "memory is first, and packed weights take about a third"
    else:
        yield "with the base in 16 bits no setting fits, with the base in 4 bits this one does"
    if dora:
        yield "quality is first, and merged it costs nothing to serve: the price of DoRA is time and memory in training"
        yield str(reasons.line("low rank"))
        yield str(reasons.line("sweep, 4 bits" if four_bit else "sweep"))
        yield str(reasons.line("run both"))
        return
    if request.inference != "merged":
        yield str(reasons.line("unmerged cost"))
    if request.stack == "vllm" and request.inference != "merged":
        yield str(reasons.line("vllm"))
    if request.stack == "deepspeed" and four_bit:
        yield str(reasons.line("deepspeed"))
    if request.priority == "quality":
        yield str(reasons.line("tuned rates"))
    else:
        yield str(reasons.line("training time"))
        yield str(reasons.line("four_bit, persona_consistency" if four_bit else "short, persona_consistency"))


def would_change(request: Request, fit: Fit) -> Lines:
    """What else would have to hold for another answer."""
    dora, four_bit = fit.method.endswith("dora"), fit.method.startswith("q")
    plain = fit.method.removeprefix("q")
    if four_bit and request.stack not in PACKED and request.inference != "4-bit":
        least = setting(request.config, plain, 1, True, **request.sizes)
        if needed_gb(least.peak) > request.vram_gb:
            yield f"from {_card(least.peak)} GB on, the base could stay in 16 bits"
            lora = setting(request.config, "lora", 1, True, **request.sizes)
            if dora and lora.peak <= usable_bytes(request.vram_gb):
                yield "giving up DoRA: LoRA fits on this card with the base in 16 bits"
        else:
            yield "with another priority than memory, the base could stay in 16 bits on this card"
    if dora:
        other = "QLoRA" if four_bit else "LoRA"
        yield f"{other} winning on your task over three seeds or more, or an adapter served unmerged: then {other}"
        yield "time or memory first: then QLoRA" if four_bit else "time first: then LoRA; memory first: then QLoRA"
        if 2 * adapter_parameters(request.config, r=1)[1] > usable_bytes(request.vram_gb):
            yield "serving on this card too: then inference='4-bit', and QLoRA beside the packed base"
    elif request.stack in PACKED:
        yield "training over the 16-bit checkpoint instead of the packed one: then DoRA can be tried"
    elif request.inference != "merged":
        served = "; this server would have to take DoRA too" if request.stack == "vllm" else ""
        yield f"merging the adapter into 16-bit weights, with quality first: then DoRA is worth a try{served}"
    elif request.priority != "quality":
        yield "quality first: then DoRA is worth a try, beside LoRA at the same settings"
    elif request.stack == "deepspeed":
        yield "a stack without DeepSpeed's ZeRO-2: then QDoRA is worth a try"
    else:
        more = setting(request.config, "qdora", 1, True, **request.sizes)
        yield f"from {_card(more.peak)} GB on, QDoRA fits as well, in PEFT"
    if request.stack == "fsdp":
        yield "memory is that of one GPU that holds all; sharded over several, each holds less. " + str(
            reasons.line("fsdp")
        )


def too_large(request: Request) -> tuple[list[str], list[str]]:
    """Why nothing fits, and what would have to change."""
    packed = setting(request.config, "qlora", 1, True, **request.sizes)
    why = [
        f"even QLoRA, checkpointed, one sequence of {request.sequence_length} tokens a pass, peaks at "
        f"{packed.peak / 1e9:.1f} GB, and of {request.vram_gb:g} GB {max(0, usable_bytes(request.vram_gb)) / 1e9:.1f} "
        "may be planned"
    ]
    instead = [f"a card of {_card(packed.peak)} GB or more, or one rented in the cloud"]
    shorter = request.sequence_length // 2
    while shorter >= 128:
        less = setting(request.config, "qlora", 1, True, **request.sizes | {"sequence_length": shorter})
        if less.peak <= usable_bytes(request.vram_gb):
            instead.append(f"chats of {shorter} tokens or fewer: then QLoRA fits")
            break
        shorter //= 2
    smaller = sorted(SHAPES, key=lambda name: -adapter_parameters(llama_config(name), r=1)[1])
    for name in smaller:
        least = setting(llama_config(name), "qlora", 1, True, **request.sizes)
        if least.peak <= usable_bytes(request.vram_gb):
            instead.append(f"a smaller model: {name} fits on this card, at {least.peak / 1e9:.1f} GB")
            break
    return why, instead


def _card(peak: int) -> float:
    """The card that holds the peak, in tenths of a GB, rounded up."""
    return math.ceil(10 * needed_gb(peak)) / 10


def merge_into_packed(request: Request) -> tuple[list[str], list[str]]:
    """Why an adapter over a packed base is not merged, and what would have to change."""
    return (
        [
            f"a base that came packed by {request.stack} has no 16-bit weights to merge into",
            str(reasons.line("packed again")),
        ],
        [
            "inference='4-bit': QLoRA, served beside that base",
            "training over the model's 16-bit checkpoint: then it merges",
        ],
    )
