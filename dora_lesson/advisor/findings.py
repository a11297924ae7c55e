"""What the course knows about LoRA against DoRA: each finding with its evidence, or marked as opinion.

The sentences stand in `data/advisor/findings.yaml`; their numbers come from the records and from `data/published`.
The advisor, lesson 07 and the skill it writes read these findings, and nothing else states them.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from dora_lesson.core import DATA, METHODS
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
    runs = load_runs("sweep")
    packed = _over_four_bits(runs, "QDoRA", "qlora", "qdora")
    cost = _over_four_bits(runs, "cost of 4 bits", "lora", "qlora")
    return _control(), *_seeds(), packed, cost, _packed_again()


def _say(template: str, name: str, side: Side, source: str, shown: str, **numbers: Any) -> Finding:
    words = _sentences().measured[template]
    text, claim = words.text.format(**numbers), words.claim.format(**numbers)
    return Finding(name, side, "measured", text, f"data/records/{source}", claim, shown)


def _seeds() -> list[Finding]:
    """Two methods, seed by seed, on the scores of lesson 02's runs and of the first edition's over 4 bits."""
    scores = {"persona_consistency": "persona (0 to 10)", "task_accuracy": "task accuracy (0 to 1)"}
    four_bit = load_record("four_bit")["runs"]
    experiments = [
        ("methods.jsonl", [run["config"] | {"scores": run["scores"]} for run in load_runs("methods")], "lora", "dora"),
        ("four_bit.json", [run for run in four_bit if run["method"] != "qbase"], "qlora", "qdora"),
    ]
    found = []
    for record, runs, first, second in experiments:
        runs = sorted(runs, key=lambda run: run["seed"])  # values pair by seed
        names, steps = f"{METHODS[second].label} minus {METHODS[first].label}", runs[0]["steps"]
        for score, label in scores.items():
            a, b = ([run["scores"][score] for run in runs if run["method"] == method] for method in (first, second))
            gap = paired_difference(a, b)
            side: Side = "either" if not gap.measurable else "dora" if gap.mean > 0 else "lora"
            shown, not_shown = "zero is outside the interval", "zero is in the interval: no difference shown"
            sentence = {"names": names, "score": label, "steps": steps, "gap": gap}
            sentence["verdict"] = shown if gap.measurable else not_shown
            said = f"{int(gap.measurable)} of 1"
            name = f"{record.partition('.')[0]}, {score}"
            found.append(_say("seeds", name, side, record, said, **sentence))
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


def _over_four_bits(runs: list[dict[str, Any]], name: str, first: str, second: str) -> Finding:
    """Two methods at r = 8 in the first edition's runs."""
    r = 8
    found = compare(arm(runs, first, r), arm(runs, second, r))
    side: Side = _lower(found) if second == "qdora" else "either"  # what 4 bits cost speaks for neither
    a, b = found.names
    sentence = {"names": f"{b} minus {a}", "pairs": found.pairs, "steps": runs[0]["config"]["steps"], "r": r}
    sentence |= {"gap": _interval(found), "verdict": found.verdict.rstrip(".")}
    return _say(name, name, side, "sweep", f"{int(found.measurable)} of 1", **sentence)


def _interval(comparison: Comparison) -> str:
    return f"{comparison.mean:+.4f} ({comparison.low:+.4f} to {comparison.high:+.4f})"


def _packed_again() -> Finding:
    runs = load_record("four_bit")["runs"]
    merged, repacked = (
        statistics.fmean(run[key]["persona_consistency"] for run in runs if "requantised" in run)
        for key in ("scores", "requantised")
    )
    base = next(run for run in runs if run["method"] == "qbase")["scores"]["persona_consistency"]
    numbers = {"kept": merged, "again": repacked, "untrained": base}
    return _say("packed again", "packed again", "either", "four_bit.json", "no interval", **numbers)


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
