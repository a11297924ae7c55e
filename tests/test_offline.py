"""After set-up everything runs with the network off; `test_notebook_exercises` runs the lessons under the same hook."""

from __future__ import annotations

import pytest

from tests.conftest import FORBID, RunPython


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


def test_loading_and_generating_need_no_network_and_print_nothing(run_python: RunPython) -> None:
    code = """
import dora_lesson
for four_bit in (False, True):
    model, tokenizer = dora_lesson.load_base(four_bit=four_bit)
    model.generate(**tokenizer("Hi", return_tensors="pt").to(model.device), max_new_tokens=2, do_sample=False)
assert dora_lesson.doctor().ok
print("done")
"""
    done = run_python(code, first=FORBID, HF_HUB_OFFLINE="0")
    assert (done.stdout, done.stderr) == ("done\n", "")
