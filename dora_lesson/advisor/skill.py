"""A SKILL.md for an assistant, `llmops-fine-tuner`, written from the advisor and the reader's own results."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

from dora_lesson.advisor.findings import Line, findings
from dora_lesson.advisor.interpret import Scores, interpret
from dora_lesson.advisor.memory_fit import setting, usable_bytes
from dora_lesson.advisor.recommend import Recommendation
from dora_lesson.core import METHODS as ALL
from dora_lesson.memory.estimate import adapter_parameters
from dora_lesson.multi_gpu.config import METHODS

NAME = "llmops-fine-tuner"
DESCRIPTION = (
    "Choose between LoRA, DoRA, QLoRA and QDoRA for fine-tuning a Llama on one GPU, with a configuration that runs, "
    "the memory it takes, and the evidence behind the choice. Use when asked to fine-tune a language model with "
    "adapters, to pick a method, rank or setting for a given card, or to judge a comparison of adapter runs."
)
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
        a, b, items, names: as in `own_case.interpret`.

    Raises:
        ValueError: as in `own_case.interpret`.
    """
    text = skill_text(recommendation, a, b, items=items, names=names)
    own = Path(folder).expanduser() / NAME / "SKILL.md"
    numbered = (own.with_name(f"SKILL.new{number}.md") for number in itertools.count(2))
    places = itertools.chain([own, own.with_name("SKILL.new.md")], numbered)
    path = next(place for place in places if _free(place))
    said = f"{NAME}/SKILL.md is written"
    if path != own:
        said = f"{NAME}/SKILL.md was edited and is left as it is; the new text is beside it, in {path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path, said


def skill_text(
    recommendation: Recommendation, a: Scores, b: Scores, *, items: int, names: tuple[str, str] = ("LoRA", "DoRA")
) -> str:
    """The whole file: front matter, decision rule, comparison, evidence, results, configurations, limits, sources."""
    lines = findings()
    sections = {
        "Decision rule": _RULE,
        "Methods compared": _comparison(recommendation),
        "What speaks for DoRA": _told(lines, "dora"),
        "What speaks for LoRA": _told(lines, "lora"),
        "What speaks for neither": _told(lines, "either"),
        "My results": "\n".join(f"- {line}" for line in interpret(a, b, items=items, names=names)),
        "My configuration": _configuration(recommendation),
        "The other configurations": _OTHERS,
        "Before it ships": _SAFETY,
        "Sources": f"Measured lines: files under `data/` of the course dora_lesson.\n\n{_sources(lines)}",
    }
    head = f"---\nname: {NAME}\ndescription: {DESCRIPTION}\n---\n\n# Choose an adapter, and say why\n"
    body = head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    return f"{body}\n<!-- as written by dora_lesson: {_digest(body)} -->\n"


def _free(path: Path) -> bool:
    """Whether nothing is lost by writing there: no file, or one as it was written."""
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _MARK.search(text)
    return found is not None and _digest(text[: found.start()]) == found.group(1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(lines: list[Line], side: str) -> str:
    return "\n".join(f"- {line}" for line in lines if line.side == side)


def _sources(lines: list[Line]) -> str:
    return "\n".join(f"- {source}" for source in dict.fromkeys(line.source for line in lines if line.source))


def _comparison(recommendation: Recommendation) -> str:
    """Memory and trained numbers of the four methods at one setting: the recommended one, or the smallest."""
    asked, fit = recommendation.request, recommendation.fit
    size, again = (fit.batch_size, fit.gradient_checkpointing) if fit else (1, True)
    rows = []
    for method in METHODS:
        found = setting(asked.config, method, size, again, **asked.sizes)
        trained = adapter_parameters(asked.config, method.removeprefix("q"), r=asked.r)[0]
        fits = "yes" if found.peak <= usable_bytes(asked.vram_gb) else "no"
        rows.append(f"| {ALL[method].label} | {trained:,} | {found.peak / 1e9:.1f} | {fits} |")
    return "\n".join([
        f"{asked.label}, r = {asked.r} on all linear layers, {size} × {asked.sequence_length} tokens a pass, "
        f"checkpointing {'on' if again else 'off'}, PEFT's layers; estimated with dora_lesson, not measured here.",
        "",
        f"| method | trained numbers | GB at the peak | fits in {asked.vram_gb:g} GB |",
        "| --- | --- | --- | --- |",
        *rows,
    ])  # fmt: skip


def _configuration(recommendation: Recommendation) -> str:
    if recommendation.fit is None:
        return "\n".join(f"- {line}" for line in [*recommendation.reasons, *recommendation.would_change])
    return f"{recommendation.headline}:\n\n```python\n{recommendation.snippet}```"


_RULE = """\
1. Estimate the peak of a training step before anything is downloaded. If even a 4-bit base does not fit: a smaller
   model, shorter chats, or a rented card.
2. Keep the base in 16 bits if a step fits so, of LoRA if not of DoRA. Take 4 bits if not, if the base came packed or
   will be served in 4 bits, or if memory is first.
3. Name DoRA (QDoRA over 4 bits) only if quality is first, the adapter will be merged, the stack takes it and a step of
   it fits, and then as a candidate to be run beside LoRA (QLoRA). Otherwise LoRA (QLoRA).
4. Tune the rate first, whatever is named. Where quality decides, run LoRA and DoRA on the same chats, five seeds or
   more, each at its own rate, and keep the one that wins on held-out items. With no difference shown, keep the cheaper
   one."""

_OTHERS = """\
All four are one `LoraConfig`; `use_dora=True` makes DoRA of LoRA, and a base loaded with `BitsAndBytesConfig` (NF4,
double quantization) makes QLoRA and QDoRA of them. Keep `lora_alpha / r` the same when you compare, and
`lora_dropout=0.0` with DoRA in PEFT.

| method | base | `use_dora` |
| --- | --- | --- |
| LoRA | 16 bits | False |
| DoRA | 16 bits | True |
| QLoRA | 4 bits | False |
| QDoRA | 4 bits | True |"""

_SAFETY = """\
- DoRA is newer than LoRA and has less production history. Test on your own task before you ship.
- After training, look at the layers: do magnitudes exist, train and move? A flag can fail without a word.
- An adapter can repeat what it was trained on. Leave out what must not be said to whoever can ask it, and try to get it
  out before others do.
- Merge into 16 bits, never back into the 4-bit base, and compare the merged model's answers with the unmerged one's."""
