"""What the course knows about LoRA against DoRA, line by line: each with its evidence, or marked as opinion.

The advisor, lesson 07 and the skill it writes read these lines, and nothing else states them.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

from dora_lesson.evidence.published import load_published
from dora_lesson.evidence.records import load_record, load_runs
from dora_lesson.evidence.stats import Comparison, arm, compare, paired_difference

KINDS = ("measured", "published", "opinion")


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


def findings() -> list[Line]:
    """All lines, the course's own records first. What is read from a record follows the record."""
    return [*_measured(), *_published(), *_OPINIONS]


def line(name: str) -> Line:
    """The line of that name.

    Raises:
        ValueError: there is none.
    """
    found = {known.name: known for known in findings()}
    if name not in found:
        raise ValueError(f"There is no line {name!r}; there are: {', '.join(found)}.")
    return found[name]


@functools.cache
def _measured() -> tuple[Line, ...]:
    return *_seeds(), *_sweep(), _packed_again()


def _seeds() -> list[Line]:
    lines = []
    for record, pair, names in [
        ("short", ("lora", "dora"), "DoRA minus LoRA"),
        ("four_bit", ("qlora", "qdora"), "QDoRA minus QLoRA"),
    ]:
        runs = sorted(load_record(record)["runs"], key=lambda run: run["seed"])  # values pair by seed
        for what, label in [("persona_consistency", "persona (0 to 10)"), ("task_accuracy", "task accuracy (0 to 1)")]:
            a, b = ([run["scores"][what] for run in runs if run["method"] == method] for method in pair)
            gap = paired_difference(a, b)
            side = "either" if not gap.measurable else "dora" if gap.mean > 0 else "lora"
            shown, not_shown = "zero is outside the interval", "zero is in the interval: no difference shown"
            verdict = shown if gap.measurable else not_shown
            text = f"{names}, {label}, 40 steps of the bundled model: {gap}; {verdict}."
            lines.append(Line(f"{record}, {what}", side, "measured", text, f"data/records/{record}.json"))
    return lines


def _sweep() -> list[Line]:
    """Both methods at every rank and scaling that the sweep has runs of both for."""
    runs, lines = load_runs("sweep"), []
    for name, a, b in [("sweep", "lora", "dora"), ("sweep, 4 bits", "qlora", "qdora")]:
        both = [
            {(run["config"]["r"], run["config"]["lora_alpha"]) for run in runs if run["config"]["method"] == method}
            for method in (a, b)
        ]
        found = {at: compare(arm(runs, a, *at), arm(runs, b, *at)) for at in sorted(both[0] & both[1])}
        shown = [one.mean < 0 for one in found.values() if one.measurable]
        side = "either" if len(set(shown)) != 1 else "dora" if shown[0] else "lora"
        said = []
        for (r, alpha), one in found.items():
            setting = f"r = {r}" if alpha == 2 * r else f"r = {r} with lora_alpha = {alpha:g} at one rate"
            said.append(f"{setting}: {_interval(one)}")
            if two := one.differs.get("learning_rate"):
                alike = [(q, compare(arm(runs, a, r, alpha, q), arm(runs, b, r, alpha, q))) for q in two]
                each = ", ".join(f"at {q:g} for both {_interval(same)}" for q, same in alike)
                said[-1] += f" (tuning gave the rates {two[0]:g} and {two[1]:g}; {each})"
        first = next(iter(found.values()))
        text = (
            f"{first.names[1]} minus {first.names[0]}, held-out loss in nats a token (lower is better), each at a rate "
            f"tuned for it where nothing else is said, {first.pairs} seeds, 24 steps of the bundled model: "
            f"{'; '.join(said)}. Zero is outside {len(shown)} of {len(found)}."
        )
        lines.append(Line(name, side, "measured", text, "data/records/sweep"))
    packed = compare(arm(runs, "lora", 8), arm(runs, "qlora", 8))
    text = (
        f"What 4 bits cost: QLoRA minus LoRA, r = 8, held-out loss in nats a token, each at a rate tuned for it, "
        f"{packed.pairs} seeds, 24 steps of the bundled model: {_interval(packed)}."
    )
    return [*lines, Line("cost of 4 bits", "either", "measured", text, "data/records/sweep")]


def _interval(found: Comparison) -> str:
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


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


