"""Prompts for an AI assistant that carry the reader's own numbers; their texts are in `data/advisor/prompts.yaml`."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from dora_lesson.advisor.interpret import Scores, interpret, parse_scores
from dora_lesson.advisor.recommend import Recommendation, require_recommendation
from dora_lesson.advisor.request import Request
from dora_lesson.core import DATA, whole

SPOKEN_CHATS = 607  # the spoken level's, to train on


def prompts(
    a: Scores,
    b: Scores,
    recommendation: Recommendation,
    *,
    items: int,
    task: str = "a task assistant that replies in one persona and ends in a JSON call",
    chats: int | None = None,
    names: tuple[str, str] = ("LoRA", "DoRA"),
) -> dict[str, str]:
    """Three prompts for an AI assistant, with the reader's own numbers; the title of each says what it trains.

    Args:
        a, b, items, names: as in `interpret`.
        recommendation: of `recommend`.
        task: what is fine-tuned for, in a few words.
        chats: how many there are to train on; None is what the recommendation was asked for, else those of the set.

    Raises:
        ValueError: as in `interpret`, or `chats` is not a whole number from 1.
    """
    request = require_recommendation(recommendation).request
    (chats,) = whole(chats=request.examples or SPOKEN_CHATS if chats is None else chats)
    fields = {
        "a": names[0],
        "b": names[1],
        "results": "\n".join(f"- {sentence}" for sentence in interpret(a, b, items=items, names=names)),
        "table": _table(parse_scores(a), parse_scores(b), names),
        "items": items,
        "task": task,
        "chats": chats,
        "machine": _machine(request),
        "request": request,
        "recommendation": recommendation.headline if recommendation.setup else "none: nothing fits",
        "configuration": recommendation.script() or "(none)",
    }
    return {title: template.format(**fields) for title, template in _texts()["prompts"].items()}


def _machine(request: Request) -> str:
    kind = {"cuda": "one GPU of", "cpu": "a processor with", "mps": "Apple's GPU with"}[request.device]
    each = f"{request.gpus} GPUs with {request.trainer}, each of" if request.gpus > 1 else kind
    return f"{each} {request.vram_gb:g} GB, training in {str(request.dtype).removeprefix('torch.')}"


def learning() -> dict[str, str]:
    """What each prompt trains, in a sentence, by its title."""
    return dict(_texts()["learning"])


def _texts() -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = yaml.safe_load((DATA / "advisor" / "prompts.yaml").read_text(encoding="utf-8"))
    return texts


def _table(a: Scores, b: Scores, names: tuple[str, str]) -> str:
    def cell(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    head = f"| one value a seed | {names[0]} | {names[1]} |\n| --- | --- | --- |"
    return "\n".join([head, *(f"| {score} | {cell(a[score])} | {cell(b[score])} |" for score in a)])
