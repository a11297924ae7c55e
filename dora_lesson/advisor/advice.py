"""The words of a recommendation: cost, reasons, and what would change it or give one where nothing can be had."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dora_lesson.advisor import findings as reasons
from dora_lesson.advisor.memory_fit import Fit, needed_gb, parameters
from dora_lesson.advisor.request import PACKED, PRIORITIES, Request
from dora_lesson.core import METHODS as ALL
from dora_lesson.models.shapes import SHAPES, llama_config
from dora_lesson.multi_gpu.config import METHODS

Lines = Iterator[str]
Ask = Callable[[Request], str | None]  # `advisor.choose`: the method, or None where nothing can be had

_SERVED = {
    "merged": "merged into 16-bit weights",
    "unmerged": "served unmerged",
    "4-bit": "served beside a packed base",
}


def cost(request: Request, fit: Fit) -> Lines:
    """What training and answering will take, beside memory."""
    dora, four_bit = fit.method.endswith("dora"), fit.method.startswith("q")
    trained, total = parameters(request.config, "dora" if dora else "lora", fit.r)
    yield f"{trained:,} trained numbers ({100 * trained / total:.2f} %), a file of {4 * trained / 1e6:.0f} MB"
    if dora:
        yield reasons.line("training time").text
    if fit.gradient_checkpointing:
        yield "checkpointing runs each block forward twice: six operations a weight and token in place of four"
    if four_bit:
        yield "each pass unpacks each weight again, which takes time that a 16-bit base does not"
    if request.inference == "merged":
        weights = 2 * (total - trained)
        where = "" if weights < request.room else ", which this card cannot hold: serve it elsewhere"
        yield f"merged, it answers at the base's speed, with {weights / 1e9:.1f} GB of 16-bit weights{where}"
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
        trained, total = parameters(request.config, "lora", fit.r)
        packed = fit.expected.parts["weights"] + fit.expected.parts["quantization constants"]
        yield (
            f"memory is first, and in 4 bits the weights take {packed / 1e9:.1f} GB in place of "
            f"{2 * (total - trained) / 1e9:.1f}"
        )
    else:
        yield "with the base in 16 bits no setting fits, with the base in 4 bits this one does"
    if request.stack == "fsdp":
        yield "memory is that of one GPU that holds all; sharded over several, each holds less"
        yield str(reasons.line("fsdp"))
    if dora:
        plain = "QLoRA" if four_bit else "LoRA"
        yield (
            f"quality is first and the adapter is merged, so {ALL[fit.method].label} is a candidate, to be run beside "
            f"{plain}: its price is paid in training, not when answering"
        )
        yield str(reasons.line("sweep, 4 bits" if four_bit else "sweep"))
        yield str(reasons.line("low rank"))
        yield str(reasons.line("run both"))
        return
    if request.inference != "merged":
        yield str(reasons.line("unmerged cost"))
    if request.stack == "vllm" and request.inference != "merged":
        yield str(reasons.line("vllm"))
    if request.priority != "quality":
        yield str(reasons.line("training time"))
        yield str(reasons.line("four_bit, persona_consistency" if four_bit else "short, persona_consistency"))
        return
    if request.stack == "deepspeed" and four_bit:
        yield str(reasons.line("deepspeed"))
    elif request.inference == "merged":  # then DoRA was tried first
        yield f"no setting of {'QDoRA' if four_bit else 'DoRA in 16 bits'} fits: PEFT's DoRA takes more memory"
        if not four_bit:
            yield str(reasons.line("cost of 4 bits"))
    yield str(reasons.line("tuned rates"))


def why_not(request: Request) -> Lines:
    """Why nothing can be recommended."""
    if request.stack in PACKED and request.inference == "merged":
        yield f"a base that came packed by {request.stack} has no 16-bit weights to merge into"
        yield str(reasons.line("packed again"))
    else:
        yield (
            f"even QLoRA, checkpointed, one sequence of {request.sequence_length} tokens a pass, peaks at "
            f"{request.least('qlora').peak / 1e9:.1f} GB, and of {request.vram_gb:g} GB "
            f"{max(0, request.room) / 1e9:.1f} may be planned"
        )


def would_change(request: Request, now: str | None, ask: Ask) -> Lines:
    """Under which other constraints the answer is another one, `now` being this one: `ask` is asked for each.

    One constraint is changed at a time; several where that is what DoRA takes, or where no single one helps.
    """
    told = [*_larger_card(request, now, ask), *_one_change(request, now, ask)]
    if now is None:
        told += [*_less(request, ask)]
    several = [one for one in _changes(request) if one.for_dora]
    words = " and ".join(one.words for one in several)
    changed = _made(request, *several)
    then = ask(changed)
    if len(several) > 1 and then and then.endswith("dora"):
        told.append(f"{words}, together: then {_named(then)}")
    if not told and request.stack in PACKED and request.inference == "merged":
        beside = replace(request, inference="4-bit")
        told = [f"{_SERVED['4-bit']} and {line}" for line in would_change(beside, None, ask)]
    elif not told:
        told = [f"{words} and {line}" for line in _larger_card(changed, then, ask)]
    yield from told


@dataclass(frozen=True)
class _Change:
    """Another value of one constraint, in words, and whether DoRA asks for it."""

    constraint: str
    value: str
    words: str
    for_dora: bool


def _changes(request: Request) -> list[_Change]:
    changes = [_Change("priority", value, f"{value} first", value == "quality") for value in PRIORITIES]
    changes += [_Change("inference", value, words, value == "merged") for value, words in _SERVED.items()]
    if request.stack in PACKED:
        changes.append(_Change("stack", "peft", "training over the 16-bit checkpoint", True))
    elif request.stack == "deepspeed":
        changes.append(_Change("stack", "peft", "without DeepSpeed", False))  # over 16 bits it takes DoRA
    return [one for one in changes if getattr(request, one.constraint) != one.value]


def _made(request: Request, *changes: _Change) -> Request:
    values: dict[str, Any] = {one.constraint: one.value for one in changes}
    return replace(request, **values)


def _larger_card(request: Request, now: str | None, ask: Ask) -> Lines:
    cards = []
    for method in METHODS:
        card = math.ceil(10 * needed_gb(request.least(method).peak)) / 10
        if method != now and card > request.vram_gb and ask(replace(request, vram_gb=card)) == method:
            cards.append((card, ALL[method].label))
    if cards:
        yield "on a larger card, bought or rented: " + ", ".join(f"{name} from {gb:g} GB" for gb, name in sorted(cards))


def _one_change(request: Request, now: str | None, ask: Ask) -> Lines:
    found: dict[str, list[str]] = {}
    for one in _changes(request):
        then = ask(_made(request, one))
        if then not in (None, now):
            found.setdefault(str(then), []).append(one.words)
    for then, said in found.items():
        yield f"{_either(said)}: then {_named(then)}"


def _less(request: Request, ask: Ask) -> Lines:
    tokens = request.sequence_length // 2
    while tokens >= 128:
        if then := ask(replace(request, sequence_length=tokens)):
            yield f"chats of {tokens} tokens: then {_named(then)}"
            break
        tokens //= 2
    sizes = {name: parameters(llama_config(name), "lora", 1)[1] for name in SHAPES}
    own = parameters(request.config, "lora", 1)[1]
    for name in sorted((name for name in sizes if sizes[name] < own), key=lambda name: -sizes[name]):
        if then := ask(replace(request, label=name, config=llama_config(name))):
            yield f"a smaller model, such as {name}: then {_named(then)}"
            break


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _named(method: str) -> str:
    beside = f", beside {ALL[method[:-4] + 'lora'].label}" if method.endswith("dora") else ""
    return ALL[method].label + beside
