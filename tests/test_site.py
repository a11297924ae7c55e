"""The website, built as `make site` builds it and opened in a real browser that may reach no other host."""

from __future__ import annotations

import functools
import http.server
import itertools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests import test_browser
from tests.conftest import ROOT
from tools import notebooks

pytestmark = [
    pytest.mark.browser,
    pytest.mark.nightly,
    pytest.mark.skipif(test_browser.CHROMIUM is None, reason="no Chromium or Chrome on this machine"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the website's theme needs Python 3.11"),
    pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine"),
]

browser = test_browser.browser  # the fixture

TEXT = "() => document.querySelector('.bd-article').innerText"
WIDTHS = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
PICTURES = """() => [...document.querySelectorAll('.bd-article img')]
    .map(img => [img.complete && img.naturalWidth > 0, img.alt])"""
FOLDS = """() => [...document.querySelectorAll('.bd-article details:not(.hide, .cell_output details)')]
    .map(fold => fold.open)"""
LINKS = "() => [...document.querySelectorAll('a[href]')].map(a => a.href)"
IDS = "() => [...document.querySelectorAll('[id]')].map(element => element.id)"
FORMULAS = "() => [document.querySelectorAll('.math').length, document.querySelectorAll('.math mjx-container').length]"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the built website."""
    built = subprocess.run(["make", "site"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    handler = functools.partial(Quiet, directory=ROOT / "build" / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    """A page that collects its own errors and what it asks of other hosts, and must end without either."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))

    def route(route: Any) -> None:
        if route.request.url.startswith((site, "data:")):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    page.route("**/*", route)
    yield page
    page.close()
    assert wrong == []


def pages() -> list[str]:
    lessons = [f"notebooks/{path.stem}.html" for path in notebooks.lessons()]
    others = ["docs/glossary.html", "docs/instructors.html", "CONTRIBUTING.html", "CHANGELOG.html", "data/README.html"]
    return ["index.html", *lessons, *others]


def lesson(path: Path) -> str:
    return f"notebooks/{path.stem}.html"


@pytest.mark.parametrize("name", pages())
def test_a_page_is_whole_at_every_width(page: Any, site: str, name: str) -> None:
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{site}/{name}", wait_until="load")
        content, window = page.evaluate(WIDTHS)
        assert content <= window, f"scrolls sideways at {width}"
    text = page.evaluate(TEXT)
    assert "<!--" not in text and "$$" not in text
    assert all(loaded and alt for loaded, alt in page.evaluate(PICTURES))


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_a_lesson_shows_what_its_notebook_holds(page: Any, site: str, path: Path) -> None:
    page.goto(f"{site}/{lesson(path)}", wait_until="load")
    notebook = notebooks.read(path)
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    folds = page.evaluate(FOLDS)
    assert len(folds) == prose.count("<details>") and not any(folds)
    if folds:
        page.locator(".bd-article summary", has_text="Nudge").first.click()
        assert page.evaluate(FOLDS)[0]
    page.wait_for_function("() => !document.querySelector('.math:not(:has(mjx-container))')", timeout=60_000)
    assert page.evaluate(FORMULAS)[0] >= prose.count("$$") // 2
    address = f"https://colab.research.google.com/github/dora-lesson/dora_lesson/blob/main/notebooks/{path.name}"
    assert address in page.evaluate(LINKS)
    assert page.locator("jupyter-widget, .jupyter-widgets").count() == 0
    download = f"{site}/_sources/notebooks/{path.name}"
    assert download in page.evaluate(LINKS)
    assert page.request.get(download).body() == path.read_bytes()


def test_every_link_within_the_site_leads_somewhere(page: Any, site: str) -> None:
    ids: dict[str, set[str]] = {}
    links: set[str] = set()
    for name in pages():
        page.goto(f"{site}/{name}")
        ids[name] = set(page.evaluate(IDS))
        links |= {link for link in page.evaluate(LINKS) if link.startswith(site)}
    for link in links:
        name, _, fragment = unquote(link.removeprefix(f"{site}/").split("?")[0]).partition("#")
        assert (ROOT / "build" / "site" / (name or "index.html")).is_file(), link
        assert not fragment or name not in ids or fragment in ids[name], link


def test_a_list_for_programs_names_every_page(page: Any, site: str) -> None:
    listed = page.request.get(f"{site}/llms.txt").text()
    assert listed.startswith("# dora_lesson\n\n> ") and len(listed.splitlines()[2]) > 20
    found = re.findall(r"^- \[(.+)\]\(https://[^)]+\.github\.io/[^/)]+/(.+)\)$", listed, flags=re.M)
    assert {name for _, name in found} == {*pages()} and any(title == "05 QDoRA on a 4-bit Llama" for title, _ in found)


def test_the_lessons_follow_one_another(page: Any, site: str) -> None:
    names = [lesson(path) for path in notebooks.lessons()]
    for before, after in itertools.pairwise(names):
        page.goto(f"{site}/{before}")
        assert page.locator("a.right-next").get_attribute("href") == Path(after).name


def test_terms_lead_to_the_glossary_once_a_lesson(page: Any, site: str) -> None:
    for path in notebooks.lessons():
        page.goto(f"{site}/{lesson(path)}")
        targets = page.evaluate("() => [...document.querySelectorAll('a.term')].map(a => a.getAttribute('href'))")
        assert targets and len(targets) == len(set(targets))
        assert all(target.startswith("../docs/glossary.html#") for target in targets)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", pages())
def test_axe_finds_nothing_that_keeps_readers_out(page: Any, site: str, name: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site}/{name}", wait_until="load")
    found = {
        (violation["id"], node["html"].split(">")[0])
        for violation in Axe().run(page).response["violations"]
        for node in violation["nodes"]
    }
    assert found <= {("region", '<div class="sidebar-primary-item"')}  # the theme's: its sidebar is no landmark


def test_the_search_finds_a_lesson_by_its_exercise(page: Any, site: str) -> None:
    page.goto(f"{site}/search.html?q=why_not_dora")
    page.wait_for_selector("ul.search li a")
    assert "QDoRA" in page.locator("ul.search").inner_text()


def test_the_dark_choice_is_kept(page: Any, site: str) -> None:
    page.goto(f"{site}/index.html")
    theme = "() => document.documentElement.dataset.theme"
    page.locator("button.theme-change-button[data-mode=dark]").first.evaluate("button => button.click()")
    assert page.evaluate(theme) == "dark"
    page.goto(f"{site}/{lesson(notebooks.lessons()[1])}")
    assert page.evaluate(theme) == "dark"


def test_a_lesson_reads_without_scripts(browser: Any, site: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{lesson(notebooks.lessons()[5])}")
    fold = page.locator(".bd-article details:not(.hide)").first
    fold.locator("summary").click()
    assert fold.get_attribute("open") is not None
    assert "Sixteen levels" in page.locator(".bd-article").inner_text()
    context.close()
