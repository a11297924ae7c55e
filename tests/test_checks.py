"""What every check does alike: an unwritten answer is "not yet", and the course's own answer passes."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import torch

from dora_lesson import checks
from dora_lesson.checks.runner import Wrong, call, expect_number, is_whole, plain


@pytest.mark.parametrize("name", checks.__all__)
def test_an_unwritten_answer_is_not_yet_and_the_courses_own_is_right(name, capsys):
    def stub(*_):
        raise NotImplementedError

    own = getattr(checks, name)(stub)
    assert capsys.readouterr().out.startswith("not yet: stub ")
    assert getattr(checks, name)(own) is own


# Where an error is said to be: in the reader's own line, whoever called it.


def broken(*_):
    return [1, 2][7]  # the line to be named


@torch.no_grad()
def broken_under_a_decorator(*_):
    return [1, 2][7]  # the line to be named


def broken_in_the_package(*_):
    return checks.runner.close(1, 2)  # the line to be named


def broken_in_torch(*_):
    return torch.nn.functional.linear("x", "W")  # the line to be named


BROKEN = [broken_under_a_decorator, broken_in_the_package, broken_in_torch]


@pytest.mark.parametrize(
    ("name", "attempt"),
    [*((name, broken) for name in checks.__all__), *(("choose", attempt) for attempt in BROKEN)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_readers_own_line_is_named(name, attempt, capsys):
    getattr(checks, name)(attempt)
    said = capsys.readouterr().out
    assert said.startswith(f"wrong: {attempt.__name__} raised ")
    assert said.count(" of the cell: return ") == 1 and said.endswith(" # the line to be named\n"), said


@pytest.mark.parametrize("name", ["choose", "merged_copy", "recompose"])
def test_an_error_outside_the_readers_code_points_at_the_def_line(name, capsys):
    """A def line that takes too much has no line of its own in the traceback, and torch's own function has none."""
    for attempt in (
        lambda a, b, c, d, e, f, g, h: 0,
        functools.partial(torch.nn.functional.cosine_similarity, dim="x"),
    ):
        getattr(checks, name)(attempt)
        said = capsys.readouterr().out
        assert "raised" in said and said.endswith("look at the arguments in its def line.\n"), said


# What is handed over stays as it was.


@pytest.mark.parametrize("inside", [lambda t: t, lambda t: [t], lambda t: {"W": t}, lambda t: ({"W": [t]},)])
def test_a_tensor_changed_in_place_is_seen_wherever_it_is_held(inside):
    def resets(_):
        tensor.zero_()
        return 0

    tensor = torch.ones(2)
    with pytest.raises(Wrong, match="changed its argument number 1 in place"):
        call(resets, inside(tensor))


def test_a_module_that_lost_a_weight_is_seen():
    def strips(model):
        model[1] = torch.nn.Identity()
        return 0

    with pytest.raises(Wrong, match="in place"):
        call(strips, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))


def test_a_module_that_was_frozen_is_seen():
    with pytest.raises(Wrong, match="in place"):
        call(lambda model: bool(model.requires_grad_(False)), torch.nn.Linear(2, 2))


def test_an_attempt_leaves_the_notebooks_modes_as_they_were(capsys):
    def switches(*_):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return torch.zeros(())

    checks.dora_forward(switches)
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    with torch.no_grad():  # what another cell has left
        checks.dora_forward(lambda x, W, b, A, B, m, alpha: right_forward(x, W, b, A, B, m, alpha))
        assert not torch.is_grad_enabled()
    assert capsys.readouterr().out.splitlines()[-1].startswith("correct: ")


def right_forward(x, W, b, A, B, m, alpha):
    V = W + alpha / len(A) * B @ A
    return torch.nn.functional.linear(x, (m / V.norm(dim=1).detach())[:, None] * V, b)


# Numbers of every kind.


@pytest.mark.parametrize(
    "value", [3, 3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3), torch.tensor(3.0), Fraction(3)]
)
def test_a_number_is_a_number(value):
    assert expect_number(value, "it") == 3
    assert is_whole(value) == (type(plain(value)) is int)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "is nan"),
        (np.float64("inf"), "is inf"),
        (torch.tensor(float("nan")), "is nan"),
        (True, "a bool"),
        (np.True_, "a bool"),
        (1j, "a complex"),
        ("3", "a str"),
        (np.array([3]), "a ndarray"),
        (torch.tensor([3]), "a Tensor"),
    ],
)
def test_what_is_no_finite_number_is_refused(value, words):
    with pytest.raises(Wrong, match=words):
        expect_number(value, "it")
    assert not is_whole(value)
