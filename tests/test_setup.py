"""One list of what is installed: pyproject.toml, constraints.txt, environment.yml and the Makefile agree."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dora_lesson.environment import LIBRARIES, PYTHONS
from tests.conftest import ROOT
from tools.notebooks import repository, tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON_VERSIONS = ["3.10", "3.11", "3.12", "3.13"]
CONSTRAINTS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
]


def requirements(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def pins(name: str, python: str) -> list[Version]:
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    here |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    return [
        Version(next(iter(pin.specifier)).version)
        for pin in CONSTRAINTS
        if pin.name.lower().replace("_", "-") == name and (pin.marker is None or pin.marker.evaluate(here))
    ]


@pytest.mark.parametrize("python", PYTHON_VERSIONS)
def test_every_requirement_is_pinned_once_within_its_bounds(python: str) -> None:
    for requirement in requirements("lab", "test"):
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        found = pins(requirement.name.lower().replace("_", "-"), python)
        assert len(found) == 1, f"{requirement.name} on Python {python}: {found}"
        assert found[0] in requirement.specifier, requirement.name
    assert pins("pip", python), "pip itself"


def test_constraints_are_pins_and_nothing_else() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|^-|@|\+cpu", text, flags=re.M), "no place and no build belongs in the pins"
    assert all(str(pin.specifier).startswith("==") for pin in CONSTRAINTS)


def test_the_package_sets_bounds_and_no_pins() -> None:
    """What the package demands must never make Colab, or a machine a year from now, take an older library."""
    for requirement in requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">="}, f"{requirement}: a lower bound, and no upper one without a known break"


def test_the_report_looks_at_libraries_that_are_installed() -> None:
    assert set(LIBRARIES) <= {requirement.name for requirement in requirements()}


def test_pythons_agree() -> None:
    lowest, highest = (".".join(map(str, version)) for version in PYTHONS)
    assert PROJECT["requires-python"] == f">={lowest}"
    assert (PYTHON_VERSIONS[0], PYTHON_VERSIONS[-1]) == (lowest, highest)
    makefile = (ROOT / "Makefile").read_text()
    assert f"{PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]}" in makefile
    assert f"Python {lowest} to {highest}" in makefile


def test_conda_environment_installs_what_make_installs() -> None:
    """conda is not on every machine that runs this, so the file is read, not run."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    python = Requirement(conda[0].replace("=", "==", 1))
    assert python.name == "python"
    assert Version(next(iter(python.specifier)).version) in SpecifierSet(PROJECT["requires-python"])
    assert conda[1:] == ["pip"]
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[lab,test]"]}
    makefile = (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt --editable '.[lab,test]'" in makefile


def test_the_cpu_index_is_the_makefiles_choice_alone() -> None:
    for name in ["pyproject.toml", "constraints.txt", "constraints.in", "environment.yml"]:
        assert "download.pytorch.org" not in (ROOT / name).read_text(), name


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_help_lists_every_command() -> None:
    commands = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    listed = [line.split()[0] for line in make("help").stdout.splitlines()]
    assert listed == commands


def fake_checkout(folder: Path, python: str = "exit 0") -> Path:
    """A checkout with the real Makefile and a fake Python, which notes in `calls` what it was asked to do."""
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        (folder / name).write_text((ROOT / name).read_text())
    fake = folder / "fake-python"
    build = 'if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi\n'
    fake.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\n{build}{python}\n')
    fake.chmod(0o755)
    return fake


def test_a_second_setup_installs_nothing_and_a_change_installs_again(tmp_path: Path) -> None:
    fake = fake_checkout(tmp_path)
    calls = tmp_path / "calls"
    assert make("setup", f"PYTHON={fake}", cwd=tmp_path).returncode == 0
    assert "--editable .[lab,test]" in calls.read_text()
    calls.write_text("")
    assert make("setup", f"PYTHON={fake}", cwd=tmp_path).returncode == 0
    assert calls.read_text() == "-m dora_lesson prepare\n"
    for name in ["pyproject.toml", "constraints.txt"]:
        calls.write_text("")
        later = (tmp_path / ".venv/installed").stat().st_mtime + 10
        os.utime(tmp_path / name, (later, later))
        assert make("setup", f"PYTHON={fake}", cwd=tmp_path).returncode == 0
        assert "--editable" in calls.read_text(), name
        os.utime(tmp_path / ".venv/installed", (later, later))


def test_a_setup_that_was_stopped_starts_again(tmp_path: Path) -> None:
    fake = fake_checkout(tmp_path, python='case "$*" in *editable*) exit 1;; esac')
    assert make("setup", f"PYTHON={fake}", cwd=tmp_path).returncode != 0
    fake = fake_checkout(tmp_path)
    (tmp_path / "calls").write_text("")
    assert make("setup", f"PYTHON={fake}", cwd=tmp_path).returncode == 0
    assert "--editable" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ('case "$*" in *version_info*) exit 1;; esac', "The course needs Python 3.10 to 3.13"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_an_unfit_python_is_named_in_one_sentence(tmp_path: Path, python: str, says: str) -> None:
    done = make("setup", f"PYTHON={fake_checkout(tmp_path, python)}", cwd=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize(("torch", "cpu_build"), [("cpu", True), ("gpu", False)])
def test_the_torch_build_can_be_chosen(tmp_path: Path, torch: str, cpu_build: bool) -> None:
    fake = fake_checkout(tmp_path)
    make("setup", f"PYTHON={fake}", f"TORCH={torch}", cwd=tmp_path)
    installs = [line for line in (tmp_path / "calls").read_text().splitlines() if line.endswith(" torch")]
    assert len(installs) == 1
    assert ("https://download.pytorch.org/whl/cpu" in installs[0]) == cpu_build


def test_readme_names_the_two_commands_and_the_repository() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make lab" in readme
    assert "make test" in readme
    assert repository() in readme
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert picture.startswith("https://") or (ROOT / picture).is_file(), picture


def test_ci_runs_the_readmes_own_command() -> None:
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert script[-1] == "make test"
    assert os.access(ROOT / ".ci/run", os.X_OK)
