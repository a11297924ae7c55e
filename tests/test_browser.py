"""Lessons in a real JupyterLab in a real browser: Run All, every slider, menu and button moved, no error.

Lesson 00 and those with widgets run in `make test`; the others, and lesson 04, which trains for minutes, in
`make test-all`. No test waits for a fixed time: it looks again and again, up to LIMIT, which only a failure reaches.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

from dora_lesson import widgets
from dora_lesson.checks.quiz import QUESTIONS, quiz
from tests import form
from tests.conftest import ROOT
from tools import notebooks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine"),
]
LIMIT = 300  # seconds: a machine that does other work besides is slow, and not wrong
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--disable-quic", "--disable-dev-shm-usage"]
SERVER = ["-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
SERVER += ["--IdentityProvider.token=t", "--LabApp.expose_app_in_browser=True"]
SERVER += [f"--MappingKernelManager.kernel_info_timeout={LIMIT}"]

READY = """() => {
    const context = window.jupyterapp?.shell.currentWidget?.context;
    return context?.isReady && context.sessionContext.isReady
        && context.sessionContext.session?.kernel?.status === 'idle';
}"""
# A widget's own code fails after its cell has run, and then no cell shows it: so the kernel's messages are watched.
WATCH = """() => {
    window.errorsOfKernel = [];
    window.kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    window.kernel.anyMessage.connect((_, {msg}) => {
        if (msg.header.msg_type === 'error')
            window.errorsOfKernel.push(`${msg.content.ename}: ${msg.content.evalue}`);
    });
}"""
ERRORS = "() => window.errorsOfKernel"
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
# JupyterLab draws a cell when it comes into view, so results are asked of the notebook's model and not of the page.
CELLS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells]
    .filter(cell => cell.type === 'code')
    .map(cell => [cell.id, cell.executionCount,
                  cell.outputs.toJSON().map(output => output.output_type === 'error' ? 'error' : output.name)])"""
LIVE_CELLS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells]
    .filter(cell => cell.type === 'code' && cell.outputs.toJSON().some(
        output => output.data && 'application/vnd.jupyter.widget-view+json' in output.data))
    .map(cell => cell.id)"""
IDLE = "() => window.kernel.status === 'idle'"
FAIL = "() => window.kernel.requestExecute({code: '1 / 0', store_history: false}).done"
# The kernel takes messages in turn. Of several quick moves the last is sent when the first is done, hence twice.
CAUGHT_UP = """async () => {
    for (let turn = 0; turn < 2; turn++) await window.kernel.requestExecute({code: '', silent: true}).done;
    await new Promise(requestAnimationFrame);
}"""
STOP = "() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()"
SHOW = """id => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = [...notebook.model.cells].findIndex(cell => cell.id === id);
    notebook.widgets[notebook.activeCellIndex].node.dataset.shown = id;
    return notebook.scrollToItem(notebook.activeCellIndex, 'start');
}"""
SHOWN = "output => [...output.querySelectorAll('.widget-html')].map(html => html.innerHTML).join()"
WRITE = "text => navigator.clipboard.writeText(text)"
READ = "() => navigator.clipboard.readText()"

# What a reader can move, and where it is on the page.
KINDS = {
    ipywidgets.FloatSlider: ".noUi-handle",
    ipywidgets.IntSlider: ".noUi-handle",
    ipywidgets.Dropdown: "select",
    ipywidgets.RadioButtons: ".widget-radio-box",
    ipywidgets.Checkbox: "input[type=checkbox]",
    ipywidgets.Button: ".widget-button",
    ipywidgets.ToggleButton: ".widget-toggle-button",
}


def until(page: Any, holds: Callable[[], Any], what: str) -> None:
    """Look until it holds; an error of the kernel ends the wait at once."""
    deadline = time.monotonic() + LIMIT
    while not holds():
        errors = page.evaluate(ERRORS)
        assert not errors and time.monotonic() < deadline, f"{what}; errors of the kernel: {errors}"
        page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab over the lessons without their outputs; yields its address with a `{}` for the notebook's name."""
    folder = tmp_path_factory.mktemp("lab")
    for path in notebooks.lessons():
        notebook = form.shortened(notebooks.read(path))
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        (folder / path.name).write_text(notebooks.text(notebook), encoding="utf-8")
    places = {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTER_CONFIG_DIR": "config"}
    folders = {name: str(tmp_path_factory.mktemp(place)) for name, place in places.items()}  # not the tester's own
    environment = os.environ | folders
    without_news = [sys.executable, "-m", "jupyter", *disable_news(), "--level=user"]
    subprocess.run(without_news, env=environment, capture_output=True, check=True)
    command = [sys.executable, *SERVER, f"--notebook-dir={folder}"]
    log = folder / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        deadline, port = time.monotonic() + LIMIT, None
        while port is None:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
            port = listens(Path(folders["JUPYTER_RUNTIME_DIR"]))
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=t&reset"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def disable_news() -> list[str]:
    """The arguments of `jupyter` by which `make setup` keeps JupyterLab from asking whether to show news."""
    (command,) = re.findall(r"-m jupyter (labextension disable .+)", (ROOT / "Makefile").read_text())
    return shlex.split(command)


def listens(runtime: Path) -> int | None:
    """The port that the server took, by the file that it writes, once it answers there."""
    for path in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(OSError, ValueError):  # half written, or not answering yet
            port = int(json.loads(path.read_text())["port"])
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=30)
            return port
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=LIMIT * 1000)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of its own, whose kernel gives its memory back at the end, however the test ends."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(LIMIT * 1000)
    yield page
    with contextlib.suppress(Exception):  # there may be no notebook on it
        page.evaluate(STOP)
    page.close()


