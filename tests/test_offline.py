"""After set-up everything runs with the network off: every lesson, under a hook that forbids connections."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunPython
from tools import notebooks

# Jupyter's own messages travel over loopback, and are let through.
FORBID = """
import sys
def forbid(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:2]
    else:
        return
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(address, tuple) and str(host) not in ("127.0.0.1", "::1", "localhost", "None", ""):
        raise OSError(f"the network is forbidden: {event} {address}")
sys.addaudithook(forbid)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)",
        "import httpx; httpx.get('http://example.org', timeout=1)",
    ],
)
def test_the_hook_forbids(code: str, run_python: RunPython) -> None:
    done = run_python(code, first=FORBID)
    assert done.returncode != 0
    assert "the network is forbidden" in done.stderr


def test_load_and_generate_offline(run_python: RunPython) -> None:
    code = """
import dora_lesson
for four_bit in (False, True):
    model, tokenizer = dora_lesson.load_base(four_bit=four_bit)
    model.generate(**tokenizer("Hi", return_tensors="pt").to(model.device), max_new_tokens=2, do_sample=False)
assert dora_lesson.doctor().ok
print("done")
"""
    done = run_python(code, first=FORBID, HF_HUB_OFFLINE="0")
    assert done.stdout == "done\n", done.stderr[-2000:]


@pytest.mark.parametrize("path", notebooks.lessons(), ids=lambda path: path.stem)
def test_lesson_runs_offline(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "hooked"
    (tmp_path / "sitecustomize.py").write_text(f"{FORBID}\nopen({str(marker)!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert sys.executable
    notebooks.execute(notebooks.read(path))  # raises where a cell does
    assert marker.exists(), "the kernel ran without the hook"
