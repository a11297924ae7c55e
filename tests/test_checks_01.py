"""Lesson 01's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dora_lesson import checks
from dora_lesson.adapters import geometry

Attempt = Callable[..., Any]


def norm(W: Tensor) -> Tensor:
    return W.norm(dim=1)


def safe(m: Tensor) -> Tensor:
    return torch.where(m > 0, m, torch.ones_like(m))


# Right answers.


def split_by_normalize(W: Tensor) -> tuple[Tensor, Tensor]:
    return W.norm(dim=1), F.normalize(W, dim=1)


def split_row_by_row(W: Tensor) -> tuple[Tensor, Tensor]:
    m = torch.stack([row.dot(row).sqrt() for row in W])
    return m, torch.stack([row / length if length > 0 else row for row, length in zip(W, m, strict=True)])


def split_with_keepdim(W: Tensor) -> tuple[Tensor, Tensor]:
    m = torch.linalg.vector_norm(W, dim=-1, keepdim=True)
    return m.squeeze(1), torch.nan_to_num(W / m)


def split_by_einsum(W: Tensor) -> tuple[Tensor, Tensor]:
    m = torch.einsum("oi,oi->o", W, W).sqrt()
    return m, torch.einsum("oi,o->oi", W, 1 / safe(m))


def cos_by_hand(W0: Tensor, W1: Tensor) -> Tensor:
    return (W0 * W1).sum(dim=1) / safe(norm(W0) * norm(W1))


RIGHT: list[tuple[str, Attempt]] = [
    ("decompose", split_by_normalize),
    ("decompose", split_row_by_row),
    ("decompose", split_with_keepdim),
    ("decompose", split_by_einsum),
    ("recompose", lambda m, V: m[:, None] * V),
    ("recompose", lambda m, V: V * m.unsqueeze(1)),
    ("recompose", lambda m, V: torch.diag(m) @ V),
    ("recompose", lambda m, V: (V.T * m).T),
    ("recompose", lambda m, V: torch.einsum("o,oi->oi", m, V)),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).abs().mean()),
    ("magnitude_change", lambda a, b: F.l1_loss(norm(a), norm(b))),
    ("magnitude_change", lambda a, b: sum(abs(x - y) for x, y in zip(norm(a), norm(b), strict=True)) / len(a)),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).abs().mean().item()),
    ("magnitude_change", lambda a, b: np.abs(np.linalg.norm(b, axis=1) - np.linalg.norm(a, axis=1)).mean()),
    ("direction_change", lambda a, b: (1 - F.cosine_similarity(a, b, dim=1)).mean()),
    ("direction_change", lambda a, b: (1 - F.cosine_similarity(a.double(), b.double(), dim=1)).mean()),
    ("direction_change", lambda a, b: (1 - (a * b).sum(1) / (norm(a) * norm(b))).mean()),
    ("decompose", lambda W: (norm(W.double()), F.normalize(W.double(), dim=1))),
    ("direction_change", lambda a, b: 1 - F.cosine_similarity(a, b).mean()),
    ("direction_change", lambda a, b: 1 - cos_by_hand(a, b).mean()),
    ("direction_change", lambda a, b: (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() / 2),
    ("direction_change", geometry.direction_change),
]


@pytest.mark.parametrize(("name", "attempt"), RIGHT)
def test_right_answers_are_accepted(name: str, attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    returned = getattr(checks, name)(attempt)
    out = capsys.readouterr().out
    assert out.startswith("correct: ")
    assert out.count("\n") == 1
    assert returned is attempt


# Wrong answers, each with a word of the message that it must meet.


def split_in_place(W: Tensor) -> tuple[Tensor, Tensor]:
    m = W.norm(dim=1)
    W /= safe(m)[:, None]
    return m, W


def put_together_in_place(m: Tensor, V: Tensor) -> Tensor:
    V *= m[:, None]
    return V


def columns(W: Tensor) -> Tensor:
    return W.norm(dim=0)


WRONG: list[tuple[str, Attempt, str]] = [
    ("decompose", lambda W: (columns(W), W / columns(W)), "dim=0"),
    ("decompose", lambda W: (norm(W), W / columns(W)), "dim=0"),
    ("decompose", lambda W: (W.norm(), W / W.norm()), "whole matrix"),
    ("decompose", lambda W: (norm(W), W / W.norm()), "whole matrix"),
    ("decompose", lambda W: (norm(W), W / norm(W)), "no error warns you"),
    ("decompose", lambda W: (norm(W) ** 2, F.normalize(W, dim=1)), "squared"),
    ("decompose", lambda W: (W.abs().sum(1), F.normalize(W, dim=1)), "L1"),
    ("decompose", lambda W: (W.square().mean(1).sqrt(), F.normalize(W, dim=1)), "not their mean"),
    ("decompose", lambda W: (W.norm(dim=1, keepdim=True), F.normalize(W, dim=1)), "shape"),
    ("decompose", lambda W: (norm(W), W / norm(W)[:, None]), "NaN"),
    ("decompose", lambda W: (norm(W), W / (norm(W)[:, None] + 1e-2)), "has length 0.99"),
    ("decompose", lambda W: (norm(W), W), "divide each row"),
    ("decompose", lambda W: (norm(W), W * norm(W)[:, None]), "divide by it"),
    ("decompose", lambda W: (F.normalize(W, dim=1), norm(W)), "wrong way round"),
    ("decompose", lambda W: F.normalize(W, dim=1), "two tensors"),
    ("decompose", lambda W: (norm(W).half(), F.normalize(W, dim=1).half()), "dtype"),
    ("decompose", lambda W: (norm(W), W / (norm(W)[:, None] + 1e-6)), "added to the divisor"),
    ("decompose", lambda W: (norm(W), W / norm(W).clamp(min=1e-3)[:, None]), "clamp"),
    ("decompose", lambda W: (norm(W).clamp(min=1e-9), F.normalize(W, dim=1)), "magnitude 0"),
    ("recompose", lambda m, V: m.abs()[:, None] * V, "sign of m"),
    ("recompose", lambda m, V: m[:, None] * F.normalize(V, dim=1), "length 1 again"),
    ("decompose", lambda W: (norm(W), F.normalize(W, dim=1).T), "transposed"),
    ("decompose", split_in_place, "in place"),
    ("recompose", lambda m, V: m * V, "no error warns you"),
    ("recompose", lambda m, V: m[:, None] + V, "do not add"),
    ("recompose", lambda m, V: V / m[:, None], "divided"),
    ("recompose", lambda m, V: V, "V itself"),
    ("recompose", lambda m, V: m @ V, "shape"),
    ("recompose", lambda m, V: V.T * m, "transposed"),
    ("recompose", lambda m, V: m.square()[:, None] * V, "twice"),
    ("recompose", put_together_in_place, "in place"),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).mean(), "cancel"),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).abs(), "end with the mean"),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).abs().sum(), "sum over the rows"),
    ("magnitude_change", lambda a, b: (columns(b) - columns(a)).abs().mean(), "dim=0"),
    ("magnitude_change", lambda a, b: (b.norm() - a.norm()).abs(), "whole matrices"),
    ("magnitude_change", lambda a, b: norm(b - a).mean(), "also sees a turn"),
    ("magnitude_change", lambda a, b: (b - a).abs().mean(), "all entries"),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).square().mean(), "squares the changes"),
    ("magnitude_change", lambda a, b: ((norm(b) - norm(a)).abs() / norm(a)).mean(), "relative"),
    ("magnitude_change", lambda a, b: (norm(b) - norm(a)).abs()[norm(a) > 0].mean(), "counts like any other"),
    ("direction_change", lambda a, b: F.cosine_similarity(a, b, dim=1).mean(), "take 1 - cos"),
    ("direction_change", lambda a, b: (F.cosine_similarity(a, b, dim=1) - 1).mean(), "sign"),
    ("direction_change", lambda a, b: (1 - F.cosine_similarity(a, b, dim=0)).mean(), "dim=0"),
    ("direction_change", lambda a, b: 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0), "flattened"),
    ("direction_change", lambda a, b: 1 - F.cosine_similarity(a, b, dim=1), "end with the mean"),
    ("direction_change", lambda a, b: (1 - (a * b).sum(1)).mean(), "dividing by both lengths"),
    ("direction_change", lambda a, b: F.cosine_similarity(a, b, dim=1).acos().mean(), "radians"),
    ("direction_change", lambda a, b: float("nan"), "you return nan"),
    ("direction_change", lambda a, b: F.cosine_similarity(a, b, dim=2).mean(), "raised"),
]


@pytest.mark.parametrize(("name", "attempt", "says"), WRONG, ids=[f"{n}-{s.replace(' ', '-')}" for n, _, s in WRONG])
def test_wrong_answers_meet_the_fitting_message(
    name: str, attempt: Attempt, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    returned = getattr(checks, name)(attempt)
    out = capsys.readouterr().out
    assert out.startswith("wrong: "), out
    assert out.count("\n") == 1
    assert re.search(says, out), out
    assert "could not be examined" not in out
    assert returned is getattr(geometry, name)


@pytest.mark.parametrize("name", ["decompose", "recompose", "magnitude_change", "direction_change"])
@pytest.mark.parametrize("unwritten", ["raises", "pass", "ellipsis", "nones"])
def test_an_unwritten_answer_says_not_yet(name: str, unwritten: str, capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(*_: Tensor) -> Any:
        if unwritten == "raises":
            raise NotImplementedError
        return {"pass": None, "ellipsis": ..., "nones": (None, None)}[unwritten]

    assert getattr(checks, name)(attempt) is getattr(geometry, name)
    out = capsys.readouterr().out
    assert out.startswith("not yet: ")
    assert out.count("\n") == 1


def test_a_check_is_quiet_and_leaves_random_numbers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(W: Tensor) -> tuple[Tensor, Tensor]:
        print("W is", W)
        torch.rand(1)
        return split_by_normalize(W)

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    checks.decompose(chatty)
    assert torch.equal(torch.rand(1), expected)
    assert capsys.readouterr().out.count("\n") == 1
