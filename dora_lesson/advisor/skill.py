"""A SKILL.md for an assistant, `llmops-fine-tuner`, written from the advisor and the reader's own results."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from dora_lesson.advisor.findings import findings
from dora_lesson.advisor.interpret import Scores, interpret
from dora_lesson.advisor.memory_fit import TrainingSetup, training_setup, usable_bytes
from dora_lesson.advisor.recommend import Recommendation
from dora_lesson.advisor.request import Request
from dora_lesson.core import ADAPTERS, DATA, METHODS

NAME = "llmops-fine-tuner"
_MARK = re.compile(r"\n<!-- as written by dora_lesson: ([0-9a-f]{16}) -->\n$")


def write_skill(
    folder: Path | str,
    recommendation: Recommendation,
    a: Scores,
    b: Scores,
    *,
    items: int,
    names: tuple[str, str] = ("LoRA", "DoRA"),
) -> tuple[Path, str]:
    """Write `{folder}/llmops-fine-tuner/SKILL.md` and return its path with a sentence on what happened.

    A file that was edited since it was written, or that something else wrote, is left as it is; the new text then
    goes beside it, into SKILL.new.md, or SKILL.new2.md where that was edited too, and so on.

    Args:
        folder: where skills are kept; `~` is your home.
        recommendation: of `recommend`.
        a, b, items, names: as in `interpret`.

    Raises:
        ValueError: as in `interpret`.
    """
    text = skill_text(recommendation, a, b, items=items, names=names)
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
    recommendation: Recommendation, a: Scores, b: Scores, *, items: int, names: tuple[str, str] = ("LoRA", "DoRA")
) -> str:
    """The whole file: `data/advisor/skill.md`, with the four methods at the recommended setup, or at the smallest."""
    request, setup = recommendation.request, recommendation.setup
    batch_size, checkpointing = (setup.batch_size, setup.gradient_checkpointing) if setup else (1, True)
    known = findings()
    template = (DATA / "advisor" / "skill.md").read_text(encoding="utf-8")
    body = template.format(
        name=NAME,
        request=request,
        batch_size=batch_size,
        checkpointing="on" if checkpointing else "off",
        methods="\n".join(_row(request, training_setup(request, each, batch_size, checkpointing)) for each in ADAPTERS),
        dora=_bullets(each for each in known if each.side == "dora"),
        lora=_bullets(each for each in known if each.side == "lora"),
        either=_bullets(each for each in known if each.side == "either"),
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


def _configuration(recommendation: Recommendation) -> str:
    if recommendation.setup is None:
        return _bullets([*recommendation.reasons, *recommendation.changes_in_words])
    return f"{recommendation.headline}:\n\n```python\n{recommendation.script()}```"
