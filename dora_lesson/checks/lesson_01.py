"""Checks of lesson 01: decompose, recompose, and the two changes ΔM and ΔD.

Every check starts with a square matrix. There a wrong axis raises no shape error, so the wrong value itself can be
recognized and named; the matrices that are not square come after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dora_lesson.adapters import geometry
from dora_lesson.checks.runner import Attempt, Suspects, Wrong, blame, call, check, close, expect, expect_tensor, plain

Pair = tuple[Tensor, Tensor]


def _random(seed: int, d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@check(
    geometry.decompose,
    "m holds one length per row, the rows of V have length 1, and a row of zeros stays a row of zeros.",
)
def decompose(attempt: Attempt) -> None:
    """Check `my_decompose(W) -> (m, V)`."""
    for W in (_random(0, 4, 4), _random(1, 5, 3), _random(2, 3, 7), _random(3, 6, 2, torch.float64)):
        _examine_one_split(W, *_two_parts(call(attempt, W), W))
    W = _random(4, 4, 3, torch.float64)
    W[1] = 0.0
    m, V = _two_parts(call(attempt, W), W)
    expect(
        bool(torch.isfinite(V).all() and torch.isfinite(m).all()),
        "a row of zeros gives NaN or infinity, because 0 / 0 is not a number; "
        "look at the division, and give such a row a divisor other than 0.",
    )
    expect(
        m[1].item() == 0 and V[1].abs().max().item() == 0,
        "a row of zeros should give magnitude 0 and a row of zeros in V; look at what you do where m is 0.",
    )
    W = _random(5, 4, 3, torch.float64) * 3e-6
    m, V = _two_parts(call(attempt, W), W)
    expect(
        close(V, geometry.decompose(W)[1], 1e-2),
        "the directions of short rows do not have length 1; look for a constant that is added to the divisor or "
        "holds it up (clamp), and use it only where m is 0.",
    )
    _examine_one_split(W * 1e6, m * 1e6, geometry.decompose(W)[1])


def _two_parts(answer: Any, W: Tensor) -> Pair:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise Wrong("two tensors are expected, m and V; end with return m, V.")
    m, V = answer
    d_out, d_in = W.shape
    if isinstance(m, Tensor) and isinstance(V, Tensor) and m.ndim == 2 and V.ndim == 1:
        raise Wrong("the two answers are the wrong way round; end with return m, V.")
    if isinstance(m, Tensor) and m.numel() == 1:
        raise Wrong("m is the length of the whole matrix; give the norm a dim, so that each row has its own.")
    if isinstance(m, Tensor) and m.shape in ((d_in,), (1, d_in)) and d_in != d_out:
        raise Wrong(
            f"m has {d_in} values, one per column (dim=0), but W has {d_out} rows; take the norm over dim=1, "
            "which sums along a row."
        )
    advice = "one plain list of lengths: drop the extra dim with squeeze or [:, 0]."
    m = expect_tensor(m, (d_out,), W.dtype, "m", advice)
    V = expect_tensor(V, (d_out, d_in), W.dtype, "V", "it should have the shape of W.")
    return m, V


def _examine_one_split(W: Tensor, m: Tensor, V: Tensor) -> None:
    rows, columns = W.norm(dim=1), W.norm(dim=0)
    right_m, right_V = geometry.decompose(W)
    if not close(m, right_m):
        blame(
            m,
            [
                (columns, "m holds the lengths of the columns (dim=0); take the norm over dim=1, along each row."),
                (rows.square(), "m holds squared lengths; take the square root of the sum of squares."),
                (W.abs().sum(dim=1), "m holds sums of absolute values (the L1 norm); a length is the L2 norm."),
                (W.abs().amax(dim=1), "m holds the largest entries (the max norm); a length is the L2 norm."),
                (rows / W.shape[1] ** 0.5, "m is the root of the mean of squares; use their sum, not their mean."),
                (W.sum(dim=1), "m holds the sums of the rows; square the entries before you add them up."),
                (torch.ones_like(m), "m is 1 everywhere; take the lengths from W, before you divide."),
                (-right_m, "m is negative; a length is never below 0."),
            ],
        )
        raise Wrong(f"m[0] is {m[0].item():.6g}, but row 0 of W has length {right_m[0].item():.6g}; look at the norm.")
    if not close(V, right_V):
        suspects = [
            (W, "V is W itself; divide each row by its length."),
            (W / W.norm(), "V is W divided by the length of the whole matrix; divide each row by its own."),
            (W / columns, "V has columns of length 1 (dim=0); divide each row by its own length, m[i]."),
            (W / rows.square()[:, None], "the rows of V were divided by their squared lengths; divide once by m."),
            (W * rows[:, None], "the rows of V were multiplied by m; divide by it."),
            (-right_V, "V points the opposite way; a direction keeps the signs of W."),
        ]
        if W.shape[0] == W.shape[1]:
            luck = "V is W with column j divided by m[j]: on a square W a flat m broadcasts along the wrong axis, "
            suspects += [
                (W / rows, luck + "and no error warns you; write m[:, None], or keepdim=True in the norm."),
                (right_V.T, "V is transposed; keep the rows of W as rows."),
            ]
        blame(V, suspects)
        raise Wrong(
            f"row 0 of V has length {V[0].norm().item():.4f} or points elsewhere than row 0 of W; "
            "divide each row of W by its own length."
        )


@check(geometry.recompose, "row i is m[i] times row i of V, whatever the shape.")
def recompose(attempt: Attempt) -> None:
    """Check `my_recompose(m, V) -> W`."""
    for seed, (d_out, d_in) in enumerate([(4, 4), (5, 3), (3, 7), (6, 2)]):
        dtype = torch.float32 if d_out != 6 else torch.float64
        m, V = geometry.decompose(3 * _random(seed, d_out, d_in, dtype))
        if d_out == 5:
            m[1], V[1] = 0.0, 0.0
        if d_out == 3:  # any numbers will do: row i is m[i] times row i of V
            m[0], V = -m[0], 1.5 * V
        W = call(attempt, m, V)
        advice = "every row of V is stretched by one number, so W has the shape of V."
        W = expect_tensor(W, (d_out, d_in), dtype, "W", advice)
        if close(W, m[:, None] * V):
            continue
        expect(bool(torch.isfinite(W).all()), "a row of zeros gives NaN; multiply only, there is nothing to divide.")
        suspects = [
            (m[:, None] + V, "W is m plus V; magnitude and direction multiply, they do not add."),
            (V, "W is V itself; multiply each row by its magnitude."),
            (V / m[:, None], "the rows of V were divided by m; multiply by it."),
            (m.square()[:, None] * V, "the rows were multiplied by m twice; once is enough."),
            (m.abs()[:, None] * V, "the sign of m is lost; multiply by m itself."),
            (-m[:, None] * V, "W points the opposite way; multiply by m itself."),
            (m[:, None] * V.abs(), "the signs of V are lost; multiply V as it is."),
            (m[:, None] * geometry.decompose(V)[1], "V was brought to length 1 again; multiply it as it is."),
        ]
        if d_out == d_in:
            luck = "column j was multiplied by m[j]: on a square V a flat m broadcasts along the wrong axis, "
            suspects += [
                (m * V, luck + "and no error warns you; write m[:, None] * V."),
                (m + V, "W is m plus V; magnitude and direction multiply, they do not add."),
                ((m[:, None] * V).T, "W is transposed; keep the rows of V as rows."),
            ]
        blame(W, suspects)
        raise Wrong(
            f"row 0 of W begins with {W[0, 0].item():.6g}, but m[0] times V[0, 0] is {(m[0] * V[0, 0]).item():.6g}; "
            "multiply row i of V by m[i]."
        )


def _examine_change(
    attempt: Callable[[Tensor, Tensor], Any],
    reference: Callable[[Tensor, Tensor], Tensor],
    suspects: Callable[[Tensor, Tensor], Suspects],
) -> None:
    for seed, (d_out, d_in) in enumerate([(4, 4), (5, 3), (3, 7), (6, 2)]):
        dtype = torch.float32 if d_out != 6 else torch.float64
        W0, W1 = _random(seed, d_out, d_in, dtype), _random(seed + 10, d_out, d_in, dtype)
        W1 = W0 + 0.8 * W1
        W1[0] *= 0.3  # one row shrinks, so that a missing abs shows
        value = _one_number(call(attempt, W0, W1), W0, W1)
        if not close(value, reference(W0, W1)):
            blame(value, suspects(W0, W1))
            raise Wrong(
                f"for two {d_out} x {d_in} matrices you return {value.item():.6g}, but {reference(W0, W1).item():.6g} "
                "is right; check the norms (dim=1) and the mean over the rows."
            )
    if reference is geometry.magnitude_change:  # a row of zeros has a length, though no direction
        W0, W1 = _random(20, 4, 3), _random(21, 4, 3)
        W0[0], W0[1], W1[1] = 0.0, 0.0, 0.0
        value = _one_number(call(attempt, W0, W1), W0, W1)
        counts = "a row of zeros has length 0, and counts like any other; take the mean over all rows."
        expect(close(value, reference(W0, W1)), counts)


def _one_number(answer: Any, W0: Tensor, W1: Tensor) -> Tensor:
    if not isinstance(answer, Tensor) and isinstance(plain(answer), int | float):
        return torch.tensor(float(answer), dtype=W0.dtype)
    if isinstance(answer, Tensor) and answer.numel() > 1:
        raise Wrong(
            f"you return {answer.numel()} numbers of shape {tuple(answer.shape)}, but one is expected; "
            "end with the mean over the rows."
        )
    return expect_tensor(answer, (), W0.dtype, "the answer", "one number without dims, as .mean() gives it.")


def _suspect_magnitude_changes(W0: Tensor, W1: Tensor) -> Suspects:
    m0, m1 = W0.norm(dim=1), W1.norm(dim=1)
    change, columns = m1 - m0, W1.norm(dim=0) - W0.norm(dim=0)
    l1 = (W1.abs().sum(dim=1) - W0.abs().sum(dim=1)).abs().mean()
    squared = "it squares the changes; ΔM takes their absolute values."
    turned = "it measures the difference W1 - W0, which also sees a turn; norms first."
    signed = "lengths that grew and lengths that shrank cancel; take the absolute value of each row, then the mean."
    return [
        *((value, signed) for value in (change.mean(), -change.mean(), change.mean().abs())),
        (change.abs().sum(), "it is the sum over the rows; take the mean."),
        (columns.abs().mean(), "it compares the lengths of the columns (dim=0); take the norms over dim=1."),
        ((W1.norm() - W0.norm()).abs(), "it compares the lengths of the whole matrices; give the norm dim=1."),
        *((value, turned) for value in ((W1 - W0).norm(dim=1).mean(), (W1 - W0).norm())),
        ((W1 - W0).abs().mean(), "it averages over all entries; take the length of each row first (norm, dim=1)."),
        *((value, squared) for value in (change.square().mean(), change.square().mean().sqrt(), change.norm())),
        ((m1.square() - m0.square()).abs().mean(), "it compares squared lengths; take the square roots."),
        (l1, "it compares sums of absolute values (the L1 norm); a length is the L2 norm."),
        ((change.abs() / m0).mean(), "it is a relative change; ΔM stays in the units of the weight, with no division."),
        (change.abs().amax(), "it is the largest change; take the mean."),
        (change.abs().median(), "it is the median; take the mean."),
        (change.abs().sum() / W0.numel(), "it divides by the number of entries; divide by the number of rows."),
    ]


def _suspect_direction_changes(W0: Tensor, W1: Tensor) -> Suspects:
    cos = cosine_similarity(W0, W1, dim=1)
    dot, V0, V1 = (W0 * W1).sum(dim=1), geometry.decompose(W0)[1], geometry.decompose(W1)[1]
    columns = (1 - cosine_similarity(W0, W1, dim=0)).mean()
    flat = 1 - cosine_similarity(W0.flatten(), W1.flatten(), dim=0)
    entries = "it averages over all entries of V; sum along each row (dim=1) first."
    lengths = "it uses the dot product without dividing by both lengths; a cos needs both, or unit rows."
    return [
        (cos.mean(), "it is the mean cos, 1 where nothing turned; take 1 - cos."),
        (cos.mean() - 1, "its sign is wrong; take 1 - cos, not cos - 1."),
        ((1 - cos).sum(), "it is the sum over the rows; take the mean."),
        (columns, "it compares the columns (dim=0); a direction belongs to a row, so use dim=1."),
        (flat, "it compares the flattened matrices, as one arrow each; take cos row by row (dim=1), then the mean."),
        ((1 - cos.abs()).mean(), "it takes the absolute value of cos; a row that turned round counts 2, not 0."),
        ((1 - cos).abs().amax(), "it is the largest change; take the mean."),
        (cos.clamp(-1, 1).acos().mean(), "it is the mean angle in radians; ΔD takes 1 - cos."),
        (torch.rad2deg(cos.clamp(-1, 1).acos()).mean(), "it is the mean angle in degrees; ΔD takes 1 - cos."),
        ((V1 - V0).norm(dim=1).mean(), "it is the distance of the unit rows; 1 - cos is half its square."),
        ((V1 - V0).square().sum(dim=1).mean(), "it is the squared distance of the unit rows; 1 - cos is half of it."),
        *((value, entries) for value in ((V1 - V0).abs().mean(), 1 - (V0 * V1).mean())),
        *(((1 - dot / length).mean(), lengths) for length in (1, W0.norm(dim=1), W1.norm(dim=1))),
        ((1 - dot / (W0.norm() * W1.norm())).mean(), "it divides by the lengths of the whole matrices; use dim=1."),
    ]


@check(geometry.magnitude_change, "the mean over the rows of how far each length moved, up or down.")
def magnitude_change(attempt: Attempt) -> None:
    """Check `my_magnitude_change(W0, W1)`."""
    _examine_change(attempt, geometry.magnitude_change, _suspect_magnitude_changes)


@check(geometry.direction_change, "the mean over the rows of 1 - cos, 0 for a row that only grew.")
def direction_change(attempt: Attempt) -> None:
    """Check `my_direction_change(W0, W1)`."""
    _examine_change(attempt, geometry.direction_change, _suspect_direction_changes)
