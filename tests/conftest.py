"""Fixtures for all tests: models, fresh Pythons, and kernels without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

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


SLOW_FIXTURES = {"bundled", "tiny_base", "run_python", "kernels_offline"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test as slow that loads a model or starts a Python, so that `make test-quick` leaves it out."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def bundled() -> tuple[Any, Any]:
    """The bundled model in float32 on the CPU, and its tokenizer, shared by all tests: none may change them."""
    from dora_lesson import load_base

    return load_base("bundled", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(bundled: tuple[Any, Any]) -> Any:
    """The bundled model's tokenizer: a test that changes it copies it first."""
    return bundled[1]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of random weights, three blocks of 64, and the bundled model's tokenizer."""
    from transformers import AutoTokenizer

    from dora_lesson import prepare
    from tests.test_adapters import small_llama

    folder = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    small_llama(vocab_size=49152, num_hidden_layers=3, **shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(prepare()).save_pretrained(folder)
    return folder


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


@pytest.fixture
def kernels_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernels started in this test may not connect to anything; each leaves the returned file, to say that it is so."""
    marker = tmp_path / "hooked"
    (tmp_path / "sitecustomize.py").write_text(f"{FORBID}\nopen({str(marker)!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return marker
