"""Each lesson in a real JupyterLab in a real browser: Run All, no error, and a slider that moves its figure."""

from __future__ import annotations

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
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
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


def _show(page: Any, cell_id: str) -> Any:
    """Bring a cell into view, where JupyterLab draws it, and return what it put out."""
    page.evaluate(
        """id => {
        const notebook = window.jupyterapp.shell.currentWidget.content;
        const index = [...notebook.model.cells].findIndex(cell => cell.id === id);
        notebook.activeCellIndex = index;
        return notebook.scrollToItem(index, 'center');
    }""",
        cell_id,
    )
    page.wait_for_timeout(1000)
    return page.locator(".jp-Cell.jp-mod-active .jp-OutputArea")


def _copy_with_one_click(page: Any, path: Path) -> None:
    """Each prompt's button puts the prompt, whole and as it is, on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    output = _show(page, "prompts")
    boxes = output.locator("textarea")
    assert boxes.count() == 3
    for number in range(3):
        output.locator("button").nth(number).click()
        output.locator("button + span", has_text="copied").nth(number).wait_for(timeout=10_000)
        text = page.evaluate("() => navigator.clipboard.readText()")
        assert text == boxes.nth(number).input_value()
        assert len(text) > 500
    # Where there is no clipboard of that kind, as over plain http, the older way does it.
    page.evaluate("() => { navigator.clipboard.writeText('something else'); }")
    page.evaluate("() => Object.defineProperty(window, 'isSecureContext', {value: false})")
    output.locator("button").first.click()
    page.wait_for_timeout(500)
    assert page.evaluate("() => navigator.clipboard.readText()") == boxes.first.input_value()


def _answer_the_quiz(page: Any) -> None:
    output = _show(page, "quiz")
    output.locator("input[type=radio]").first.click()
    output.get_by_text("correct:").or_(output.get_by_text("not this one:")).first.wait_for(timeout=20_000)


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_lesson_in_jupyterlab(path: Path, lab: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(lab.format(path.name))
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_timeout(3000)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells >> nth=0")
    deadline = time.monotonic() + 600
    while not all(count for _, count, _ in page.evaluate(CELLS)):
        assert not any("error" in outputs for _, _, outputs in page.evaluate(CELLS)), page.evaluate(CELLS)
        assert time.monotonic() < deadline, "still running"
        page.wait_for_timeout(500)
    assert [cell for cell in page.evaluate(CELLS) if {"error", "stderr"} & set(cell[2])] == []
    if "widgets." in path.read_text(encoding="utf-8"):
        page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').scrollTo(0, 0)")
        handle = page.locator(".widget-slider .noUi-handle").first
        handle.scroll_into_view_if_needed()
        picture = page.locator(".widget-html img").first
        before = picture.get_attribute("src"), picture.get_attribute("alt")
        handle.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        moved = time.monotonic() + 60  # the advisor of lesson 07 computes before it draws
        while picture.get_attribute("alt") == before[1] and time.monotonic() < moved:
            page.wait_for_timeout(500)
        assert picture.get_attribute("src") != before[0]
        assert picture.get_attribute("alt") != before[1]
    if "widgets.copy_box" in path.read_text(encoding="utf-8"):
        _copy_with_one_click(page, path)
    if "widgets.quiz" in path.read_text(encoding="utf-8"):
        _answer_the_quiz(page)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # and give its memory back
    page.close()
