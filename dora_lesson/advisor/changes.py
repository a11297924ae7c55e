"""Which other requests get another answer: one constraint changed, or as many as it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dora_lesson.advisor.memory_fit import count_parameters, needed_gb, smallest_setup
from dora_lesson.advisor.request import INFERENCE, PRIORITIES, Request, contradiction
from dora_lesson.advisor.tree import choose
from dora_lesson.core import ADAPTERS, METHODS
from dora_lesson.memory.shapes import SHAPES, quantization_method

CONSTRAINTS = ["vram_gb", "priority", "inference", "trainer", "gpus", "optimizer"]
CONSTRAINTS += ["base_format", "sequence_length", "label"]
SHORTEST = 128  # tokens; shorter chats are not proposed
SMALLER = [name for name in SHAPES if name != "llama-2-7b"]  # which newer ones of its size replaced


@dataclass(frozen=True)
class Change:
    """Another request and its answer, a `Recommendation.method`; `constraints` are those in which it differs."""

    request: Request
    answer: str
    constraints: tuple[str, ...]


def find_changes(request: Request) -> list[Change]:
    """The changed requests that get another answer, the larger cards first.

    One constraint is changed at a time; several where that is what DoRA takes, or where no single one helps.
    """
    now = choose(request)
    proposed = [*_larger_cards(request, now), *_other_choices(request)]
    if now is None:
        proposed += _more_gpus(request)
        proposed += [*_shorter_chats(request), *_smaller_models(request)]
    for_dora = _for_dora(request)
    if len(_differing(request, for_dora)) > 1 and choose(for_dora) in ("dora", "qdora"):
        proposed.append(for_dora)
    possible = [other for other in proposed if not contradiction(other)]
    found = [_change(request, other) for other in possible if choose(other) not in (None, now)]
    if found:
        return found
    if request.came_packed and request.inference == "merged":  # it cannot be merged: anything else comes after that
        return [_change(request, further.request) for further in find_changes(request.served("4-bit"))]
    return [_change(request, larger) for larger in _larger_cards(for_dora, choose(for_dora))]


def _change(request: Request, other: Request) -> Change:
    return Change(other, METHODS[str(choose(other))].label, _differing(request, other))


def _differing(request: Request, other: Request) -> tuple[str, ...]:
    return tuple(name for name in CONSTRAINTS if getattr(request, name) != getattr(other, name))


def _larger_cards(request: Request, now: str | None) -> Iterator[Request]:
    """For each other method, the smallest card, to a tenth of a GB, on which it is the answer."""
    cards = {method: math.ceil(10 * needed_gb(smallest_setup(request, method).peak)) / 10 for method in ADAPTERS}
    for method, vram_gb in sorted(cards.items(), key=lambda card: card[1]):
        larger = replace(request, vram_gb=vram_gb)
        if method != now and vram_gb > request.vram_gb and choose(larger) == method:
            yield larger


def _other_choices(request: Request) -> Iterator[Request]:
    yield from (replace(request, priority=priority) for priority in PRIORITIES if priority != request.priority)
    yield from (request.served(inference) for inference in INFERENCE if inference != request.inference)
    if request.came_packed and not quantization_method(request.config):
        yield request.over_16_bits()
    if request.trainer == "deepspeed":
        yield replace(request, trainer="fsdp", optimizer="adamw")


def _more_gpus(request: Request) -> Iterator[Request]:
    """The fewest such GPUs, up to eight, on which a sharded step fits."""
    for gpus in (2, 4, 8):
        more = replace(request, trainer="fsdp", gpus=gpus, optimizer="adamw")
        if gpus > request.gpus and choose(more):
            yield more
            return


def _for_dora(request: Request) -> Request:
    """The request under the constraints that DoRA asks for."""
    return replace(request.over_16_bits().served("merged"), priority="quality")


def _shorter_chats(request: Request) -> Iterator[Request]:
    tokens = request.sequence_length // 2
    while tokens >= SHORTEST:
        shorter = replace(request, sequence_length=tokens)
        if choose(shorter):
            yield shorter
            return
        tokens //= 2


def _smaller_models(request: Request) -> Iterator[Request]:
    """The largest of the known models that are smaller, read chats of this length, and get an answer."""
    models = [request.with_model(name) for name in SMALLER]
    models = [model for model in models if model.config.max_position_embeddings >= request.sequence_length]
    sizes = {model.label: count_parameters(model).base for model in models}
    for model in sorted(models, key=lambda model: -sizes[model.label]):
        if sizes[model.label] < count_parameters(request).base and choose(model):
            yield model
            return
