"""Magnitude and direction, and how far they moved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dora_lesson import decompose, direction_change, magnitude_change, recompose


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    W = torch.randn(draw(st.integers(1, 12)), draw(st.integers(1, 12)), dtype=torch.float64)
    W = W * 10 ** draw(st.floats(-6, 6))
    W[torch.rand(len(W)) < draw(st.sampled_from([0.0, 0.5]))] = 0
    return W


@settings(max_examples=100, deadline=None, derandomize=True)
@given(W=weights())
def test_round_trip_with_and_without_zero_rows(W: Tensor) -> None:
    m, V = decompose(W)
    assert m.shape == W.shape[:1]
    assert V.shape == W.shape
    torch.testing.assert_close(recompose(m, V), W, rtol=1e-14, atol=0)
    lengths = torch.where(m > 0, 1.0, 0.0).double()
    torch.testing.assert_close(V.norm(dim=1), lengths, rtol=1e-14, atol=0)
    assert torch.equal(m == 0, (W == 0).all(dim=1))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(W=weights(), factor=st.floats(0.1, 10))
def test_stretching_moves_the_magnitude_alone(W: Tensor, factor: float) -> None:
    assert direction_change(W, factor * W) < 1e-15
    expected = abs(factor - 1) * W.norm(dim=1).mean()
    torch.testing.assert_close(magnitude_change(W, factor * W), expected, rtol=1e-12, atol=1e-15 * W.norm().item())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(W=weights(), seed=st.integers(0, 2**31))
def test_turning_moves_the_direction_alone(W: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(W.shape[1], W.shape[1], dtype=torch.float64))
    assert magnitude_change(W, W @ turn) <= 1e-14 * W.norm()


@pytest.mark.parametrize("degrees", [0, 1e-3, 1, 45, 90, 135, 180])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_angles_also_tiny_ones_in_float32(degrees: float, dtype: torch.dtype) -> None:
    angle = math.radians(degrees)
    W0 = torch.tensor([[2.0, 0.0]], dtype=dtype)
    W1 = 3 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=dtype)
    expected = 2 * math.sin(angle / 2) ** 2
    assert direction_change(W0, W1).item() == pytest.approx(expected, rel=1e-4, abs=1e-15)


def test_rows_and_not_columns() -> None:
    W = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert decompose(W)[0].tolist() == [5.0, 2.0]
    W1 = torch.tensor([[6.0, 8.0], [0.0, 2.0]])  # the first row doubles: no row turns, a column would
    assert direction_change(W, W1) == 0
    assert magnitude_change(W, W1) == 2.5


def test_rows_of_zeros_in_the_changes() -> None:
    W0 = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    W1 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert direction_change(W0, W1).item() == pytest.approx(1 / 3)
    assert magnitude_change(W0, W1).item() == pytest.approx(1 / 3)


def test_gradients_flow_and_stay_finite() -> None:
    W = torch.randn(4, 3, dtype=torch.float64)
    W[1] = 0
    W.requires_grad_()
    m, V = decompose(W)
    (m.sum() + V.sum()).backward()
    assert W.grad is not None
    assert W.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: decompose(torch.ones(3)), r"W has shape \(3,\).*matrix \(d_out, d_in\)"),
        (lambda: decompose(torch.ones(2, 2, dtype=torch.int8)), r"torch\.int8.*dequantized"),
        (lambda: recompose(torch.ones(3), torch.ones(2, 3)), r"m has shape \(3,\).*a tensor m of shape \(2,\)"),
        (lambda: recompose([1.0, 2.0], torch.ones(2, 3)), r"m is a list"),
        (lambda: recompose(np.ones(2), torch.ones(2, 3)), r"m is a ndarray"),
        (lambda: recompose(torch.ones(2, 1), torch.ones(2, 3)), r"m has shape \(2, 1\)"),
        (lambda: magnitude_change(torch.ones(2, 3), torch.ones(3, 2)), "the same layer before and after"),
        (lambda: direction_change(torch.ones(2, 3), torch.ones(1, 3)), "the same layer before and after"),
    ],
)
def test_bad_arguments(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_moves_are_seen_in_16_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    W0 = torch.randn(64, 512).to(dtype)
    W1 = (W0.double() + 0.02 * torch.randn(64, 512).double()).to(dtype)
    for change in (magnitude_change, direction_change):
        expected = change(W0.double(), W1.double()).item()
        assert change(W0, W1).item() == pytest.approx(expected, rel=1e-3)


def test_a_diverged_weight_has_no_number_for_its_move() -> None:
    nan, one = torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1.0, 1.0]])
    for change in (magnitude_change, direction_change):
        assert change(nan, one).isnan() and change(one, nan).isnan()
