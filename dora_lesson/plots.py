"""One look for every figure of the course, and one way to show it, with alternative text."""

from __future__ import annotations

import base64
import html
import io
from typing import Any, NamedTuple

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers too.
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


class Look(NamedTuple):
    """How one method is drawn in every lesson: never by colour alone."""

    color: str
    marker: str
    linestyle: str | tuple[int, tuple[int, ...]]


METHODS = {
    "base": Look(OKABE_ITO["grey"], "x", ":"),
    "full fine-tuning": Look(OKABE_ITO["black"], "s", "-"),
    "LoRA": Look(OKABE_ITO["orange"], "o", "--"),
    "DoRA": Look(OKABE_ITO["blue"], "^", "-"),
    "QLoRA": Look(OKABE_ITO["vermilion"], "v", "-."),
    "QDoRA": Look(OKABE_ITO["green"], "D", (0, (5, 1, 1, 1, 1, 1))),
}

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
