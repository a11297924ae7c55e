"""How Sphinx makes the website from README, the notebooks as they are, and the other pages: `make site`.

`make site` copies the pages into a folder of their own first. No notebook is executed; the stored outputs are shown.
"""

import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import tomllib
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
COURSE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = COURSE["urls"]["Repository"]
MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
OTHER_PAGES = ["docs/glossary", "docs/instructors", "CONTRIBUTING", "CHANGELOG", "data/README"]

project, language, smartquotes = "dora_lesson", "en", False
extensions = ["myst_nb", "sphinx_copybutton"]
copybutton_selector = "div.cell_input pre, details div.highlight pre"
nb_execution_mode, nb_merge_streams, nb_ipywidgets_js = "off", True, {}
# Of a widget the static picture is shown; moving it takes a kernel.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 4
# Formulas are drawn by a file of the site's own: nothing is asked of another host.
mathjax_path = "tex-svg.js"
html_css_files = ["site.css"]
html_static_path = [
    "site.css",
    str(importlib.metadata.distribution("sphinx-mathjax-offline").locate_file(MATHJAX)),
]
html_baseurl = "https://{}.github.io/{}/".format(*REPOSITORY.split("/")[-2:])
html_favicon = "favicon.svg"
html_theme, html_title, html_use_index = "sphinx_book_theme", "dora_lesson", False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "use_repository_button": True,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "navbar_persistent": [],
}


def change_source(app: Sphinx, page: str, source: list[str]) -> None:
    """The table of contents goes below README; a lesson loses what has no use on a page."""
    if page == "index":
        lessons = sorted(f"notebooks/{path.stem}" for path in Path(app.srcdir, "notebooks").glob("*.ipynb"))
        source[0] += "".join(map(_contents, ("Lessons", "More"), (lessons, OTHER_PAGES)))
    elif page.startswith("notebooks/"):
        lesson = json.loads(source[0])
        lesson["cells"] = [cell for cell in lesson["cells"] if "setup" not in cell["metadata"].get("tags", [])]
        title = lesson["cells"][0]
        title["source"] = re.sub(
            r"^\[!\[Open In Colab\]\(\S+\)\]\((\S+)\).*$",
            r"[Open this lesson in Colab](\1)",
            "".join(title["source"]),
            flags=re.M,
        )
        source[0] = json.dumps(lesson)


def _contents(caption: str, pages: list[str]) -> str:
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def change_page(app: Sphinx, page: nodes.document) -> None:
    """Links to files without a page lead to the repository; long lines of output wrap; terms lead to the glossary."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in page.findall(addnodes.pending_xref):
        path = os.path.relpath(here / link["reftarget"].partition("#")[0], app.srcdir)
        if link["reftype"] == "myst" and link["refdomain"] != "doc" and (ROOT / path).is_file():
            home = app.builder.get_relative_uri(app.env.docname, "index")
            target = home if path == "README.md" else f"{REPOSITORY}/blob/main/{path}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=target))
    for block in page.findall(nodes.literal_block):
        if "output" in block["classes"] and max(map(len, block.astext().splitlines()), default=0) > 90:
            block["classes"].append("wrap")
    if app.env.docname.startswith("notebooks/"):
        _link_terms(page, app.builder.get_relative_uri(app.env.docname, "docs/glossary"))


def _link_terms(page: nodes.document, glossary: str) -> None:
    """Link the first use of each term of the glossary in a lesson's prose."""
    found = re.findall(r"^## (.+)$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), flags=re.M)
    terms = {term.lower(): glossary + "#" + re.sub(r"[^\w -]", "", term.lower()).replace(" ", "-") for term in found}
    pattern = r"\b(" + "|".join(sorted(map(re.escape, terms), key=len, reverse=True)) + r")s?\b"
    for text in list(page.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.paragraph | nodes.strong | nodes.emphasis):
            continue
        pieces: list[nodes.Node] = []
        end = 0
        for match in re.finditer(pattern, text, flags=re.I):
            if target := terms.pop(match[1].lower(), None):
                pieces += [nodes.Text(text[end : match.start()])]
                pieces += [nodes.reference("", match[0], refuri=target, classes=["term"], internal=True)]
                end = match.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text[end:])])


def write_list_of_pages(app: Sphinx, error: Exception | None) -> None:
    """For programs that read the web: llms.txt, with each page's address and title (the form is llmstxt.org's)."""
    if error is None:
        lines = [f"# {project}", "", f"> {COURSE['description']}", "", "## Pages", ""]
        titles = {page: title.astext() for page, title in app.env.titles.items()}
        lines += [f"- [{title}]({html_baseurl}{page}.html)" for page, title in sorted(titles.items())]
        Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", change_source)
    app.connect("doctree-read", change_page)
    app.connect("build-finished", write_list_of_pages)
    return {"parallel_read_safe": True}
