"""The report on the machine, the set-up cell, and Colab as far as it can be faked."""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from dora_lesson import environment
from dora_lesson.__main__ import main
from dora_lesson.core import SetupError
from dora_lesson.environment import Report, doctor, quiet_known_noise, start_lesson
from tests.conftest import ROOT, RunPython
from tools import notebooks

BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
real = importlib.util.find_spec
gone = {names!r}
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in gone else real(name, package)
"""


def test_doctor_finds_this_machine_ready() -> None:
    report = doctor()
    assert report.ok, str(report)
    found = {what: (finding, todo) for what, finding, todo in report.rows}
    assert found["4-bit (NF4)"] == ("works, tried just now", "")
    assert "verified" in found["bundled model"][0]
    assert str(report).endswith("The lessons will run.")


def test_doctor_asks_for_nothing_where_a_lesson_can_still_fetch_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DORA_LESSON_CACHE", str(tmp_path))
    report = doctor()
    assert report.ok and "fetched when first needed" in str(report)
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    (folder / "config.json").write_text("cut off")
    (folder / "sha256.json").write_text('{"config.json": "0"}')
    report = doctor()
    assert not report.ok and "config.json has changed on disk: delete" in str(report)


@pytest.mark.parametrize("missing", [["torch"], ["peft"], ["bitsandbytes", "gguf"], environment.LIBRARIES])
def test_doctor_reports_what_is_missing_and_fails(missing: list[str], run_python: RunPython) -> None:
    done = run_python(
        "from dora_lesson.__main__ import main; import sys; sys.exit(main(['doctor']))",
        first=BLOCK.format(names=missing),
    )
    assert done.returncode == 1, done.stderr
    for name in missing:
        assert f"{name} " in done.stdout
    assert done.stdout.count("missing") == len(missing)
    assert "make setup" in done.stdout
    assert "will not run yet" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_tries_4_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert environment.four_bit_problem(torch.device("cpu")) is None
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", lambda self, x: torch.zeros(4, 64))
    assert "wrong results" in (environment.four_bit_problem(torch.device("cpu")) or "")

    def broken(self: Any, x: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", broken)
    assert environment.four_bit_problem(torch.device("cpu")) == "RuntimeError: no kernel image"
    report = doctor()
    assert "no kernel image" in str(report)
    assert report.ok  # the lessons that need it are later ones


def test_trying_4_bit_leaves_random_numbers_alone() -> None:
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    environment.four_bit_problem(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_report_fails_on_a_needed_row_only() -> None:
    report = Report()
    report.add("a", "fine")
    report.add("b", "odd", "do this", needed=False)
    assert report.ok
    report.add("c", "<missing>", "install c")
    assert not report.ok
    assert "&lt;missing&gt;" in report._repr_html_()
    assert "install c" in str(report)


@pytest.mark.parametrize(
    ("version", "ok", "says"), [((3, 9), False, "3.10"), ((3, 14), True, "3.13"), ((3, 12), True, "")]
)
def test_doctor_judges_the_python(monkeypatch: pytest.MonkeyPatch, version: Any, ok: bool, says: str) -> None:
    report = Report()
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    environment._python_row(report)
    assert report.ok is ok
    assert says in report.rows[0][2]


def test_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    assert "The lessons will run." in capsys.readouterr().out
    assert main(["prepare"]) == 0
    assert "present and verified" in capsys.readouterr().out

    def refuse() -> None:
        raise SetupError("The disk is full: free some.")

    monkeypatch.setattr("dora_lesson.models.bundled.prepare", refuse)
    assert main(["prepare"]) == 1
    assert capsys.readouterr().err == "The disk is full: free some.\n"

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dora_lesson.models.bundled.prepare", interrupt)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err.startswith("Stopped.")


def test_importing_the_package_is_light(run_python: RunPython) -> None:
    done = run_python("import dora_lesson, sys; print({'torch', 'transformers', 'peft'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_importing_the_package_is_enough_to_silence_bitsandbytes(run_python: RunPython) -> None:
    done = run_python(
        "import dora_lesson, logging; logging.getLogger('bitsandbytes.backends.cpu.ops').warning("
        "'Failed to load CPU gemm_4bit_forward from kernels-community')"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_can_be_had() -> None:
    import dora_lesson

    for name in dora_lesson.__all__:
        assert getattr(dora_lesson, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dora_lesson.nonsense


# The two known notices are silenced where they arise, and nothing else is.


def test_known_notices_are_silenced_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_known_noise()
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["something else is deprecated"]
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("another notice")
    assert [record.message for record in caplog.records] == ["another notice"]


# The set-up cell, in a fake Colab.


def run_setup_cell(monkeypatch: pytest.MonkeyPatch, installed: bool) -> list[str]:
    """Run the cell's text in an IPython shell whose %pip only takes notes."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns of a virtual environment that is not its own
    shell = InteractiveShell()
    noted: list[str] = []
    shell.register_magic_function(noted.append, magic_name="pip")
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        monkeypatch.setattr("dora_lesson.start_lesson", lambda: None, raising=False)
    shell.run_cell(notebooks.setup_cell(notebooks.repository())).raise_error()
    return noted


def test_setup_cell_installs_only_where_the_course_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_setup_cell(monkeypatch, installed=True) == []
    assert capsys.readouterr().out == "Ready.\n"
    noted = run_setup_cell(monkeypatch, installed=False)
    assert noted == [f'install -q "dora_lesson @ git+{notebooks.repository()}"']
    assert "upgrade" not in noted[0], "pip's default leaves alone what already satisfies the bounds"


def test_setup_cell_is_six_lines_at_most() -> None:
    assert sum(bool(line.strip()) for line in notebooks.SETUP.splitlines()) <= 6


def test_a_library_updated_under_a_running_session_asks_for_a_restart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    colab = types.ModuleType("google.colab")
    old = types.ModuleType("ipywidgets")
    old.__version__ = "1.0"  # type: ignore[attr-defined]
    old.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "ipywidgets", old)
    start_lesson()
    out = capsys.readouterr().out
    assert out.startswith("Restart needed: ipywidgets changed on disk")
    assert "Restart session (Colab)" in out
    assert out.count("\n") == 1


def test_a_missing_library_is_named_before_the_first_lesson_line(run_python: RunPython) -> None:
    done = run_python("import dora_lesson; dora_lesson.start_lesson()", first=BLOCK.format(names=["peft", "gguf"]))
    assert done.stdout.startswith("Not ready: peft, gguf missing;"), done.stderr
    assert done.stdout.count("\n") == 1


def test_nothing_in_the_package_names_the_repository() -> None:
    """The repository is named once, in pyproject.toml; the rest is stamped from there."""
    slug = notebooks.repository().removeprefix("https://github.com/")
    for path in [*ROOT.glob("dora_lesson/**/*.py"), *ROOT.glob("tools/*.py"), ROOT / "Makefile"]:
        assert slug not in path.read_text(), path
