"""Lesson 02's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dora_lesson import checks

FORWARDS = {
    "two thin products": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / A.shape[0] * (x @ A.T) @ B.T,
    "einsum": lambda x, W, b, A, B, a: x @ W.T + b + torch.einsum("...r,or->...o", x @ A.T, B) * (a / A.size(0)),
    "linear twice": lambda x, W, b, A, B, a: F.linear(x, W, b) + F.linear(F.linear(x, A), B).mul(a / B.shape[1]),
}
WRONG_FORWARDS = {
    "scaling is lora_alpha / r": lambda x, W, b, A, B, a: F.linear(x, W, b) + a * (x @ A.T) @ B.T,
    "not scaled": lambda x, W, b, A, B, a: F.linear(x, W, b) + (x @ A.T) @ B.T,
    "frozen layer alone": lambda x, W, b, A, B, a: F.linear(x, W, b),
    "update alone": lambda x, W, b, A, B, a: a / len(A) * (x @ A.T) @ B.T,
    "bias is missing": lambda x, W, b, A, B, a: x @ W.T + a / len(A) * (x @ A.T) @ B.T,
    "bias is added twice": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x @ A.T) @ B.T + b,
    "W.T": lambda x, W, b, A, B, a: x @ W + b + a / len(A) * (x @ A.T) @ B.T,
    "untransposed": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x @ A) @ B,
    "changed places": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x @ B) @ A,
    "subtracted": lambda x, W, b, A, B, a: F.linear(x, W, b) - a / len(A) * (x @ A.T) @ B.T,
    "scaled as well": lambda x, W, b, A, B, a: a / len(A) * (F.linear(x, W, b) + (x @ A.T) @ B.T),
    "// rounds": lambda x, W, b, A, B, a: F.linear(x, W, b) + a // len(A) * (x @ A.T) @ B.T,
    "upside down": lambda x, W, b, A, B, a: F.linear(x, W, b) + len(A) / a * (x @ A.T) @ B.T,
    "root of r": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) ** 0.5 * (x @ A.T) @ B.T,
    "divided by d_in": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / A.shape[1] * (x @ A.T) @ B.T,
    "or d_out;": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(B) * (x @ A.T) @ B.T,
    "the number 2": lambda x, W, b, A, B, a: F.linear(x, W, b) + 2.0 * (x @ A.T) @ B.T,
    "reach x": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x.detach() @ A.T) @ B.T,
    "reach B": lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x @ A.T) @ B.detach().T,
    "leave out detach and no_grad": torch.no_grad()(
        lambda x, W, b, A, B, a: F.linear(x, W, b) + a / len(A) * (x @ A.T) @ B.T
    ),
    "size of W": lambda x, W, b, A, B, a: F.linear(x, W + a / len(A) * B @ A, b),
    "matches no slip": lambda x, W, b, A, B, a: 2 * F.linear(x, W, b),
    "matches no slip that": lambda x, W, b, A, B, a: F.linear(x, W, b) + 3 * (x @ A.T) @ B.T,  # of the first case alone
    "shape": lambda x, W, b, A, B, a: F.linear(x, W, b).sum(-1),
}


@pytest.mark.parametrize("attempt", FORWARDS.values(), ids=FORWARDS)
def test_a_right_forward_pass_is_accepted(attempt, capsys):
    assert checks.lora_forward(attempt) is attempt
    assert capsys.readouterr().out.startswith("correct: ")


@pytest.mark.parametrize(("words", "attempt"), WRONG_FORWARDS.items(), ids=WRONG_FORWARDS)
def test_a_wrong_forward_pass_is_named(words, attempt, capsys):
    assert checks.lora_forward(attempt) is not attempt
    said = capsys.readouterr().out
    assert said.startswith("wrong: ")
    assert words in said


COUNTS = {
    "a sum": lambda shapes, r: sum(r * (o + i) for o, i in shapes),
    "real matrices": lambda shapes, r: sum(torch.empty(r, i).numel() + torch.empty(o, r).numel() for o, i in shapes),
    "a tensor": lambda shapes, r: r * torch.tensor(shapes).sum(),
    "numpy": lambda shapes, r: np.sum(np.array(shapes)) * r,
    "emptying the list": lambda shapes, r: sum(r * sum(shapes.pop()) for _ in range(len(shapes))),
}
WRONG_COUNTS = {
    "counts W": lambda shapes, r: sum(o * i for o, i in shapes),
    "A alone": lambda shapes, r: sum(r * i for o, i in shapes),
    "B alone": lambda shapes, r: sum(r * o for o, i in shapes),
    "DoRA's count": lambda shapes, r: sum(r * (o + i) + o for o, i in shapes),
    "r is missing": lambda shapes, r: sum(o + i for o, i in shapes),
    "only the first": lambda shapes, r: r * sum(shapes[0]),
    "counted once": lambda shapes, r: sum(r * (o + i) for o, i in set(shapes)),
    "are multiplied": lambda shapes, r: sum(r * o * i for o, i in shapes),
    "you give": lambda shapes, r: 5,
    "but a number is expected": lambda shapes, r: "many",
    "a finite number": lambda shapes, r: float("nan"),
}


def test_an_input_without_leading_dimensions_counts_too(capsys):
    def two_or_three(x, W, b, A, B, a):
        letters = "bi" if x.ndim == 2 else "bsi"
        xA = torch.einsum(f"{letters},ri->{letters[:-1]}r", x, A)
        return F.linear(x, W, b) + a / len(A) * torch.einsum(f"{letters[:-1]}r,or->{letters[:-1]}o", xA, B)

    assert checks.lora_forward(two_or_three) is not two_or_three
    assert "two_or_three raised" in capsys.readouterr().out


def test_an_error_at_the_last_size_names_the_readers_line(capsys):
    def fails_late(x, W, b, A, B, a):
        assert W.shape != (64, 48)  # the line to be named
        return F.linear(x, W, b) + a / len(A) * (x @ A.T) @ B.T

    checks.lora_forward(fails_late)
    said = capsys.readouterr().out
    assert said.startswith("wrong: fails_late raised AssertionError") and "# the line to be named" in said


@pytest.mark.parametrize("attempt", COUNTS.values(), ids=COUNTS)
def test_a_right_count_is_accepted(attempt):
    assert checks.lora_count(attempt) is attempt


@pytest.mark.parametrize(("words", "attempt"), WRONG_COUNTS.items(), ids=WRONG_COUNTS)
def test_a_wrong_count_is_named(words, attempt, capsys):
    assert checks.lora_count(attempt) is not attempt
    assert words in capsys.readouterr().out


def cos(W0, W1):
    return F.cosine_similarity(W0, W1, dim=1)


def in_float32(start, now):
    return by_loop({n: W.float() for n, W in start.items()}, {n: W.float() for n, W in now.items()})


def by_loop(start, now):
    pairs = {}
    for name in start:
        W0, W1 = start[name], now[name]
        pairs[name] = ((W1.norm(dim=1) - W0.norm(dim=1)).abs().mean(), (1 - cos(W0, W1)).mean())
    return pairs


def as_lists(start, now):
    return {name: [float(value) for value in pair] for name, pair in by_loop(start, now).items()}


def from_the_ends(start, now):
    """Empties copies of its own."""
    left, moved = list(now), {}
    while left:
        name = left.pop()
        moved[name] = [np.float64(value) for value in by_loop(start, now)[name]]
    return moved


def stands_still(start, now):
    """Puts the weights back and finds that nothing moved."""
    for name in start:
        now[name].copy_(start[name])
    return dict.fromkeys(start, (0.0, 0.0))


def empties(start, now):
    names = list(start)
    return {name: by_loop({name: start.pop(name)}, {name: now[name]})[name] for name in names}


def swap(pairs):
    return {name: (D, M) for name, (M, D) in pairs.items()}


WRONG_MOVEMENTS = {
    "wrong way round": lambda s, n: swap(by_loop(s, n)),
    "absolute value": lambda s, n: {k: ((n[k].norm(dim=1) - s[k].norm(dim=1)).mean(), by_loop(s, n)[k][1]) for k in s},
    "dim=0": lambda s, n: by_loop({k: W.T for k, W in s.items()}, {k: W.T for k, W in n.items()}),
    "1 minus it": lambda s, n: {k: (M, 1 - D) for k, (M, D) in by_loop(s, n).items()},
    "return a dict": lambda s, n: list(by_loop(s, n).values()),
    "give one for each": lambda s, n: {"a": by_loop(s, n)["a"]},
    "not a pair": lambda s, n: {k: M for k, (M, _) in by_loop(s, n).items()},
    "changed its argument number 2 in place": stands_still,
    "changed the dict start": empties,
    "ΔD of 'a' is a Tensor, but a number": lambda s, n: {k: (0.0, 1 - cos(s[k], n[k])) for k in s},
    "is nan": lambda s, n: dict.fromkeys(s, (float("nan"), float("nan"))),
    "are rounded": lambda s, n: {k: (round(M.item(), 4), round(D.item(), 4)) for k, (M, D) in by_loop(s, n).items()},
    "ΔM of": lambda s, n: {k: (2 * M, D) for k, (M, D) in by_loop(s, n).items()},
    "by the order": lambda s, n: dict(
        zip(s, by_loop(dict(enumerate(s.values())), dict(enumerate(n.values()))).values(), strict=True)
    ),
    "ΔD of": lambda s, n: {k: (M, 2 * D) for k, (M, D) in by_loop(s, n).items()},
}


@pytest.mark.parametrize("attempt", [by_loop, as_lists, from_the_ends, in_float32])
def test_a_right_movement_is_accepted(attempt):
    assert checks.movement(attempt) is attempt


@pytest.mark.parametrize(("words", "attempt"), WRONG_MOVEMENTS.items(), ids=WRONG_MOVEMENTS)
def test_a_wrong_movement_is_named(words, attempt, capsys):
    assert checks.movement(attempt) is not attempt
    assert words in capsys.readouterr().out
