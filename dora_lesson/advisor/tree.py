"""The advisor's tree as a figure, with the way through it that one recommendation took."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dora_lesson.lesson import plots

SMALLER = "a smaller model,\nor the cloud"
_THIRD = "Quality first, merged,\nand can DoRA be had?"
# Name: place, text. A question's name is its key in `Recommendation.answers`, with the side of the tree it stands on.
QUESTIONS = {
    "fits": ((5.0, 9.2), "Does a step fit, with\nthe base in 4 bits?"),
    "sixteen": ((5.0, 6.4), "Can and may the base\nstay in 16 bits?"),
    "dora, 16": ((2.3, 3.6), _THIRD),
    "dora, 4": ((7.7, 3.6), _THIRD),
}
LEAVES = {
    "DoRA": (0.9, 0.7),
    "LoRA": (3.6, 0.7),
    "QDoRA": (6.4, 0.7),
    "QLoRA": (9.1, 0.7),
    SMALLER: (8.9, 9.2),
}
EDGES = [  # question, answer, where it leads
    ("fits", True, "sixteen"),
    ("fits", False, SMALLER),
    ("sixteen", True, "dora, 16"),
    ("sixteen", False, "dora, 4"),
    ("dora, 16", True, "DoRA"),
    ("dora, 16", False, "LoRA"),
    ("dora, 4", True, "QDoRA"),
    ("dora, 4", False, "QLoRA"),
]


def way(answers: dict[str, bool]) -> list[str]:
    """Questions and leaf on the way that these answers take, from the top; empty where no question was asked."""
    if not answers:
        return []
    passed = ["fits"]
    while passed[-1] in QUESTIONS:
        asked = passed[-1]
        answer = answers[asked.partition(",")[0]]
        passed.append(next(end for start, said, end in EDGES if (start, said) == (asked, answer)))
    return passed


def decision_tree(recommendation: Any = None) -> tuple[Figure, str]:
    """The tree and its alternative text; with a recommendation, its way is drawn thick and solid, the rest dashed."""
    passed = way(recommendation.answers) if recommendation else []
    fig, (ax,) = plots.figure(height=3.9)
    ax.set(xlim=(-0.4, 10.4), ylim=(0, 10))
    ax.axis("off")
    for start, answer, end in EDGES:
        taken = start in passed and end in passed
        _edge(ax, QUESTIONS[start][0], QUESTIONS[end][0] if end in QUESTIONS else LEAVES[end], answer, taken)
    for name, (place, text) in QUESTIONS.items():
        _box(ax, place, text, name in passed, "white")
    for name, place in LEAVES.items():
        look = plots.METHODS.get(name)
        _box(ax, place, name, name in passed, look.color if look else plots.OKABE_ITO["grey"], leaf=True)
    return fig, _said(ax, recommendation, passed)


def _said(ax: Axes, recommendation: Any, passed: list[str]) -> str:
    tree = (
        "A tree of three questions. A step does not fit: a smaller model or the cloud. With the base in 16 bits: DoRA "
        "or LoRA. With the base in 4 bits: QDoRA or QLoRA."
    )
    if recommendation is None:
        return tree
    asked = recommendation.request
    title = f"{asked.label}, {asked.vram_gb:g} GB, {asked.priority} first, {asked.inference}, {asked.stack}"
    found = recommendation.method or "nothing to recommend"
    ax.set_title(f"{title}: {found}", fontsize=10)
    words = [f"{name.partition(',')[0]}: {'yes' if a else 'no'}" for name, a in recommendation.answers.items()]
    return f"{tree} The way for {title}, {', '.join(words) if passed else 'not asked'}, ends at: {found}."


def _edge(ax: Axes, start: plots.Point, end: plots.Point, answer: bool, taken: bool) -> None:
    color, width, style = ("black", 2.6, "-") if taken else (plots.OKABE_ITO["grey"], 1.0, "--")
    ax.plot(*zip(start, end, strict=True), color=color, lw=width, ls=style, zorder=1)
    x, y = (0.45 * a + 0.55 * b for a, b in zip(start, end, strict=True))
    look: Any = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
    weight = "bold" if taken else "normal"
    ax.text(x, y, "yes" if answer else "no", ha="center", va="center", fontsize=8, bbox=look, weight=weight)


def _box(ax: Axes, place: plots.Point, text: str, passed: bool, fill: str, leaf: bool = False) -> None:
    edge = "black" if passed else plots.OKABE_ITO["grey"]
    look: Any = {"boxstyle": "round,pad=0.4", "fc": fill, "ec": edge, "lw": 2.6 if passed else 1.0}
    pale = fill in ("white", plots.METHODS["LoRA"].color)
    ink, weight = ("black" if pale else "white"), ("bold" if leaf else "normal")
    ax.text(*place, text, ha="center", va="center", fontsize=9, color=ink, weight=weight, bbox=look, zorder=2)
