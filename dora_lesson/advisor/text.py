"""A recommendation in words. The sentences of its costs and reasons come from `data/advisor/findings.yaml`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dora_lesson.advisor.memory_fit import usable_bytes
from dora_lesson.advisor.request import Request

if TYPE_CHECKING:
    from dora_lesson.advisor.recommend import Recommendation

_SERVED = {
    "merged": "merged into weights that are not packed",
    "unmerged": "served unmerged",
    "4-bit": "served beside a packed base",
}


def in_words(recommendation: Recommendation) -> str:
    """The whole answer: method, setup, memory, cost, reasons, and what would change it."""
    request, setup = recommendation.request, recommendation.setup
    lines = [f"{recommendation.headline}: {question(request)}"]
    if setup:
        checkpointing = ", gradient checkpointing" if setup.gradient_checkpointing else ""
        optimizer = ", 8-bit AdamW" if setup.optimizer == "adamw_8bit" else ""
        each = f" on each of {request.gpus} GPUs" if request.gpus > 1 else ""
        whole = f" ({setup.estimate.total / 1e9:.1f} with this course's)" if request.gpus == 1 else ""
        lines += [
            f"  setting  {setup.batch_size} × {setup.sequence_length} tokens a pass, "
            f"{setup.gradient_accumulation_steps} passes a step{each}{checkpointing}{optimizer}, "
            f"{str(request.dtype).removeprefix('torch.')}",
            f"  memory   {setup.peak / 1e9:.1f} GB at the peak with PEFT's layers{each}{whole}, of "
            f"{usable_bytes(request.vram_gb) / 1e9:.1f} that may be planned",
        ]
    sections = {
        "cost": [finding.text for finding in recommendation.cost],
        "why": [str(finding) for finding in recommendation.reasons if finding not in recommendation.against],
        "against it": [str(finding) for finding in recommendation.against],
        "what would change it": changes_in_words(recommendation),
    }
    for title, sentences in sections.items():
        lines += [f"  {title}", *(f"    - {sentence}" for sentence in sentences)] if sentences else []
    return "\n".join(lines)


def question(request: Request) -> str:
    """The request in a line; what is as usual is left out."""
    cards = f"{request.gpus} × {request.vram_gb:g} GB" if request.gpus > 1 else f"{request.vram_gb:g} GB"
    served = "beside a packed base" if request.inference == "4-bit" else request.inference
    words = [f"{request.label} on {cards}", f"{request.priority} first", f"served {served}"]
    words += [f"packed as {request.packed}"] if request.packed != "no" else []
    words += [f"by {request.server}"] if request.server != "transformers" else []
    words += [f"trained with {request.trainer}"] if request.gpus > 1 else []
    words += [f"over a base packed by {request.base_format}"] if request.came_packed else []
    words += [{"cpu": "on a processor", "mps": "on Apple's GPU"}[request.device]] if request.device != "cuda" else []
    return ", ".join(words)


def changes_in_words(recommendation: Recommendation) -> list[str]:
    """What would change the answer. Larger cards share a sentence, and so do single changes to the same method."""
    cards: dict[str, list[str]] = {}
    single: dict[str, list[str]] = {}
    together = []
    for change in recommendation.would_change:
        told = [name for name in change.constraints if name not in ("vram_gb", "gpus")]
        words = [_condition(change.request, name) for name in told]
        if "gpus" in change.constraints and "trainer" not in told:
            words.append(_condition(change.request, "trainer"))
        if "vram_gb" in change.constraints:
            several = change.request.gpus > 1
            larger = f"on {'larger cards' if several else 'a larger card'}, bought or rented"
            place = " and ".join([*words, larger if change.request.device == "cuda" else "with more memory"])
            each = " each" if several else ""
            cards.setdefault(place, []).append(f"{change.answer} from {change.request.vram_gb:g} GB{each}")
        elif len(words) == 1:
            single.setdefault(change.answer, []).append(words[0])
        else:
            together.append(f"{' and '.join(words)}, together: then {change.answer}{beside(change.answer)}")
    return [
        *(f"{place}: {', '.join(methods)}" for place, methods in cards.items()),
        *(f"{_either(words)}: then {method}{beside(method)}" for method, words in single.items()),
        *together,
    ]


def _condition(other: Request, constraint: str) -> str:
    """What the other request has in this constraint."""
    return {
        "label": f"a smaller model, such as {other.label}",
        "priority": f"{other.priority} first",
        "inference": _SERVED[other.inference],
        "trainer": f"{other.gpus} such GPUs, sharded by FSDP",
        "optimizer": "AdamW in float32",
        "base_format": "training over the 16-bit checkpoint",
        "sequence_length": f"chats of {other.sequence_length} tokens",
    }[constraint]


def beside(method: str) -> str:
    """DoRA is a candidate: the method that it is to be run beside."""
    return f", beside {method.replace('D', 'L')}" if "DoRA" in method else ""


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
