"""What the course knows about LoRA against DoRA, line by line: each with its evidence, or marked as opinion.

The advisor, lesson 07 and the skill it writes read these lines, and nothing else states them.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

from dora_lesson.evidence import paired_difference
from dora_lesson.records import load_record

KINDS = ("measured", "published", "opinion")
PAPER = "Liu et al., arXiv 2402.09353v6"
PEFT_DOCS = "https://huggingface.co/docs/peft/developer_guides/lora"
PEFT_RECORD = "https://github.com/huggingface/peft/tree/main/method_comparison"


@dataclass(frozen=True)
class Line:
    """One statement: `side` is "dora", "lora" or "either"; `kind` one of `KINDS`; `source` says where to look it up."""

    name: str
    side: str
    kind: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} [{self.kind}: {self.source}]" if self.source else f"{self.text} [{self.kind}]"


def evidence_lines() -> list[Line]:
    """All lines, the course's own records first. What is read from a record follows the record."""
    return [*_measured(), *_PUBLISHED, *_OPINIONS]


def line(name: str) -> Line:
    """The line of that name.

    Raises:
        ValueError: there is none.
    """
    found = {known.name: known for known in evidence_lines()}
    if name not in found:
        raise ValueError(f"There is no line {name!r}; there are: {', '.join(found)}.")
    return found[name]


@functools.cache
def _measured() -> tuple[Line, ...]:
    return *_seeds(), _packed_again()


def _seeds() -> list[Line]:
    lines = []
    for record, pair, names in [
        ("short", ("lora", "dora"), "DoRA minus LoRA"),
        ("four_bit", ("qlora", "qdora"), "QDoRA minus QLoRA"),
    ]:
        runs = load_record(record)["runs"]
        for what, label in [("persona_consistency", "persona (0 to 10)"), ("task_accuracy", "task accuracy (0 to 1)")]:
            a, b = ([run["scores"][what] for run in runs if run["method"] == method] for method in pair)
            gap = paired_difference(a, b)
            side = "either" if not gap.measurable else "dora" if gap.mean > 0 else "lora"
            verdict = "zero is in the interval: no difference shown"
            if gap.measurable:
                verdict = "zero is outside the interval"
            text = f"{names}, {label}, 40 steps of the embedded model: {gap}; {verdict}."
            lines.append(Line(f"{record}, {what}", side, "measured", text, f"data/records/{record}.json"))
    return lines


def _packed_again() -> Line:
    runs = [run for run in load_record("four_bit")["runs"] if "requantised" in run]
    kept, again = (
        statistics.fmean(run[key]["persona_consistency"] for run in runs) for key in ("scores", "requantised")
    )
    base = next(run for run in load_record("four_bit")["runs"] if run["method"] == "qbase")
    text = (
        f"Merged into 4 bits again, the persona falls from {kept:.1f} to {again:.1f} of 10 "
        f"(the untrained base has {base['scores']['persona_consistency']:.1f}): keep the adapter beside a packed base."
    )
    return Line("packed again", "either", "measured", text, "data/records/four_bit.json")


_PUBLISHED = [
    Line(
        *("low rank", "dora", "published"),
        "At rank 8 on LLaMA-7B, commonsense tasks, DoRA has 77.9 and LoRA 40.7; at rank 16, 77.5 and 70.9. Single "
        "runs, and others who re-ran DoRA at rank 16 got 53.6 to 62.7.",
        f"{PAPER}, Table 15; NVlabs/DoRA issues 14 and 26",
    ),
    Line(
        *("published gains", "dora", "published"),
        "On commonsense tasks DoRA is 1.0 to 4.4 points above LoRA at equal rank, four models, single runs, with a "
        "rate chosen for DoRA and one rate for LoRA.",
        f"{PAPER}, Tables 1 and 8",
    ),
    Line(
        *("QDoRA gains", "dora", "published"),
        "On Orca-Math QDoRA is 0.19 and 0.24 above QLoRA in exact match, two models, single runs; the two differed in "
        "rank scaling, dropout and initial spread as well, so that the gap is not the decomposition's alone.",
        "Answer.AI, https://www.answer.ai/posts/2024-04-26-fsdp-qdora-llama3.html and its code",
    ),
    Line(
        *("tuned rates", "lora", "published"),
        "With a learning rate tuned for each, LoRA, DoRA and others end within 1 to 2 %.",
        "arXiv 2602.04998, abstract",
    ),
    Line(
        *("training time", "lora", "published"),
        "Training with PEFT's DoRA took 26 % longer than with LoRA in PEFT's record (and 10 % more memory); reports "
        "range from 20 % to twice as long.",
        f"{PEFT_RECORD}, Llama-3.2-3B, July 2026; huggingface/peft issue 1474",
    ),
    Line(
        *("unmerged cost", "lora", "published"),
        "Unmerged, PEFT's DoRA answers 139 % slower than its LoRA (17 % slower and with 41 % more memory with "
        "DoraCaching); merged, both cost what the base costs.",
        f"{PEFT_DOCS}, Llama-3.1-8B",
    ),
    Line(
        *("vllm", "lora", "published"),
        "vLLM served LoRA adapters and no unmerged DoRA adapters when last looked up; look again before you decide.",
        "vllm-project/vllm issue 6983, a thread",
    ),
    Line(
        *("packed bases", "lora", "published"),
        "PEFT 0.21 refuses DoRA on bases packed by GPTQ, AWQ, AQLM or EETQ and on Transformer-Engine layers; with "
        "torchao only int8 weight-only takes it.",
        "PEFT 0.21, tuners/lora",
    ),
    Line(
        *("deepspeed", "lora", "published"),
        "There are reports of trouble with QDoRA under DeepSpeed ZeRO-2.",
        PEFT_DOCS,
    ),
    Line(
        *("fsdp", "either", "published"),
        "QDoRA with FSDP should work in 4 bits, slower than QLoRA; 8 bits are not recommended.",
        PEFT_DOCS,
    ),
]

_OPINIONS = [
    Line(
        *("run both", "either", "opinion"),
        "Where quality decides, run both, three seeds or more, each at a rate tuned for it, and keep DoRA only if it "
        "wins on your task.",
        "",
    ),
    Line(
        *("persona", "either", "opinion"),
        "Tutorials say that persona tuning gains most from DoRA. We found no source for it, and no sign of it in our "
        "own persona runs: test it.",
        "",
    ),
    Line(
        *("small rank", "dora", "opinion"),
        "Where the rank has to be small (many adapters to ship), DoRA deserves the first try: the largest published "
        "gaps are there.",
        "",
    ),
    Line(
        *("simple jobs", "lora", "opinion"),
        "For a fixed output format, a first experiment, or a pipeline that runs on LoRA already, LoRA is enough.",
        "",
    ),
    Line(
        *("newer", "lora", "opinion"),
        "DoRA is newer (2024) and has less production history: fewer tools take it, fewer people met its failures.",
        "",
    ),
]
