"""The order of the package's parts and the size of its core, as README.md and pyproject.toml state them."""

from __future__ import annotations

import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import notebooks

PACKAGE = ROOT / "dora_lesson"
CORE = ["core.py", "adapters", "models", "task_api", "training"]
MOST_LINES_OF_CODE, MOST_LINES_OF_A_MODULE = 2000, 250
EXTRAS = ("experiments", "multi_gpu")


def modules(*places: str) -> list[Path]:
    paths = [PACKAGE / place for place in places]
    return [module for path in paths for module in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def lines_of_code(path: Path) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    held: set[int] = set()
    begins = True  # a statement; a text that begins one is a docstring
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING):
                begins = True
            elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER):
                if not (begins and token.type == tokenize.STRING):
                    held.update(range(token.start[0], token.end[0] + 1))
                begins = False
    return len(held)


def test_a_line_of_code_is_counted_once_and_prose_not_at_all(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    prose = '"""Prose.\n\nMore."""\n\n# A comment.\n'
    module.write_text(prose + 'text = """one\ntwo"""  # two lines\n\n\ndef f():\n    """Prose."""\n    return text\n')
    assert lines_of_code(module) == 4


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
    sizes = {str(path.relative_to(PACKAGE)): lines_of_code(path) for path in modules(*CORE)}
    assert len(sizes) > len(CORE)
    assert sum(sizes.values()) <= MOST_LINES_OF_CODE, sizes


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
