"""The order of the package's parts and the size of its core, as README.md and pyproject.toml state them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import notebooks

PACKAGE = ROOT / "dora_lesson"
CORE = ["core.py", "adapters", "models", "task_api", "training"]
MOST_LINES, MOST_LINES_OF_A_MODULE = 2950, 250
EXTRAS = ("experiments", "multi_gpu")


def modules(*places: str) -> list[Path]:
    paths = [PACKAGE / place for place in places]
    return [module for path in paths for module in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_imports_point_towards_core_and_nobody_imports_an_extra() -> None:
    linter = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linter.returncode == 0, linter.stdout[-3000:] + linter.stderr[-1000:]


def test_the_core_can_be_read_in_an_evening() -> None:
    sizes = {str(path.relative_to(PACKAGE)): lines(path) for path in modules(*CORE)}
    assert len(sizes) > len(CORE)
    assert sum(sizes.values()) <= MOST_LINES, sizes


def test_modules_are_short() -> None:
    sizes = {str(path.relative_to(PACKAGE)): lines(path) for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES_OF_A_MODULE} == {}


def test_modules_import_each_other_and_never_the_package_as_a_whole() -> None:
    """`from dora_lesson import name` would hide from the linter which part is meant."""
    whole = re.compile(r"^\s*(from dora_lesson import|import dora_lesson\b)", flags=re.M)
    assert [path.name for path in PACKAGE.rglob("*.py") if whole.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_no_lesson_imports_an_extra(path: Path) -> None:
    code = "\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code")
    imports = re.findall(r"^\s*(?:from|import) (dora_lesson[\w.]*)", code, flags=re.M)
    assert [name for name in imports if name.split(".")[1:2] in ([extra] for extra in EXTRAS)] == []


def test_each_folder_says_what_belongs_in_it() -> None:
    for folder in {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert text.startswith('"""'), folder
