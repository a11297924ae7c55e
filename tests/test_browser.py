"""Each lesson in a real JupyterLab in a real browser: Run All, every slider, menu and button moved, no error."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import form
from tools import notebooks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--disable-quic"]
# JupyterLab draws a cell when it comes into view, so results are asked of the notebook's model and not of the page.
CELLS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells]
    .filter(cell => cell.type === 'code')
    .map(cell => [cell.id, cell.executionCount,
                  cell.outputs.toJSON().map(output => output.output_type === 'error' ? 'error' : output.name)])"""


# A widget's own code fails after its cell has run, and then no cell shows it: so the kernel's messages are watched.
WATCH = """async () => {
    const context = window.jupyterapp.shell.currentWidget.sessionContext;
    await context.ready;
    window.errorsOfKernel = [];
    context.session.kernel.anyMessage.connect((_, {msg}) => {
        if (msg.header.msg_type === 'error')
            window.errorsOfKernel.push(`${msg.content.ename}: ${msg.content.evalue}`);
    });
}"""
FAIL = """() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
    .requestExecute({code: '1 / 0', store_history: false}).done"""
IDLE = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
LIVE_CELLS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells]
    .filter(cell => cell.type === 'code' && cell.outputs.toJSON().some(
        output => output.data && 'application/vnd.jupyter.widget-view+json' in output.data))
    .map(cell => cell.id)"""
SHOW = """id => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = [...notebook.model.cells].findIndex(cell => cell.id === id);
    return notebook.scrollToItem(notebook.activeCellIndex, 'start');
}"""
CLIPBOARD = "() => navigator.clipboard.readText()"
SHOWN = "output => [...output.querySelectorAll('.widget-html')].map(html => html.innerHTML).join()"


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += ["--IdentityProvider.token=t", f"--notebook-dir={folder}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=t&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def show(page: Any, cell_id: str) -> Any:
    """Bring a cell into view, where JupyterLab draws it, and return what it put out."""
    page.evaluate(SHOW, cell_id)
    page.wait_for_timeout(1000)
    return page.locator(".jp-Cell.jp-mod-active .jp-OutputArea").first


def move(page: Any, control: Any, kind: str) -> None:
    """Give one control another value than it has."""
    control.scroll_into_view_if_needed()
    if kind == ".noUi-handle":
        control.focus()
        before = control.get_attribute("aria-valuenow")
        for key in ("ArrowRight", "ArrowLeft"):  # the other way where it stands at its end
            if control.get_attribute("aria-valuenow") == before:
                for _ in range(3):
                    page.keyboard.press(key)
        assert control.get_attribute("aria-valuenow") != before
    elif kind == "select":
        chosen, count = control.evaluate("menu => [menu.selectedIndex, menu.options.length]")
        control.select_option(index=(chosen + 1) % count)
    elif kind == ".widget-radio-box":
        control.locator("input[type=radio]:not(:checked)").first.click()
    else:
        control.click()


def move_everything(page: Any, cell_id: str) -> int:
    """Move each control of a live cell, see that the cell shows something else then, and say how many there were."""
    output, moved = show(page, cell_id), 0
    for kind in (
        ".noUi-handle",
        "select",
        ".widget-radio-box",
        "input[type=checkbox]",
        ".widget-button, .widget-toggle-button",
    ):
        for number in range(output.locator(kind).count()):
            before = output.evaluate(SHOWN)
            move(page, output.locator(kind).nth(number), kind)
            deadline = time.monotonic() + 120  # the advisor of lesson 07 computes before it draws
            while output.evaluate(SHOWN) == before:
                errors = page.evaluate("() => window.errorsOfKernel")
                assert not errors and time.monotonic() < deadline, f"{cell_id}: {kind} {number} moves nothing; {errors}"
                page.wait_for_timeout(200)
            page.wait_for_function(IDLE)  # three keys are three pictures
            page.wait_for_timeout(500)
            moved += 1
    return moved


def copy_with_one_click(page: Any, cell_id: str) -> int:
    """Each box's button puts its text, whole and as it is, on the clipboard; say how many boxes there were."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    output = show(page, cell_id)
    boxes = output.locator("textarea")
    for number in range(boxes.count()):
        output.locator("button").nth(number).click()
        output.locator("button + span", has_text="copied").nth(number).wait_for()
        assert page.evaluate(CLIPBOARD) == boxes.nth(number).input_value() != ""
    # Where there is no clipboard of that kind, as over plain http, the older way does it.
    page.evaluate("() => { navigator.clipboard.writeText('something else'); }")
    page.evaluate("() => Object.defineProperty(window, 'isSecureContext', {value: false})")
    output.locator("button").first.click()
    page.wait_for_timeout(500)
    assert page.evaluate(CLIPBOARD) == boxes.first.input_value()
    return boxes.count()


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_lesson_in_jupyterlab(path: Path, lab: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(180_000)  # a machine that does other work besides is slow, and not wrong
    page.goto(lab.format(path.name))
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_timeout(3000)
    page.evaluate(WATCH)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells >> nth=0")
    deadline = time.monotonic() + 1800
    while not all(count for _, count, _ in page.evaluate(CELLS)):
        assert not any("error" in outputs for _, _, outputs in page.evaluate(CELLS)), page.evaluate(CELLS)
        assert time.monotonic() < deadline, "still running"
        page.wait_for_timeout(500)
    assert [cell for cell in page.evaluate(CELLS) if {"error", "stderr"} & set(cell[2])] == []
    moved = sum(move_everything(page, cell_id) for cell_id in page.evaluate(LIVE_CELLS))
    calls = re.findall(r"widgets\.(\w+)\(", path.read_text(encoding="utf-8"))
    assert moved >= len(calls) - calls.count("copy_box")
    if "copy_box" in calls:
        assert copy_with_one_click(page, "prompts") == 3
    assert page.evaluate("() => window.errorsOfKernel") == []
    page.evaluate(FAIL)
    assert page.evaluate("() => window.errorsOfKernel") == ["ZeroDivisionError: division by zero"]  # it does watch
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # and give its memory back
    page.close()
