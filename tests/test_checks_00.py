"""Lesson 00's check: right answers in several styles, and the wrong ones that learners give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dora_lesson import checks


def written_out(lora_alpha: float, r: int) -> float:
    inverse = 1 / r
    return lora_alpha * inverse


@pytest.mark.parametrize("attempt", [
    lambda lora_alpha, r: lora_alpha / r,
    lambda a, b: a * b**-1,
    written_out,
    lambda a, r: np.float32(a) / r,
    lambda a, r: torch.tensor(a) / r,
])  # fmt: skip
def test_right_answers(attempt: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.scaling(attempt) is attempt
    assert capsys.readouterr().out.startswith("correct: ")


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda lora_alpha, r: r / lora_alpha, "upside down"),
        (lambda lora_alpha, r: lora_alpha * r, "multiplies"),
        (lambda lora_alpha, r: lora_alpha, "lora_alpha itself"),
        (lambda lora_alpha, r: lora_alpha // r, "use / and not //"),
        (lambda lora_alpha, r: lora_alpha / r**0.5, "square root"),
        (lambda lora_alpha, r: 2.0, "is right"),
        (lambda lora_alpha, r: str(lora_alpha / r), "a number is expected"),
        (lambda lora_alpha, r: float("nan"), "a finite number is expected"),
        (lambda lora_alpha, r: lora_alpha > r, "a bool, but a number"),
        (lambda lora_alpha: lora_alpha, "TypeError"),
        (lambda lora_alpha, r: lora_alpha / 0, "ZeroDivisionError"),
        (3.0, "pass it the function itself"),
    ],
)
def test_wrong_answers(attempt: Any, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference = checks.scaling(attempt)
    out = capsys.readouterr().out
    assert out.startswith("wrong: ")
    assert says in out
    assert out.count("\n") == 1
    assert reference(16, 8) == 2.0
