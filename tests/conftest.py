"""Shared by all tests: run code in a fresh Python, and find out that a browser or a GPU is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run a snippet in a fresh interpreter; `first` runs before anything else is imported there."""

    def run(code: str, *, first: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "sitecustomize.py").write_text(first)
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
