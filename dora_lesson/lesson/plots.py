"""One look for every figure of the course, and one way to show it, with alternative text."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dora_lesson.core import METHODS as ALL_METHODS

if TYPE_CHECKING:  # a lesson's first cell imports this module, and torch takes seconds
    from torch import Tensor

Point = tuple[float, float]


# The palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by color-blind readers too.
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#666666",
}

METHODS = {method.label: method for method in ALL_METHODS.values()}  # by the name in prose
WIDTH = 6.4  # inches; at DPI this is 704 pixels, what a Colab output column holds
DPI = 110

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[OKABE_ITO[c] for c in ("blue", "orange", "green", "vermilion", "purple")]),
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": DPI,
}


def use_style() -> None:
    """Make every matplotlib figure from here on look like the course's own."""
    mpl.rcParams.update(_STYLE)


def figure(height: float = 3.4, ncols: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of the course's width with `ncols` plots side by side.

    It is not registered with pyplot, so it can neither be shown twice nor be left open.
    """
    use_style()
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    return fig, list(fig.subplots(1, ncols, squeeze=False)[0])


def png(fig: Figure) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def img(fig: Figure, alt: str) -> str:
    """The figure as an HTML `<img>` with alternative text."""
    if not alt.strip():
        raise ValueError("alt is empty, but every figure needs alternative text: say what the figure shows.")
    width = round(fig.get_figwidth() * DPI)
    data = base64.b64encode(png(fig)).decode("ascii")
    return f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{data}">'


def show(fig: Figure, alt: str) -> None:
    """Display a figure once, with alternative text, and close it.

    The output is HTML because JupyterLab drops the alternative text of plain image outputs.

    Args:
        fig: any matplotlib figure.
        alt: one or two sentences that say what the figure shows, for those who cannot see it.

    Raises:
        ValueError: `alt` is empty.
    """
    from IPython.display import display
    from matplotlib import pyplot as plt

    display({"text/html": img(fig, alt), "text/plain": alt}, raw=True)
    plt.close(fig)


_GROUPS = {  # label: parts of an estimate, colour, hatch
    "weights": (("weights", "quantization constants"), "blue", ""),
    "adapters, optimizer": (("adapters", "optimizer states"), "orange", "//"),
    "activations, temporaries": (("activations", "temporaries"), "sky", ".."),
}


def memory_bars(estimates: dict[str, Any], line: float) -> Figure:
    """One stacked bar for each label's `MemoryEstimate`, in GB, and a dashed line at `line` GB."""
    fig, (ax,) = figure(height=2.8)
    left = [0.0] * len(estimates)
    for label, (parts, color, hatch) in _GROUPS.items():
        widths = [sum(found.parts[part] for part in parts) / 1e9 for found in estimates.values()]
        ax.barh([*estimates], widths, left=left, label=label, color=OKABE_ITO[color], hatch=hatch, edgecolor="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    ax.axvline(line, color="black", ls="--", lw=1.2)
    ax.invert_yaxis()
    ax.set(xlabel=f"GB at the peak of a step; dashed: a card of {line:g} GB, such as a T4")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def rounding_errors(errors: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """Histograms over a weight's rows: how far rounding moved each row, and how far its length.

    Args:
        errors: for each label, two tensors of shape (d_out,): shares of the row's length, the second with its sign.
    """
    fig, (left, right) = figure(height=3, ncols=2)
    for (label, (rows, lengths)), color, linestyle in zip(errors.items(), ("blue", "grey"), ("-", "--"), strict=True):
        look: dict[str, Any] = {"histtype": "step", "bins": 60, "density": True, "label": label}
        look |= {"color": OKABE_ITO[color], "ls": linestyle}
        left.hist(100 * rows.numpy(), range=(7, 13), **look)
        right.hist(100 * lengths.numpy(), range=(-3, 3), **look)
    left.set(xlabel="row off by, %", ylabel="density of rows")
    right.set(xlabel="length off by, %")
    left.legend(loc="center right", fontsize=8)
    return fig


# The figures that are drawn twice: live, under sliders, and once as a static twin. Each returns the figure and its
# alternative text.

START = (2.0, 20.0)  # length and angle in degrees of the arrow that both figures begin with


def length_and_angle(length: float, turn: float) -> tuple[Figure, str]:
    """An arrow with a given length, turned by `turn` degrees, beside the arrow it began as."""
    angle = START[1] + turn
    end = (length * _cos(angle), length * _sin(angle))
    fig, ax = _plane()
    _arrow(ax, (0, 0), _tip(START), METHODS["base"].color, "before", "--")
    _arrow(ax, (0, 0), end, METHODS["DoRA"].color, "after", "-")
    ax.set_title(f"length {START[0]:.1f} → {length:.1f}, turned by {turn:.0f}°")
    alt = f"Two arrows from one point: length {START[0]:.1f} before; length {length:.1f} after, turned by {turn:.0f}°."
    return fig, alt


def one_addition(right: float, up: float) -> tuple[Figure, str]:
    """An arrow, the update (right, up) added at its tip, and the arrow that results."""
    start = _tip(START)
    end = (start[0] + right, start[1] + up)
    length, turn = math.hypot(*end), math.degrees(math.atan2(end[1], end[0])) - START[1]
    fig, ax = _plane()
    _arrow(ax, (0, 0), start, METHODS["base"].color, "before", "--")
    _arrow(ax, start, end, METHODS["LoRA"].color, "what is added", ":")
    _arrow(ax, (0, 0), end, METHODS["DoRA"].color, "after", "-")
    ax.set_title(f"length {START[0]:.1f} → {length:.1f}, turned by {turn:.0f}°")
    alt = (
        f"An arrow of length {START[0]:.1f}, an update of ({right:.1f}, {up:.1f}) added at its tip, and the arrow that "
        f"results: length {length:.1f}, turned by {turn:.0f}°."
    )
    return fig, alt


def _plane() -> tuple[Figure, Axes]:
    fig, (ax,) = figure(height=3.8)
    ax.set(xlim=(-3.2, 4.2), ylim=(-1.4, 3.4), aspect="equal", xlabel="first entry of the row", ylabel="second entry")
    return fig, ax


def _arrow(ax: Axes, start: Point, end: Point, color: str, label: str, style: str) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linestyle": style, "linewidth": 2})
    ax.plot([], [], style, color=color, label=label)
    ax.legend(loc="upper left")


def _tip(polar: Point) -> Point:
    return polar[0] * _cos(polar[1]), polar[0] * _sin(polar[1])


def _cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def _sin(degrees: float) -> float:
    return math.sin(math.radians(degrees))


def dora_layer() -> tuple[Figure, str]:
    """A DoRA layer as boxes: what x goes through, what is trained, and where ‖V‖ comes from."""
    boxes = {  # what a box does: where it stands, and what it is in training
        "x": (0.3, 2, "data"),
        "times Wᵀ\nfrozen": (3.4, 3.2, "frozen"),
        "times Aᵀ\ntrained": (1.8, 0.8, "trained"),
        "times Bᵀ\ntrained": (3.4, 0.8, "trained"),
        "times\nscaling": (4.9, 0.8, "data"),
        "sum\nx Vᵀ": (6.0, 2, "data"),
        "divide\nby ‖V‖": (7.3, 2, "data"),
        "times m\ntrained": (8.75, 2, "trained"),
        "y": (9.95, 2, "data"),
    }
    looks = {"data": ("black", ":", 1), "frozen": ("#666666", "--", 1.5), "trained": (METHODS["DoRA"].color, "-", 2)}
    fig, (ax,) = figure(height=2)
    ax.set(xlim=(0, 10.2), ylim=(0.2, 3.8), xticks=[], yticks=[], frame_on=False)
    drawn = []
    for text, (right, up, kind) in boxes.items():
        color, line, width = looks[kind]
        frame = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": color, "ls": line, "lw": width}
        drawn.append(ax.text(right, up, text, color=color, ha="center", va="center", bbox=frame))
    for start, end in [(0, 1), (1, 5), (0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]:
        a, b = drawn[start], drawn[end]
        ends = {"patchA": a.get_bbox_patch(), "patchB": b.get_bbox_patch(), "arrowstyle": "-|>", "fc": "black"}
        ax.annotate("", b.get_position(), a.get_position(), arrowprops=ends)
    from_weights = {"arrowstyle": "-|>", "fc": "black", "ls": ":"}
    ax.annotate("W, A, B", (7.3, 2.45), (7.3, 3.6), ha="center", arrowprops=from_weights)
    return (
        fig,
        "x goes through W, and through A, B and scaling; their sum, divided by ‖V‖, times m, is y. ‖V‖ is of W, A, B.",
    )
