"""What the course knows about LoRA against DoRA: each finding with its evidence, or marked as opinion.

The sentences stand in `data/advisor/findings.yaml`; their numbers come from the records and from `data/published`.
The advisor, lesson 07 and the skill it writes read these findings, and nothing else states them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from dora_lesson.core import DATA
from dora_lesson.evidence.compare import Comparison, arm, compare
from dora_lesson.evidence.design import read_design
from dora_lesson.evidence.published import load_published
from dora_lesson.evidence.records import load_record, load_runs
from dora_lesson.evidence.stats import paired_difference, perplexity_percent

Side = Literal["dora", "lora", "either"]
KINDS = ("measured", "published", "opinion")  # of `findings()`; a `rule` follows from a request alone


@dataclass(frozen=True)
class Finding:
    """One statement: which side it speaks for, its kind (one of `KINDS`, or "rule"), and where to look it up.

    `claim` is the statement in a few words. `shown` says for a measured one in how many of its comparisons zero is
    outside the interval, for a published one what kind of source it has.
    """

    name: str
    side: Side
    kind: str
    text: str
    source: str = ""
    claim: str = ""
    shown: str = ""

    def __str__(self) -> str:
        if self.kind == "rule":
            return self.text
        return f"{self.text} [{self.kind}: {self.source}]" if self.source else f"{self.text} [{self.kind}]"


class _Sentence(BaseModel):
    model_config = ConfigDict(extra="forbid")
    claim: str
    side: Side
    text: str
    sources: list[str] = []
    figures: dict[str, str | list[str] | dict[str, list[str]]] = {}


class _Template(BaseModel):
    model_config = ConfigDict(extra="forbid")
    claim: str
    text: str


class _Sentences(BaseModel):
    model_config = ConfigDict(extra="forbid")
    measured: dict[str, _Template]
    published: dict[str, _Sentence]
    opinion: dict[str, _Sentence]
    rule: dict[str, str]


@functools.cache
def _sentences() -> _Sentences:
    file = DATA / "advisor" / "findings.yaml"
    return _Sentences.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def findings() -> list[Finding]:
    """All findings, the course's own records first. What is read from a record follows the record."""
    return [*_measured(), *_published(), *_opinions()]


def finding(name: str) -> Finding:
    """The finding of that name.

    Raises:
        ValueError: there is none.
    """
    known = {each.name: each for each in findings()}
    if name not in known:
        raise ValueError(f"name is {name!r}, but one of these findings is expected: {', '.join(known)}.")
    return known[name]


def rule(name: str, **numbers: Any) -> Finding:
    """A statement that follows from a request and its setup, with their numbers in it."""
    return Finding(name, "either", "rule", _sentences().rule[name].format(**numbers))


@functools.cache
def _measured() -> tuple[Finding, ...]:
    runs = load_runs("four_bit")
    narrow: dict[str, Any] = {"lora_alpha": 16, "lora_dropout": 0.1, "lora_A_std": 0.0}
    packed = _over_four_bits("QDoRA", "QDoRA", "four_bit", arm(runs, "qlora_matched", 8), arm(runs, "qdora", 8))
    cost = _over_four_bits("cost of 4 bits", "cost of 4 bits", "four_bit", arm(runs, "lora", 8), arm(runs, "qlora", 8))
    published = load_runs("mismatch")
    first, second = (arm(published, method, 64, **narrow) for method in ("qlora", "qdora"))
    where = " in QLoRA's published set-up"
    set_up = _over_four_bits("QDoRA", "QDoRA in QLoRA's set-up", "mismatch", first, second, where)
    return _control(), *_seeds(), packed, set_up, cost, _packed_again()


def _say(template: str, name: str, side: Side, source: str, shown: str, **numbers: Any) -> Finding:
    words = _sentences().measured[template]
    text, claim = words.text.format(**numbers), words.claim.format(**numbers)
    return Finding(name, side, "measured", text, f"data/records/{source}", claim, shown)


