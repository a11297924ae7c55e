"""Magnitude and direction of a weight, and how far a second weight has moved from it.

A weight here is what `nn.Linear` holds: `W` of shape (d_out, d_in), one row for each output. A row is an arrow in
d_in dimensions, so there is one magnitude and one direction per output, and every norm runs over d_in (`dim=1`).
The paper (Liu et al., arXiv 2402.09353v6) writes W transposed, which is why it speaks of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm


def decompose(W: Tensor) -> tuple[Tensor, Tensor]:
    """Split `W` into magnitudes `m` and unit directions `V` (paper, Eq. 2).

    Args:
        W: weight of shape (d_out, d_in), floating point.

    Returns:
        `m` of shape (d_out,), the length of each row, and `V` of shape (d_out, d_in), its rows of length 1.
        A row of zeros points nowhere: its magnitude is 0 and its direction a row of zeros.

    Raises:
        ValueError: `W` is not a floating-point matrix.
    """
    _require_matrices(W=W)
    m = vector_norm(W, dim=1)
    divisor = torch.where(m == 0, torch.ones_like(m), m)
    return m, W / divisor[:, None]


def recompose(m: Tensor, V: Tensor) -> Tensor:
    """Put magnitudes (d_out,) and directions (d_out, d_in) together again: row i is `m[i] * V[i]` (paper, Eq. 2).

    Raises:
        ValueError: `V` is not a floating-point matrix, or `m` does not hold one magnitude per row of `V`.
    """
    _require_matrices(V=V)
    if not isinstance(m, Tensor) or m.shape != V.shape[:1]:
        found = f"has shape {tuple(m.shape)}" if isinstance(m, Tensor) else f"is a {type(m).__name__}"
        raise ValueError(f"m {found}, but V has {len(V)} rows: pass a tensor m of shape ({len(V)},).")
    return m[:, None] * V


def magnitude_change(W0: Tensor, W1: Tensor) -> Tensor:
    """ΔM: the mean over rows of |‖W1ᵢ‖ − ‖W0ᵢ‖|, a scalar tensor in the units of the weight (paper, Eq. 3).

    Raises:
        ValueError: the two are not floating-point matrices of one shape.
    """
    W0, W1 = _precise(W0, W1)
    return (vector_norm(W1, dim=1) - vector_norm(W0, dim=1)).abs().mean()


def direction_change(W0: Tensor, W1: Tensor) -> Tensor:
    """ΔD: the mean over rows of 1 − cos(W0ᵢ, W1ᵢ), a scalar tensor from 0 (same way) to 2 (opposite) (paper, Eq. 4).

    A row that is zero in both has not turned and counts 0; zero in one only, it counts 1, as a right angle does.
    1 − cos is taken as half the squared distance of the two unit rows: the same number, without the cancellation
    that would swallow a small turn in float32.

    Raises:
        ValueError: the two are not floating-point matrices of one shape.
    """
    (m0, V0), (m1, V1) = (decompose(W) for W in _precise(W0, W1))
    turned = (V1 - V0).square().sum(dim=1) / 2
    return torch.where((m0 == 0) != (m1 == 0), torch.ones_like(turned), turned).mean()


def _precise(W0: Tensor, W1: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least: in 16 bits a small change of a norm is rounded away."""
    _require_matrices(W0=W0, W1=W1)
    dtype = torch.promote_types(torch.promote_types(W0.dtype, W1.dtype), torch.float32)
    return W0.to(dtype), W1.to(dtype)


def _require_matrices(**weights: Tensor) -> None:
    for name, W in weights.items():
        if not isinstance(W, Tensor):
            raise ValueError(f"{name} is a {type(W).__name__}: pass a tensor, such as torch.tensor([[3.0, 4.0]]).")
        if W.ndim != 2 or not W.is_floating_point():
            todo = "pass a floating-point matrix (d_out, d_in), dequantized if it is 4-bit"
            raise ValueError(f"{name} has shape {tuple(W.shape)} and dtype {W.dtype}: {todo}.")
    if len({W.shape for W in weights.values()}) > 1:
        shapes = " and ".join(f"{name} has shape {tuple(W.shape)}" for name, W in weights.items())
        raise ValueError(f"{shapes}: pass the same layer before and after.")
