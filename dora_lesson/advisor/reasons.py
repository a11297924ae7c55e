"""What a recommendation costs and why it is made: rules that follow from the request, and findings with evidence."""

from __future__ import annotations

from collections.abc import Iterator

from dora_lesson.advisor.findings import Finding, finding, rule
from dora_lesson.advisor.memory_fit import TrainingSetup, smallest_setup, usable_bytes
from dora_lesson.advisor.request import Request
from dora_lesson.core import METHODS


def costs(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    """What training and answering will take, beside memory."""
    total = setup.parameters.base + setup.trained
    yield rule("trained", trained=setup.trained, share=100 * setup.trained / total, megabytes=4 * setup.trained / 1e6)
    if setup.is_dora:
        yield finding("training time")
    if setup.gradient_checkpointing:
        yield rule("checkpointing")
    if setup.four_bit:
        yield rule("unpacking")
    if request.inference == "merged":
        weights = 2 * setup.parameters.base
        holds = weights < usable_bytes(request.vram_gb)
        yield rule("merged" if holds else "merged elsewhere", weights=weights / 1e9)
    else:
        yield rule("beside a packed base" if request.inference == "4-bit" else "beside the base")


def reasons(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    """Why this method: first the base, then the adapter."""
    yield from _why_this_base(request, setup)
    if request.stack == "fsdp":
        yield rule("sharded")
        yield finding("fsdp")
    yield from _why_dora(setup) if setup.is_dora else _why_not_dora(request, setup)


def obstacles(request: Request) -> Iterator[Finding]:
    """Why nothing can be recommended."""
    if request.packed and request.inference == "merged":
        yield rule("cannot merge", stack=request.stack)
        yield finding("packed again")
        return
    peak = smallest_setup(request, "qlora").peak / 1e9
    room = max(0, usable_bytes(request.vram_gb)) / 1e9
    yield rule("nothing fits", tokens=request.sequence_length, peak=peak, card=request.vram_gb, room=room)


def _why_this_base(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    if not setup.four_bit:
        yield rule("fits in 16 bits")
    elif request.packed:
        yield rule("came packed", stack=request.stack)
        yield finding("packed bases")
    elif request.inference == "4-bit":
        yield rule("served packed")
        yield finding("packed again")
    elif request.priority == "memory":
        packed = setup.estimate.parts["weights"] + setup.estimate.parts["quantization constants"]
        yield rule("memory first", packed=packed / 1e9, weights=2 * setup.parameters.base / 1e9)
    else:
        yield rule("fits in 4 bits")


def _why_dora(setup: TrainingSetup) -> Iterator[Finding]:
    plain = "qlora" if setup.four_bit else "lora"
    yield rule("candidate", method=METHODS[setup.method].label, plain=METHODS[plain].label)
    yield finding("sweep, 4 bits" if setup.four_bit else "sweep")
    yield finding("low rank")
    yield finding("run both")


def _why_not_dora(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    if request.inference != "merged":
        yield finding("unmerged cost")
        if request.stack == "vllm":
            yield finding("vllm")
    if request.priority != "quality":
        yield finding("training time")
        yield finding("four_bit, persona_consistency" if setup.four_bit else "short, persona_consistency")
        return
    if request.stack == "deepspeed" and setup.four_bit:
        yield finding("deepspeed")
    elif request.inference == "merged":  # then DoRA was tried first
        yield rule("dora does not fit", tried="QDoRA" if setup.four_bit else "DoRA in 16 bits")
        if not setup.four_bit:
            yield finding("cost of 4 bits")
    yield finding("tuned rates")