def _seeds() -> list[Finding]:
    """LoRA and DoRA, seed by seed, on the scores of lesson 02's runs."""
    scores = {"persona_consistency": "persona (0 to 10)", "task_accuracy": "task accuracy (0 to 1)"}
    runs = sorted(
        (run["config"] | {"scores": run["scores"]} for run in load_runs("methods")), key=lambda run: run["seed"]
    )
    found = []
    for score, label in scores.items():
        a, b = ([run["scores"][score] for run in runs if run["method"] == method] for method in ("lora", "dora"))
        gap = paired_difference(a, b)
        side: Side = "either" if not gap.measurable else "dora" if gap.mean > 0 else "lora"
        shown, not_shown = "zero is outside the interval", "zero is in the interval: no difference shown"
        sentence = {"names": "DoRA minus LoRA", "score": label, "steps": runs[0]["steps"], "gap": gap}
        sentence["verdict"] = shown if gap.measurable else not_shown
        name, said = f"methods, {score}", f"{int(gap.measurable)} of 1"
        found.append(_say("seeds", name, side, "methods.jsonl", said, **sentence))
    return found


def _control() -> Finding:
    """LoRA, DoRA, and LoRA with as many trained numbers, each seed at the rate that is best for the others."""
    runs, design = load_runs("control"), read_design()
    lora, dora, matched = (arm(runs, method, 4) for method in ("lora", "dora", "lora_matched"))
    primary, plain = compare(matched, dora), compare(lora, dora)
    alike = f"alike within {perplexity_percent(design.margin):.0f} % of perplexity"
    verdict = alike if primary.within(design.margin) else primary.verdict.rstrip(".")
    sentence = {"pairs": primary.pairs, "steps": design.steps, "r": 4, "matched": _interval(primary)}
    sentence |= {"plain": _interval(plain), "verdict": verdict}
    return _say("control", "control", _lower(primary), "control.jsonl", f"{int(primary.measurable)} of 1", **sentence)


def _lower(found: Comparison) -> Side:
    """The side whose loss is lower, of LoRA and DoRA in this order."""
    return "either" if not found.measurable else "dora" if found.mean < 0 else "lora"


def _over_four_bits(
    template: str, name: str, record: str, first: list[Any], second: list[Any], where: str = ""
) -> Finding:
    """Two arms, one of them at least over 4 bits."""
    found, config = compare(first, second), second[0]["config"]
    side: Side = _lower(found) if config["method"] == "qdora" else "either"  # what 4 bits cost speaks for neither
    a, b = (name.replace(" matched", " with as many trained numbers") for name in found.names)
    sentence = {"names": f"{b} minus {a}", "pairs": found.pairs, "steps": config["steps"], "r": config["r"]}
    sentence |= {"gap": _interval(found), "verdict": found.verdict.rstrip("."), "where": where}
    return _say(template, name, side, f"{record}.jsonl", f"{int(found.measurable)} of 1", **sentence)


def _interval(comparison: Comparison) -> str:
    return f"{comparison.mean:+.4f} ({comparison.low:+.4f} to {comparison.high:+.4f})"


def _packed_again() -> Finding:
    half, end = (
        {row["name"]: round(100 * row["exact"]) for row in load_record(name)["rows"]}
        for name in ("merges_half", "merges")
    )
    return _say("packed again", "packed again", "either", "merges.json", "no interval", half=half, end=end)


@functools.cache
def _published() -> tuple[Finding, ...]:
    found = []
    for name, sentence in _sentences().published.items():
        figures = {field: _figure(path) for field, path in sentence.figures.items()}
        text, where = sentence.text.format(**figures), _where(sentence.sources)
        status = load_published(f"{sentence.sources[0]}/source/status")
        found.append(Finding(name, sentence.side, "published", text, where, sentence.claim, status))
    return tuple(found)


class Span(NamedTuple):
    """The lowest and the highest of several figures."""

    low: float
    high: float


def _figure(entry: str | list[str] | dict[str, list[str]]) -> Any:
    """A published figure by its path; of two paths the difference; of several figures their `Span`."""
    if isinstance(entry, list):
        first, second = map(load_published, entry)
        return first - second
    value = load_published(entry) if isinstance(entry, str) else [_figure(each) for each in entry.values()]
    return Span(min(value), max(value)) if isinstance(value, list) else value


def _where(paths: list[str]) -> str:
    sources = [load_published(f"{path}/source") for path in paths]
    return "; ".join(f"{source['where']} ({source['url']})" for source in sources)


def _opinions() -> list[Finding]:
    return [
        Finding(name, each.side, "opinion", each.text, "", each.claim) for name, each in _sentences().opinion.items()
    ]