def show(page: Any, cell_id: str) -> Any:
    """Bring a cell into view, where JupyterLab draws it, and return what it put out."""
    page.evaluate(SHOW, cell_id)
    return page.locator(f'[data-shown="{cell_id}"] .jp-OutputArea').first


def controls(widget: Any) -> list[str]:
    """What there is to move in a widget, each by its place on the page."""
    children = [kind for child in getattr(widget, "children", ()) for kind in controls(child)]
    return [KINDS[type(widget)]] if type(widget) in KINDS else children


def move(page: Any, control: Any, kind: str) -> None:
    """Change the value of one control."""
    control.scroll_into_view_if_needed()
    if kind == ".noUi-handle":
        control.focus()
        before, most = (control.get_attribute(f"aria-value{end}") for end in ("now", "max"))
        for _ in range(3):
            page.keyboard.press("ArrowLeft" if float(before) >= float(most) else "ArrowRight")
        until(page, lambda: control.get_attribute("aria-valuenow") != before, "a slider does not follow its keys")
    elif kind == "select":
        chosen, count = control.evaluate("menu => [menu.selectedIndex, menu.options.length]")
        control.select_option(index=(chosen + 1) % count)
    elif kind == ".widget-radio-box":
        control.locator("input[type=radio]:not(:checked)").first.click()
    else:
        control.click()


def settled(page: Any, output: Any) -> str:
    """What a live cell shows when all that was moved has been answered."""
    before, shown = None, output.evaluate(SHOWN)
    while shown != before:
        page.evaluate(CAUGHT_UP)
        before, shown = shown, output.evaluate(SHOWN)
    return shown


def move_everything(page: Any, cell_id: str, expected: list[str]) -> None:
    """Move each control of a live cell, and see that the cell shows something else then."""
    assert expected, f"{cell_id} has nothing to move"
    output = show(page, cell_id)
    for kind in sorted(set(expected)):
        shown, count = output.locator(kind), expected.count(kind)
        until(page, lambda shown=shown, count=count: shown.count() == count, f"{cell_id} does not show {count} {kind}")
        for number in range(count):
            before = settled(page, output)
            move(page, shown.nth(number), kind)
            changed = f"{cell_id}: {kind} {number} moves nothing"
            until(page, lambda before=before: output.evaluate(SHOWN) != before, changed)
    settled(page, output)


