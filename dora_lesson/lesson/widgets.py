"""What a reader moves and clicks: live figures, the advisor, text to copy.

Where nothing runs, the sentence of `__repr__` stands in their place.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from dora_lesson.advisor.recommend import recommend
from dora_lesson.advisor.request import BASE_FORMATS, INFERENCE, PRIORITIES, SERVERS
from dora_lesson.lesson import plots
from dora_lesson.lesson.tree_figure import decision_tree
from dora_lesson.memory.shapes import SHAPES
from dora_lesson.task_api.app import Assistant, TaskList


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


class Advisor(LiveFigure):
    """The advisor with a slider for the card and menus for the rest: the tree, then the answer in words."""

    def __init__(self) -> None:
        self.words = ipywidgets.HTML()
        super().__init__(
            self._drawn,
            vram_gb=ipywidgets.IntSlider(value=12, min=4, max=96, description="GPU, GB", continuous_update=False),
            model=_menu("model", [*SHAPES], "llama-3.1-8b"),
            priority=_menu("first", PRIORITIES, "quality"),
            inference=_menu("served", INFERENCE, "merged"),
            server=_menu("by", SERVERS, "transformers"),
            base_format=_menu("base", BASE_FORMATS, "16-bit"),
        )
        self.children = [*self.sliders.values(), self.picture, self.words]

    def _drawn(self, **constraints: Any) -> tuple[Figure, str]:
        self.recommendation = recommend(**constraints)
        self.words.value = _block(f"{self.recommendation}\n\n{self.recommendation.script()}")
        return decision_tree(self.recommendation)

    def __repr__(self) -> str:
        return "The advisor, live: run this cell in JupyterLab or Colab to change it. A static twin stands below."


def advisor() -> Advisor:
    """The advisor under a slider and menus."""
    return Advisor()


_COPY = (
    "const box = this.parentNode.querySelector('textarea'); box.focus(); box.select(); "
    "const said = this.nextElementSibling; "
    "const old = () => { said.textContent = document.execCommand('copy') ? 'copied' : 'selected: press Ctrl+C'; }; "
    "if (navigator.clipboard && window.isSecureContext) "
    "{ navigator.clipboard.writeText(box.value).then(() => { said.textContent = 'copied'; }, old); } else { old(); }"
)


class CopyBox:
    """A text in a box with a button that copies it. Where a browser forbids that, the text is selected for Ctrl+C."""

    def __init__(self, title: str, text: str, note: str = "") -> None:
        self.title, self.text, self.note = title, text, note

    def _repr_html_(self) -> str:
        rows = min(14, self.text.count("\n") + 2)
        return (
            f"<div><b>{html.escape(self.title)}</b><br>"
            f'<textarea readonly rows="{rows}" style="width: 100%; font-family: monospace" '
            f'aria-label="{html.escape(self.title)}">{html.escape(self.text)}</textarea><br>'
            f'<button type="button" onclick="{html.escape(_COPY)}">copy</button> <span></span>'
            f"<p>{html.escape(self.note)}</p></div>"
        )

    def __repr__(self) -> str:
        return "\n\n".join(part for part in (self.title, self.text, self.note) if part)


def copy_box(title: str, text: str, note: str = "") -> CopyBox:
    """A text to copy with one click, such as a prompt, and a note below it that is not copied."""
    return CopyBox(title, text, note)


def _menu(description: str, options: Any, value: str) -> Any:
    return ipywidgets.Dropdown(options=[*options], value=value, description=description)


def _block(text: str) -> str:
    return f'<pre style="line-height: 1.35; white-space: pre-wrap">{html.escape(text)}</pre>'


class Conversation(ipywidgets.VBox):
    """Talk to an assistant: type a request, see the reply, the call and the list change, take it back.

    Args:
        models: models by name, best with their adapters merged; a reader switches between them.
        tokenizer: theirs.
        tasks: the list that all of them work on.
    """

    def __init__(self, models: dict[str, Any], tokenizer: Any, tasks: TaskList) -> None:
        self.assistants = {name: Assistant(model, tokenizer, tasks) for name, model in models.items()}
        self.tasks = tasks
        self.which = ipywidgets.ToggleButtons(options=[*models], value=[*models][-1])
        self.request = ipywidgets.Text(placeholder="call the bank on friday", continuous_update=False)
        self.send, self.undo = ipywidgets.Button(description="Send"), ipywidgets.Button(description="Undo")
        self.said, self.table = ipywidgets.HTML(), ipywidgets.HTML()
        self.request.observe(lambda change: self._ask(), names="value")  # Enter, and a click elsewhere
        self.send.on_click(lambda _: self._ask())
        self.undo.on_click(
            lambda _: self._show("The last change is taken back." if tasks.undo() else "There is nothing to take back.")
        )
        self._show("Type a request.")
        row = ipywidgets.HBox([self.request, self.send, self.undo])
        super().__init__([self.which, row, self.said, self.table])

    def _ask(self) -> None:
        request, self.request.value = self.request.value, ""
        if not request:  # the line above calls this again
            return
        self.said.value = "<i>thinking ...</i>"
        try:
            turn = self.assistants[self.which.value].ask(request)
        except Exception as error:
            self._show(f"<b>{html.escape(request)}</b><br>No reply ({html.escape(str(error))}). Send it again.")
            raise
        call = f"<br><code>{html.escape(turn.call_line)}</code>"
        self._show(f"<b>{html.escape(request)}</b><br>{html.escape(turn.text)}{call}")

    def _show(self, said: str) -> None:
        self.said.value, self.table.value = said, self.tasks.table().to_html()

    def __repr__(self) -> str:
        return "A conversation: run this cell in JupyterLab or Colab to type requests. A dialogue stands below."
