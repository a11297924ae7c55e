"""Run, clean and stamp the lessons.

python -m tools.notebooks run [FILES]     execute in place, then clean (all lessons if none is named)
python -m tools.notebooks clean [FILES]   bring metadata, ids and counts to their one stable form
python -m tools.notebooks stamp           rewrite badges, set-up cells and README links from pyproject.toml

A cell that raises keeps its error among its outputs, and the cells below it run. A notebook that cannot be read or run
stays unchanged. The command reports both, continues with the other notebooks, and ends with exit status 1.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import nbformat
from tqdm.auto import tqdm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PICTURE = ROOT / "docs" / "magnitude_and_direction.png"
PICTURED = "01_magnitude_and_direction.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SETUP = """\
# Set-up, the same in every lesson. In Colab it installs the course first.
import importlib.util

if getattr(importlib.util.find_spec("dora_lesson"), "origin", None) is None:
    %pip install -q "dora_lesson @ git+{repository}"
import dora_lesson

dora_lesson.start_lesson()"""
COLAB = "https://colab.research.google.com/github/{slug}/blob/main/notebooks/{file}"
BADGE = "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link}) [Read on the web]({page})"
SITE = "https://{owner}.github.io/{name}/"
_ANY_SITE = r"https://[^/\s)]+\.github\.io/[^/\s)]+/"
_ANY_COLAB = r"https://colab\.research\.google\.com/github/[^/\s)]+/[^/\s)]+/blob/main/notebooks/"


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The repository's address, from [project.urls] in pyproject.toml, the one place that names it."""
    url = tomllib.loads(pyproject.read_text()).get("project", {}).get("urls", {}).get("Repository", "")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise SystemExit(
            f"pyproject.toml names the repository as {url!r}: set [project.urls] Repository to "
            "https://github.com/OWNER/REPO, then run this again."
        )
    return url


def setup_cell(url: str) -> str:
    return SETUP.format(repository=url)


def badge(url: str, file: str) -> str:
    """The line below a lesson's title: to Colab, and to the lesson's page on the website."""
    slug = url.removeprefix("https://github.com/")
    page = f"{site(url)}notebooks/{file.removesuffix('.ipynb')}.html"
    return BADGE.format(link=COLAB.format(slug=slug, file=file), page=page)


def site(url: str) -> str:
    """Where GitHub publishes the website of a repository."""
    owner, name = url.removeprefix("https://github.com/").split("/")
    return SITE.format(owner=owner.lower(), name=name)


def clean(notebook: Any) -> Any:
    """Bring a lesson to its one stable form, so that two versions differ only where the lesson changed."""
    notebook.metadata = nbformat.from_dict(METADATA)
    name_cells(notebook)
    count = 0
    for cell in notebook.cells:
        metadata = {key: cell.metadata[key] for key in ("tags", "why_ignored") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(metadata)
        cell.source = cell.source.rstrip()
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = _merged_streams([output for output in cell.outputs if not _is_progress_bar(output)])
        for number, output in enumerate(cell.outputs):
            if "execution_count" in output:
                output.execution_count = count
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
            if view:
                view["model_id"] = uuid.uuid5(uuid.NAMESPACE_URL, f"{cell.id}/{number}").hex
    return notebook


def name_cells(notebook: Any) -> None:
    """Give an id to each cell without one, as in notebooks from Colab or an old Jupyter."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken = {cell.get("id") for cell in notebook.cells}
    free = (name for number in itertools.count(1) if (name := f"cell-{number}") not in taken)
    for cell in notebook.cells:
        if not cell.get("id"):
            cell.id = next(free)


def _is_progress_bar(output: Any) -> bool:
    """Whether an output is what a finished tqdm bar leaves in the file, with one machine's times."""
    return re.search(r"\d+%\|", output.get("data", {}).get("text/plain", "")) is not None


def _merged_streams(outputs: list[Any]) -> list[Any]:
    """Join neighboring pieces of one stream: where the kernel cuts it depends on timing."""
    merged: list[Any] = []
    for output in outputs:
        previous = merged[-1] if merged else {}
        if output.output_type == "stream" == previous.get("output_type") and output.name == previous.get("name"):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def text(notebook: Any) -> str:
    """The lesson as its file's text."""
    split = nbformat.v4.nbjson.split_lines(nbformat.from_dict(notebook))
    return json.dumps(split, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(notebook: Any, timeout: int = 1800, go_on: bool = False) -> Any:
    """Run every cell in a fresh kernel in the notebooks' folder, and return the notebook with each stream in one piece.

    With `go_on`, a cell that raises keeps its error as an output and the cells below it run; otherwise the error is
    raised here.
    """
    from nbclient import NotebookClient

    name_cells(notebook)
    options: dict[str, Any] = {"timeout": timeout, "allow_errors": go_on, "kernel_name": "python3"}
    done = NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}, **options).execute()
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged_streams(cell.outputs)
    return done


def stamp(url: str) -> list[Path]:
    """Rewrite every badge, set-up cell and README link; return the files that changed."""
    changed = []
    for path in lessons():
        notebook = read(path)
        before = text(notebook)
        title = notebook.cells[0]
        title.source = re.sub(r"^\[!\[Open In Colab\].*$", badge(url, path.name), title.source, flags=re.M)
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", []):
                cell.source = setup_cell(url)
        if text(notebook) != before:
            path.write_text(text(notebook), encoding="utf-8")
            changed.append(path)
    readme = ROOT / "README.md"
    links = COLAB.format(slug=url.removeprefix("https://github.com/"), file="")
    stamped = re.sub(_ANY_COLAB, links, readme.read_text(encoding="utf-8"))
    stamped = re.sub(_ANY_SITE, site(url), stamped)
    stamped = re.sub(r"git clone \S+", f"git clone {url}", stamped)
    if stamped != readme.read_text(encoding="utf-8"):
        readme.write_text(stamped, encoding="utf-8")
        changed.append(readme)
    return changed


def picture() -> bytes:
    """The README's picture: a figure in the committed outputs of lesson 01."""
    for cell in read(NOTEBOOKS / PICTURED).cells:
        for output in cell.get("outputs", []) if cell.id == "updates-figure" else []:
            if image := re.search('base64,([^"]+)', output.get("data", {}).get("text/html", "")):
                return base64.b64decode(image.group(1))
    raise SystemExit("Lesson 01 holds no figure in its cell updates-figure: run `make notebooks` first.")


def lessons() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def errors(notebook: Any) -> list[str]:
    """One sentence for each cell that raised."""
    return [
        f"{cell.id} raised {output.ename}: {_first_line(output.evalue)}"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "clean", "stamp"])
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "stamp":
        changed = stamp(repository())
        print("\n".join(f"stamped {path.relative_to(ROOT)}" for path in changed) or "everything is up to date")
        return
    files, failed = arguments.files or lessons(), False
    for path in tqdm(files, disable=not sys.stderr.isatty()):
        try:
            notebook = read(path)
            if arguments.command == "run":
                notebook = execute(notebook, go_on=True)
            written = text(clean(notebook))
        except Exception as error:  # one broken file must not stop the others
            failed = True
            print(f"{arguments.command}: {path} stays unchanged ({type(error).__name__}: {_first_line(error)})")
            continue
        path.write_text(written, encoding="utf-8")
        raised = errors(notebook) if arguments.command == "run" else []
        failed = failed or bool(raised)
        print("; ".join([f"{arguments.command}: {path}", *raised]))
    if NOTEBOOKS / PICTURED in [path.resolve() for path in files]:
        PICTURE.write_bytes(picture())
    if failed:
        raise SystemExit(1)


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main()
