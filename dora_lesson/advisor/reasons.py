"""What a recommendation costs and why it is made: rules that follow from the request, and findings with evidence."""

from __future__ import annotations

from collections.abc import Iterator

from dora_lesson.advisor.findings import Finding, finding, rule
from dora_lesson.advisor.memory_fit import TrainingSetup, is_tight, smallest_setup, usable_bytes
from dora_lesson.advisor.request import Request
from dora_lesson.advisor.schedule import LEAST_STEPS, kept_aside, schedule
from dora_lesson.core import METHODS

MANY_EPOCHS = 10  # passes over the same chats from which on a model tends to learn them by heart
CPU_SPEED = 1e11  # operations a second of two processor cores in large matrix products
LARGE_SHARE = 0.25  # of the peak


def costs(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    """What training and answering will take, beside memory."""
    total, size = setup.parameters.base + setup.trained, setup.sequences(request.gpus)
    kept = kept_aside(request.examples or 0)
    trained_on = (request.examples or LEAST_STEPS * size) - kept
    plan = schedule(trained_on, size)
    yield rule("trained", trained=setup.trained, share=100 * setup.trained / total, megabytes=4 * setup.trained / 1e6)
    if request.examples:
        yield rule("schedule", examples=trained_on, size=size, plan=plan)
        judged = kept > 0 and request.gpus == 1
        if kept:
            yield rule("kept aside, best step" if judged else "kept aside", kept=kept)
        if plan.epochs > MANY_EPOCHS:
            yield rule("few examples" if judged else "few examples, last step", epochs=MANY_EPOCHS)
    if request.device == "cpu":
        operations = (6 if setup.gradient_checkpointing else 4) * setup.parameters.base * size * request.sequence_length
        minutes = operations / CPU_SPEED / 60
        yield rule("on a processor", operations=operations, minutes=minutes, plan=plan, hours=plan.steps * minutes / 60)
    if setup.is_dora:
        yield finding("training time")
    if setup.gradient_checkpointing:
        yield rule("checkpointing")
    if setup.four_bit:
        yield rule("unpacking")
        yield finding("memory in 4 bits")
        if is_tight(request, setup):
            yield rule("tight")
    yield from _logits(request, setup)
    if request.may_lack_a_chat_template:
        yield rule("base checkpoint", model=request.model_id)
    if request.trainer == "fsdp":
        weights = setup.estimate.parts["weights"] + setup.estimate.parts["quantization constants"]
        yield rule("loaded by each", gpus=request.gpus, size=request.gpus * weights / 1e9)
    if request.inference == "merged":
        weights = request.dtype.itemsize * setup.parameters.base
        holds = weights < request.gpus * usable_bytes(request.vram_gb)
        if request.packed != "no":
            yield rule("merged, then packed", weights=weights / 1e9, packed=request.packed)
        else:
            name = ("merged" if request.gpus == 1 else "merged, on all") if holds else "merged elsewhere"
            yield rule(name, weights=weights / 1e9, bits=8 * request.dtype.itemsize, gpus=request.gpus)
    else:
        yield rule("beside a packed base" if request.inference == "4-bit" else "beside the base")


def reasons(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    """Why this method: first the base, then the adapter."""
    yield from _why_this_base(request, setup)
    if request.trainer == "fsdp":
        yield rule("sharded", gpus=request.gpus)
        yield from [finding("fsdp")] if setup.four_bit and setup.is_dora else []
    elif request.trainer == "deepspeed":
        yield rule("not sharded")
    if request.device == "mps":
        yield finding("apple")
        yield rule("shared memory")
    if setup.optimizer == "adamw_8bit" != request.optimizer:
        tight = "no setting with AdamW in float32 leaves more room"
        yield rule("8-bit AdamW", why="memory is first" if request.priority == "memory" else tight)
    yield from _why_dora(setup) if setup.is_dora else _why_not_dora(request, setup)


def obstacles(request: Request) -> Iterator[Finding]:
    """Why nothing can be recommended."""
    if request.came_packed and request.inference == "merged":
        yield rule("cannot merge", format=request.base_format)
        yield finding("packed again")
        return
    least = smallest_setup(request, "qlora")
    peak = least.peak / 1e9
    room = max(0, usable_bytes(request.vram_gb)) / 1e9
    optimizer = "8-bit AdamW" if least.optimizer == "adamw_8bit" else "AdamW"
    how = f"{optimizer}, checkpointed" + (f", sharded over {request.gpus}" if request.trainer == "fsdp" else "")
    yield rule("nothing fits", tokens=request.sequence_length, how=how, peak=peak, card=request.vram_gb, room=room)
    yield from _logits(request, least)
    if request.device == "cuda":
        yield finding("offload")


def _logits(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    """What the loss takes, where that is a large part of the peak."""
    tokens = setup.batch_size * request.sequence_length
    size = 8 * tokens * request.config.vocab_size
    if size > LARGE_SHARE * setup.peak:
        yield rule("logits", size=size / 1e9, tokens=tokens, words=request.config.vocab_size)


def _why_this_base(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    otherwise = request.inference == "4-bit" and not request.trained_as_served and not request.came_packed
    if not setup.four_bit:
        yield rule("fits in 16 bits")
        yield from [finding("unpacked adapters")] if otherwise else []
    elif request.came_packed:
        yield rule("came packed", format=request.base_format)
        yield finding("packed bases")
    elif request.trained_as_served:
        yield rule("served packed")
        yield finding("packed again")
    elif request.priority == "memory":
        packed = setup.estimate.parts["weights"] + setup.estimate.parts["quantization constants"]
        weights = request.dtype.itemsize * setup.parameters.base
        yield rule("memory first", packed=packed / 1e9, weights=weights / 1e9)
    else:
        yield rule("fits in 4 bits")
    if setup.four_bit and otherwise:
        yield rule("served packed otherwise", packed=request.packed)
        yield finding("unpacked adapters")
    if setup.four_bit and request.inference == "unmerged" and not request.came_packed:
        yield rule("served unpacked", bits=8 * request.dtype.itemsize)


def _why_dora(setup: TrainingSetup) -> Iterator[Finding]:
    plain = "qlora" if setup.four_bit else "lora"
    yield rule("candidate", method=METHODS[setup.method].label, plain=METHODS[plain].label)
    yield finding("QDoRA" if setup.four_bit else "control")
    yield finding("published gains")
    yield finding("tuned rates")
    yield finding("run both")


def _why_not_dora(request: Request, setup: TrainingSetup) -> Iterator[Finding]:
    if request.inference != "merged":
        yield finding("unmerged cost")
        if request.server != "transformers":
            yield finding(request.server)
    if request.priority != "quality":
        yield finding("training time")
        yield finding("QDoRA" if setup.four_bit else "methods, persona_consistency")
        return
    if request.trainer == "deepspeed" and setup.four_bit:
        yield finding("deepspeed")
    elif request.inference == "merged":  # then DoRA was tried first
        yield rule("dora does not fit", tried="QDoRA" if setup.four_bit else "DoRA over an unpacked base")
        if not setup.four_bit:
            yield finding("cost of 4 bits")
    yield finding("tuned rates")
