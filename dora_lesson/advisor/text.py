"""A recommendation in words. The sentences of its costs and reasons come from `data/advisor/findings.yaml`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dora_lesson.advisor.memory_fit import usable_bytes
from dora_lesson.advisor.request import Request

if TYPE_CHECKING:
    from dora_lesson.advisor.recommend import Recommendation

_SERVED = {
    "merged": "merged into 16-bit weights",
    "unmerged": "served unmerged",
    "4-bit": "served beside a packed base",
}


def in_words(recommendation: Recommendation) -> str:
    """The whole answer: method, setup, memory, cost, reasons, and what would change it."""
    request, setup = recommendation.request, recommendation.setup
    served = "beside a packed base" if request.inference == "4-bit" else request.inference
    constraints = f"{request.label} on {request.vram_gb:g} GB, {request.priority} first, served {served}"
    lines = [f"{recommendation.headline}: {constraints} ({request.stack})"]
    if setup:
        checkpointing = ", gradient checkpointing" if setup.gradient_checkpointing else ""
        lines += [
            f"  setting  {setup.batch_size} × {setup.sequence_length} tokens a pass, "
            f"{setup.gradient_accumulation_steps} passes a step{checkpointing}",
            f"  memory   {setup.peak / 1e9:.1f} GB at the peak with PEFT's layers ({setup.estimate.total / 1e9:.1f} "
            f"with this course's), of {usable_bytes(request.vram_gb) / 1e9:.1f} that may be planned",
        ]
    sections = {
        "cost": [finding.text for finding in recommendation.cost],
        "why": [str(finding) for finding in recommendation.reasons],
        "what would change it": changes_in_words(recommendation),
    }
    for title, sentences in sections.items():
        lines += [f"  {title}", *(f"    - {sentence}" for sentence in sentences)] if sentences else []
    return "\n".join(lines)


def changes_in_words(recommendation: Recommendation) -> list[str]:
    """What would change the answer. Larger cards share a sentence, and so do single changes to the same method."""
    cards: dict[str, list[str]] = {}
    single: dict[str, list[str]] = {}
    together = []
    for change in recommendation.would_change:
        words = [
            _condition(recommendation.request, change.request, name) for name in change.constraints if name != "vram_gb"
        ]
        if "vram_gb" in change.constraints:
            place = " and ".join([*words, "on a larger card, bought or rented"])
            cards.setdefault(place, []).append(f"{change.answer} from {change.request.vram_gb:g} GB")
        elif len(words) == 1:
            single.setdefault(change.answer, []).append(words[0])
        else:
            together.append(f"{' and '.join(words)}, together: then {change.answer}{beside(change.answer)}")
    return [
        *(f"{place}: {', '.join(methods)}" for place, methods in cards.items()),
        *(f"{_either(words)}: then {method}{beside(method)}" for method, words in single.items()),
        *together,
    ]


def _condition(request: Request, other: Request, constraint: str) -> str:
    """What is different about the other request, in this constraint."""
    return {
        "label": f"a smaller model, such as {other.label}",
        "priority": f"{other.priority} first",
        "inference": _SERVED[other.inference],
        "stack": "training over the 16-bit checkpoint" if request.packed else "without DeepSpeed",
        "sequence_length": f"chats of {other.sequence_length} tokens",
    }[constraint]


def beside(method: str) -> str:
    """DoRA is a candidate: the method that it is to be run beside."""
    return f", beside {method.replace('D', 'L')}" if "DoRA" in method else ""


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
