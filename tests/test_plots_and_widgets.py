"""Figures carry alternative text and look alike; live figures follow their sliders."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from dora_lesson import plots, widgets


def test_a_figure_is_shown_once_with_alternative_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    fig, (ax,) = plots.figure()
    ax.plot([1, 2])
    plots.show(fig, 'A line that rises from "1" to 2 & stops')
    (data,) = shown
    assert set(data) == {"text/html", "text/plain"}
    assert 'alt="A line that rises from &quot;1&quot; to 2 &amp; stops"' in data["text/html"]
    png = base64.b64decode(re.search('base64,([^"]+)', data["text/html"]).group(1))  # type: ignore[union-attr]
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") <= 710, "wider than Colab's column"


def test_a_figure_without_alternative_text_is_refused() -> None:
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(plots.figure()[0], " ")


def test_methods_differ_by_more_than_colour() -> None:
    looks = list(plots.METHODS.values())
    assert len({look.color for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)
    assert set(plots.METHODS) == {"base", "full fine-tuning", "LoRA", "DoRA", "QLoRA", "QDoRA"}


@pytest.mark.parametrize(
    ("draw", "values", "says"),
    [
        (plots.length_and_angle, {"length": 3.0, "turn": 45}, ["length 3.0", "45°"]),
        (plots.one_addition, {"right": 0.0, "up": 0.0}, ["length 2.0", "turned by 0°"]),
        (plots.one_addition, {"right": -1.0, "up": 1.0}, ["length 1.9", "turned by 42°"]),
    ],
)
def test_arrow_figures_say_what_they_draw(draw: Any, values: dict[str, float], says: list[str]) -> None:
    fig, alt = draw(**values)
    for part in says:
        assert part in alt
    assert fig.axes[0].get_title()


@pytest.mark.parametrize("make", [widgets.length_and_angle, widgets.one_addition])
def test_a_live_figure_follows_each_slider(make: Any) -> None:
    live = make()
    seen = {live.picture.value}
    for slider in live.sliders.values():
        for value in (slider.min, slider.max):
            slider.value = value
            seen.add(live.picture.value)
    assert len(seen) == 5, "the start and both ends of two sliders"
    assert len({re.search('alt="([^"]+)"', picture).group(1) for picture in seen}) == 5  # type: ignore[union-attr]


def test_where_nothing_runs_a_sentence_stands_for_a_live_figure() -> None:
    bundle = widgets.length_and_angle()._repr_mimebundle_()
    assert bundle["text/plain"].startswith("A live figure: run this cell")
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_moving_sliders_leaves_no_figure_open() -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    live = widgets.one_addition()
    live.sliders["up"].value = 1.0
    assert plt.get_fignums() == before
