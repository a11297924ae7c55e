"""A SKILL.md for an assistant, `llmops-fine-tuner`, written from the advisor and the reader's own results."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dora_lesson.advisor.findings import findings
from dora_lesson.advisor.interpret import Scores, interpret
from dora_lesson.advisor.memory_fit import TrainingSetup, needed_gb, smallest_setup, training_setup, usable_bytes
from dora_lesson.advisor.recommend import Recommendation, as_call, require_recommendation
from dora_lesson.advisor.request import Request
from dora_lesson.advisor.text import question
from dora_lesson.core import ADAPTERS, DATA, METHODS
from dora_lesson.evidence.published import load_published

NAME = "llmops-fine-tuner"
MODELS = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b")  # whose smallest cards are tabled
_MARK = re.compile(r"\n<!-- as written by dora_lesson: ([0-9a-f]{16}) -->\n$")


def write_skill(
    folder: Path | str,
    recommendation: Recommendation,
    a: Scores,
    b: Scores,
    *,
    items: int,
    names: tuple[str, str] = ("LoRA", "DoRA"),
    about: str = "",
) -> tuple[Path, str]:
    """Write `{folder}/llmops-fine-tuner/SKILL.md` and return its path with a sentence on what happened.

    A file that was edited since it was written, or that something else wrote, is left as it is; the new text then
    goes beside it, into SKILL.new.md, or SKILL.new2.md where that was edited too, and so on.

    Args:
        folder: where skills are kept; `~` is your home.
        recommendation: of `recommend`.
        a, b, items, names: as in `interpret`.
        about: what the two were: model, rank, steps and data.

    Raises:
        ValueError: as in `interpret`, or `folder` is not a name.
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"folder is {folder!r}, but the name of a folder is expected.")
    text = skill_text(recommendation, a, b, items=items, names=names, about=about)
    skill = Path(folder).expanduser() / NAME / "SKILL.md"
    numbered = (skill.with_name(f"SKILL.new{number}.md") for number in itertools.count(2))
    candidates = itertools.chain([skill, skill.with_name("SKILL.new.md")], numbered)
    path = next(candidate for candidate in candidates if _may_write(candidate))
    message = f"{NAME}/SKILL.md is written"
    if path != skill:
        message = f"{NAME}/SKILL.md was edited and is left as it is; the new text is beside it, in {path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path, message


def skill_text(
    recommendation: Recommendation,
    a: Scores,
    b: Scores,
    *,
    items: int,
    names: tuple[str, str] = ("LoRA", "DoRA"),
    about: str = "",
) -> str:
    """The whole file: `data/advisor/skill.md`, with the four methods at the recommended setup, or at the smallest."""
    request, setup = require_recommendation(recommendation).request, recommendation.setup
    setup = setup or smallest_setup(request, "qlora")
    setting = (setup.batch_size, setup.gradient_checkpointing, setup.optimizer)
    known = findings()
    template = (DATA / "advisor" / "skill.md").read_text(encoding="utf-8")
    body = template.format(
        name=NAME,
        request=request,
        batch_size=setup.batch_size,
        checkpointing="on" if setup.gradient_checkpointing else "off",
        methods="\n".join(_row(request, training_setup(request, each, *setting)) for each in ADAPTERS),
        dora=_bullets(each for each in known if each.side == "dora"),
        lora=_bullets(each for each in known if each.side == "lora"),
        either=_bullets(each for each in known if each.side == "either"),
        question=question(request),
        headline=recommendation.headline,
        about=about or "not written down: add model, rank, steps and data, or leave these results out",
        again=as_call(request),
        above=load_published("memory/above the estimate %"),
        cards="\n".join(_cards(request, name) for name in MODELS),
        results=_bullets(interpret(a, b, items=items, names=names)),
        configuration=_configuration(recommendation),
        sources=_bullets(dict.fromkeys(each.source for each in known if each.source)),
    )
    return f"{body}\n<!-- as written by dora_lesson: {_digest(body)} -->\n"


def _may_write(path: Path) -> bool:
    """Whether nothing is lost by writing there: no file, or one as it was written."""
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark.group(1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bullets(sentences: Iterable[object]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _row(request: Request, setup: TrainingSetup) -> str:
    fits = "yes" if setup.peak <= usable_bytes(request.vram_gb) else "no"
    return f"| {METHODS[setup.method].label} | {setup.trained:,} | {setup.peak / 1e9:.1f} | {fits} |"


def _cards(request: Request, name: str) -> str:
    """The smallest card for each method on one model, at the request's constraints, with chats of 512 tokens."""
    asked = replace(
        request.with_model(name), sequence_length=512, priority="quality", trainer="one gpu", gpus=1, device="cuda"
    )
    setups = [smallest_setup(asked, method) for method in ADAPTERS]
    setups.append(smallest_setup(replace(asked, priority="memory"), "qlora"))
    needed = (needed_gb(setup.peak) for setup in setups)
    return f"| {name} | {' | '.join(f'{math.ceil(10 * gb) / 10:g}' for gb in needed)} |"


def _configuration(recommendation: Recommendation) -> str:
    if recommendation.setup is None:
        return _bullets([*recommendation.reasons, *recommendation.changes_in_words])
    return f"{recommendation.headline}:\n\n```python\n{recommendation.script()}```"