@functools.cache
def _published() -> tuple[Line, ...]:
    ranks, tasks, orca = (load_published(name) for name in ("ranks", "commonsense", "qdora"))
    gains = [tasks[model]["DoRA"] - tasks[model]["LoRA"] for model in tasks["headline"] if model in tasks["trained %"]]
    over = [orca[model]["QDoRA"] - orca[model]["QLoRA"] for model in ("LLaMA2-7B", "LLaMA3-8B")]
    again = ranks["run again"]["DoRA"]["16"]
    tuned = load_published("learning_rate_matters/within %")
    peft, speed = load_published("peft_record/MetaMathQA/DoRA"), load_published("speed")
    author = speed["training"]["author"]
    plain, cached = (speed["unmerged inference"][name] for name in ("plain", "DoraCaching"))
    lora, dora = ranks["LoRA"], ranks["DoRA"]
    return (
        Line(
            *("low rank", "dora", "published"),
            f"At rank 8 on LLaMA-7B, commonsense tasks, DoRA has {dora['8']} and LoRA {lora['8']}; at rank 16, "
            f"{dora['16']} and {lora['16']}. Single runs, and others who re-ran DoRA at rank 16 got {min(again)} to "
            f"{max(again)}.",
            _where("ranks", "ranks/run again"),
        ),
        Line(
            *("published gains", "dora", "published"),
            f"On commonsense tasks DoRA is {min(gains):.1f} to {max(gains):.1f} points above LoRA at equal rank, four "
            "models, single runs, with a rate chosen for DoRA and one rate for LoRA.",
            _where("commonsense", "commonsense/set-up/learning rate"),
        ),
        Line(
            *("QDoRA gains", "dora", "published"),
            f"On Orca-Math, exact match, QDoRA is {over[0]:.2f} and {over[1]:.2f} above QLoRA, one run each. "
            "The two differed in scaling, dropout and initial spread as well.",
            _where("qdora", "qdora/set-up"),
        ),
        Line(
            *("tuned rates", "lora", "published"),
            f"With a learning rate tuned for each, LoRA, DoRA and others end within {tuned['lowest']} to "
            f"{tuned['highest']} %.",
            _where("learning_rate_matters"),
        ),
        Line(
            *("training time", "lora", "published"),
            f"Training with PEFT's DoRA took {peft['more time %']} % longer than with LoRA in PEFT's record (and "
            f"{peft['more memory %']} % more memory); reports range from {author['more time %']} % to 100 %.",
            _where("peft_record", "speed"),
        ),
        Line(
            *("unmerged cost", "lora", "published"),
            f"Unmerged, PEFT's DoRA answers {plain['more time %']} % slower than its LoRA ({cached['more time %']} % "
            f"slower and with {cached['more memory %']} % more memory with DoraCaching); merged, both cost what the "
            "base costs.",
            _where("speed/unmerged inference"),
        ),
        Line(
            *("vllm", "lora", "published"),
            "vLLM served LoRA adapters and no unmerged DoRA adapters when last looked up. Look again yourself.",
            _where("support/vLLM"),
        ),
        Line(
            *("packed bases", "lora", "published"),
            "PEFT 0.21 refuses DoRA on bases packed by GPTQ, AWQ, AQLM or EETQ and on Transformer-Engine layers; with "
            "torchao only int8 weight-only takes it.",
            _where("support/other quantized layers", "support/torchao"),
        ),
        Line(
            *("deepspeed", "lora", "published"),
            "There are reports of trouble with QDoRA under DeepSpeed ZeRO-2.",
            _where("support"),
        ),
        Line(
            *("fsdp", "either", "published"),
            "QDoRA with FSDP should work in 4 bits, slower than QLoRA; 8 bits are not recommended.",
            _where("support"),
        ),
    )


def _where(*paths: str) -> str:
    sources = [load_published(f"{path}/source") for path in paths]
    return "; ".join(f"{source['where']} ({source['url']})" for source in sources)


_OPINIONS = [
    Line(
        *("run both", "either", "opinion"),
        "Tune the rate first. Where quality decides, run both, five seeds or more, each at its own rate, and keep "
        "DoRA only if it wins on your task: with no difference shown, keep the cheaper one.",
        "",
    ),
    Line(
        *("persona", "either", "opinion"),
        "Tutorials say that persona tuning gains most from DoRA. We found no source for it, and no sign of it in our "
        "own persona runs: test it.",
        "",
    ),
    Line(
        *("stability", "either", "opinion"),
        "Tutorials also name stable training and complex domains as reasons for DoRA. We found no source that measures "
        "either.",
        "",
    ),
    Line(
        *("small rank", "dora", "opinion"),
        "Where memory forces a small rank, or training is very short, try DoRA beside LoRA.",
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
