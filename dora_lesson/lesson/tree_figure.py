"""The advisor's tree as a figure, with the way through it that one recommendation took."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dora_lesson.advisor.recommend import Recommendation
from dora_lesson.advisor.text import question
from dora_lesson.advisor.tree import NOTHING_FITS, QUESTIONS
from dora_lesson.core import METHODS
from dora_lesson.lesson import plots

PLACES = {
    "fits": (5.0, 9.2),
    "sixteen": (5.0, 6.4),
    "dora, 16": (2.3, 3.6),
    "dora, 4": (7.7, 3.6),
    "dora": (0.9, 0.7),
    "lora": (3.6, 0.7),
    "qdora": (6.4, 0.7),
    "qlora": (9.1, 0.7),
    NOTHING_FITS: (8.9, 9.2),
}
_TREE = (
    "A tree of three questions. A step does not fit: a smaller model or the cloud. With the base in 16 bits: DoRA or "
    "LoRA. With the base in 4 bits: QDoRA or QLoRA."
)


def decision_tree(recommendation: Recommendation | None = None) -> tuple[Figure, str]:
    """The tree and its alternative text; with a recommendation, its way is drawn thick and solid, the rest dashed."""
    way = recommendation.way if recommendation else []
    steps = list(itertools.pairwise(way))  # each question on the way, and what comes after it
    fig, (ax,) = plots.figure(height=3.9)
    ax.set(xlim=(-0.4, 10.4), ylim=(0, 10))
    ax.axis("off")
    for name, asked in QUESTIONS.items():
        for answer, end in [("yes", asked.yes), ("no", asked.no)]:
            _edge(ax, PLACES[name], PLACES[end], answer, (name, end) in steps)
    for name, place in PLACES.items():
        _box(ax, name, place, name in way)
    if recommendation is None:
        return fig, _TREE
    request, method = recommendation.request, recommendation.method or "nothing to recommend"
    title = question(request)
    ax.set_title(f"{title}: {method}", fontsize=10)
    answers = [f"{name.partition(',')[0]}: {'yes' if end == QUESTIONS[name].yes else 'no'}" for name, end in steps]
    return fig, f"{_TREE} The way for {title}, {', '.join(answers) or 'not asked'}, ends at: {method}."


def _edge(ax: Axes, start: plots.Point, end: plots.Point, answer: str, taken: bool) -> None:
    color, width, style = ("black", 2.6, "-") if taken else (plots.OKABE_ITO["grey"], 1.0, "--")
    ax.plot(*zip(start, end, strict=True), color=color, lw=width, ls=style, zorder=1)
    x, y = (0.45 * a + 0.55 * b for a, b in zip(start, end, strict=True))
    look: Any = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
    ax.text(x, y, answer, ha="center", va="center", fontsize=8, bbox=look, weight="bold" if taken else "normal")


def _box(ax: Axes, name: str, place: plots.Point, passed: bool) -> None:
    """A question in white, a leaf in its method's color."""
    text, fill = "a smaller model,\nor the cloud", plots.OKABE_ITO["grey"]
    if asked := QUESTIONS.get(name):
        text, fill = asked.text, "white"
    elif method := METHODS.get(name):
        text, fill = method.label, method.color
    edge, width = ("black", 2.6) if passed else (plots.OKABE_ITO["grey"], 1.0)
    look: Any = {"boxstyle": "round,pad=0.4", "fc": fill, "ec": edge, "lw": width}
    ink = "black" if fill in ("white", METHODS["lora"].color) else "white"
    weight = "normal" if asked else "bold"
    ax.text(*place, text, ha="center", va="center", fontsize=9, color=ink, weight=weight, bbox=look, zorder=2)
