"""Live figures: sliders that redraw a figure. Where nothing runs, the sentence of `__repr__` stands in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from dora_lesson import plots


class LiveFigure(ipywidgets.VBox):
    """Sliders above a figure that follows them.

    The picture is HTML and not an output area: each move replaces one string, so that nothing flickers or piles up,
    and the alternative text moves with the picture.

    Args:
        draw: takes the sliders' values by name, returns a figure and its alternative text.
        sliders: one ipywidgets slider for each argument of `draw`.
    """

    def __init__(self, draw: Callable[..., tuple[Figure, str]], **sliders: Any) -> None:
        self.sliders = sliders
        self.picture = ipywidgets.HTML()
        self._draw = draw
        for slider in sliders.values():
            slider.observe(self._redraw, names="value")
        self._redraw()
        super().__init__([*sliders.values(), self.picture])

    def _redraw(self, _: Any = None) -> None:
        self.picture.value = plots.img(*self._draw(**{name: slider.value for name, slider in self.sliders.items()}))

    def __repr__(self) -> str:
        return "A live figure: run this cell in JupyterLab or Colab to move its sliders. The same figure stands below."


def length_and_angle() -> LiveFigure:
    """One arrow with two handles: its length and its angle, each with a slider of its own."""
    return LiveFigure(
        plots.length_and_angle, length=_slider("length", 3.0, 0.2, 3.4), turn=_slider("turn", 45, -40, 120)
    )


def one_addition() -> LiveFigure:
    """One arrow and an update added to it: two sliders for the update, none for length or angle."""
    return LiveFigure(plots.one_addition, right=_slider("right", -1.0, -3.0, 2.0), up=_slider("up", 1.0, -1.6, 2.4))


def _slider(description: str, value: float, lowest: float, highest: float) -> Any:
    step = 0.1 if isinstance(value, float) else 5
    return ipywidgets.FloatSlider(value=value, min=lowest, max=highest, step=step, description=description)