def copy_with_one_click(page: Any, cell_id: str, expected: int) -> None:
    """Each box's button puts its text, whole and as it is, on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    output = show(page, cell_id)
    boxes = output.locator("textarea")
    until(page, lambda: boxes.count() == expected, f"{cell_id} does not show {expected} boxes")
    for number in range(expected):
        page.evaluate(WRITE, "something else")
        output.locator("button").nth(number).click()
        text = boxes.nth(number).input_value()
        assert text
        until(page, lambda text=text: page.evaluate(READ) == text, f"box {number} is not on the clipboard")
        output.locator("button + span").nth(number).get_by_text("copied").wait_for()
    # Where there is no clipboard of that kind, as over plain http, the older way does it.
    page.evaluate(WRITE, "something else")
    page.evaluate("() => { Object.defineProperty(window, 'isSecureContext', {value: false}); }")
    output.locator("button").first.click()
    until(page, lambda: page.evaluate(READ) == boxes.first.input_value(), "the older way does not copy")


def talk(page: Any, cell_id: str) -> None:
    """Type a request to the recorded assistant, see the list change, take it back, and ask the base."""
    output = show(page, cell_id)
    box, table = output.locator("input[type=text]"), output.locator("table")
    until(page, lambda: box.count() == 1 and table.count() == 1, f"{cell_id} shows no conversation")
    box.fill("remind me to buy stamps tomorrow")
    box.press("Enter")
    until(page, lambda: "buy stamps" in table.inner_text(), "the list does not follow the request")
    output.get_by_role("button", name="Undo").click()
    until(page, lambda: "buy stamps" not in table.inner_text(), "the change is not taken back")
    output.get_by_role("button", name="base").click()
    box.fill("remind me to buy stamps tomorrow")
    output.get_by_role("button", name="Send").click()
    until(page, lambda: "no call" in output.inner_text(), "the base is not asked")


def calls(notebook: Any) -> dict[str, list[str]]:
    """The functions of `widgets` that each cell calls."""
    functions = {cell.id: re.findall(r"\bwidgets\.(\w+)\(", cell.source) for cell in notebook.cells}
    return {name: called for name, called in functions.items() if called}


def test_controls_are_found_inside_widgets() -> None:
    assert controls(widgets.length_and_angle()) == [".noUi-handle"] * 2
    assert sorted(set(controls(widgets.advisor()))) == [".noUi-handle", "select"]
    assert len(controls(quiz())) == len(QUESTIONS)


def in_each_run(path: Path) -> bool:
    number = path.stem[:2]
    return number == "00" or (number != "04" and bool(calls(notebooks.read(path))))


LESSONS = [
    pytest.param(path, id=path.stem, marks=() if in_each_run(path) else pytest.mark.nightly)
    for path in notebooks.lessons()
]


@pytest.mark.parametrize("path", LESSONS)
def test_lesson_in_jupyterlab(path: Path, lab: str, page: Any) -> None:
    page.goto(lab.format(path.name))
    page.wait_for_function(READY)
    page.evaluate(WATCH)
    page.evaluate(RUN_ALL)
    deadline = time.monotonic() + 6 * LIMIT
    while not all(count for _, count, _ in page.evaluate(CELLS)):
        assert not any("error" in outputs for _, _, outputs in page.evaluate(CELLS)), page.evaluate(CELLS)
        assert time.monotonic() < deadline, "still running"
        page.wait_for_timeout(500)
    page.wait_for_function(IDLE)
    page.evaluate(CAUGHT_UP)
    assert [cell for cell in page.evaluate(CELLS) if {"error", "stderr"} & set(cell[2])] == []
    assert page.get_by_text("official Jupyter news").count() == 0, "JupyterLab asks whether to show news"
    live = page.evaluate(LIVE_CELLS)
    for cell_id, called in calls(notebooks.read(path)).items():
        if set(called) == {"copy_box"}:
            copy_with_one_click(page, cell_id, expected=3)
            continue
        assert cell_id in live, f"{cell_id} calls {called}, and shows no widget"
        if called == ["Conversation"]:
            talk(page, cell_id)
            continue
        move_everything(page, cell_id, [kind for name in called for kind in controls(getattr(widgets, name)())])
    assert page.evaluate(ERRORS) == []
    page.evaluate(FAIL)
    assert page.evaluate(ERRORS) == ["ZeroDivisionError: division by zero"]  # it does watch
