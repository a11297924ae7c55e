"""Checks of lesson 03: the forward pass, the merged weight and the factored norm.

As in lesson 01 a square case comes first: there a slip of axis or of shape raises no error, so it can be named.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dora_lesson.checks.runner import Attempt, Suspects, Wrong, blame, call, check, close, expect, expect_tensor
from dora_lesson.memory.tracking import largest_temporary

# The course's own versions: plain, as the lesson writes them.


def _forward(x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, m: Tensor, lora_alpha: float) -> Tensor:
    V = W + lora_alpha / A.shape[0] * B @ A
    return F.linear(x, (m / V.norm(dim=1).detach())[:, None] * V, bias)


def _merged(W: Tensor, A: Tensor, B: Tensor, m: Tensor, scaling: float) -> Tensor:
    V = W + scaling * B @ A
    return (m / V.norm(dim=1))[:, None] * V


def _norm(W: Tensor, W_squared: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    crossed = ((W @ A.T) * B).sum(dim=1)
    update = (B @ (A @ A.T) * B).sum(dim=1)
    return (W_squared + 2 * scaling * crossed + scaling**2 * update).sqrt()


# The cases. Nothing in them is 0 or 1, and each has a scaling of its own, so that no term can be left out unseen. Some
# rows are shorter than 1, and one magnitude is negative, as training can make it.


def _case(d_out: int, d_in: int, r: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    W, A, B = (torch.randn(shape, dtype=torch.float64) for shape in [(d_out, d_in), (r, d_in), (d_out, r)])
    W[0], B[0] = W[0] / 50, B[0] / 50
    m = W.norm(dim=1) * (0.5 + torch.rand(d_out).double())
    m[-1] = -m[-1]
    return W, torch.randn(d_out, dtype=torch.float64), A, B, m


def _length(T: Tensor) -> Tensor:
    return T.norm(dim=1, keepdim=True)


@check(_forward, "outputs and the gradients of A, B and m are those of a DoRA layer with a detached norm.")
def dora_forward(attempt: Attempt) -> None:
    """Check `my_dora_forward(x, W, bias, A, B, m, lora_alpha) -> y`."""
    for (d_out, d_in, r), lora_alpha, leading in [
        ((5, 5, 2), 9.0, (5,)),
        ((5, 3, 2), 7.0, (6,)),
        ((3, 6, 3), 10, (2, 4)),
    ]:
        W, bias, A, B, m = _case(d_out, d_in, r, seed=d_out)
        x, dy = torch.randn(*leading, d_in).double(), torch.randn(*leading, d_out).double()
        for trained in (A, B, m, x):  # x comes from layers below, which learn through it
            trained.requires_grad_()
        y = call(attempt, x, W, bias, A, B, m, lora_alpha)
        y = expect_tensor(y, (*leading, d_out), x.dtype, "y", "x may have any number of leading dimensions.")
        expected = _forward(x, W, bias, A, B, m, lora_alpha)
        with torch.no_grad():
            if not close(y, expected):
                blame(y, _suspect_forwards(x, W, bias, A, B, m, lora_alpha))
        _expect_value(y, expected, "y", "print V, its norm and m / norm for a small case, one by one.")
        _examine_gradients(y, expected, dy, {"A": A, "B": B, "m": m, "x": x}, W, lora_alpha / r)


def _suspect_weights(W: Tensor, A: Tensor, B: Tensor, m: Tensor, s: float) -> Suspects:
    """Wrong weights that learners form, in the forward pass and in a merge alike."""
    row, BA, V = m[:, None], s * B @ A, W + s * B @ A

    def dora(V: Tensor) -> Callable[[], Tensor]:
        return lambda: row * V / _length(V)

    return [
        (lambda: row * V / V.norm(dim=0), _AXIS),
        (lambda: m * V / V.norm(dim=0), _AXIS),
        (lambda: row * V / V.norm(dim=1), _KEEPDIM),
        (lambda: m * V / _length(V), _KEEPDIM),
        (lambda: (m / V.norm(dim=1)) * V, _KEEPDIM),
        (dora(W + B @ A), "B A is not scaled; the update is scaling times B @ A, with scaling = lora_alpha / r."),
        (dora(W + 2.0 * B @ A), "the scaling is 2 whatever comes in, which is a variable of the lesson's own."),
        (lambda: dora(W + s * (B @ A).T)(), "B A is transposed; B @ A has the shape of W."),
        (lambda: V / _length(V), "the rows of the weight have length 1: m is missing; multiply row i by m[i]."),
        (lambda: V, "this is LoRA: W + scaling * B @ A, without its norm and without m; divide by the norm of V."),
        (lambda: row * V, "m multiplies V itself; divide V by the norm of its rows first."),
        (lambda: row * V / _length(W), "V is divided by the norm of W; take the norm of V, of W plus the update."),
        (lambda: row * V / V.norm(), "V is divided by one norm for the whole matrix; take one norm per row, dim=1."),
        (lambda: row * V / _length(V).square(), "V is divided by its squared norm; take the square root."),
        (lambda: row * V / _length(V).clamp(min=1), "rows shorter than 1 are not divided; look for a clamp."),
        (lambda: row.abs() * V / _length(V), "the sign of m is lost; multiply by m itself."),
        (lambda: _length(W) * V / _length(V), "m is taken from W again; use the m that comes in, which has moved."),
        (lambda: row * W / _length(W), "the update is missing; V is W + scaling * B @ A."),
        (lambda: row * W / _length(V), "the norm is that of V, but W stands above it; V stands there too."),
        (lambda: row / _length(V) * W + BA, "LoRA's part is not scaled along; m / norm multiplies all of V."),
        (lambda: W + row * V / _length(V), "the weight is added to W; it takes W's place."),
        (lambda: W + row * BA / _length(BA), _UPDATE_ALONE),
        (lambda: W + BA / _length(BA), _UPDATE_ALONE),
        (lambda: row * (W / _length(W) + BA / _length(BA)), _UPDATE_ALONE),
    ]


def _suspect_forwards(
    x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, m: Tensor, lora_alpha: float
) -> Suspects:
    r, s, row = A.shape[0], lora_alpha / A.shape[0], m[:, None]
    V = W + s * B @ A

    def scaled(scaling: float) -> Callable[[], Tensor]:
        other = W + scaling * B @ A
        return lambda: F.linear(x, row * other / _length(other), bias)

    def linear(weight: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: F.linear(x, weight(), bias)

    return [
        (scaled(lora_alpha), "B A is scaled by lora_alpha itself; the scaling is lora_alpha / r."),
        *[(linear(weight), message) for weight, message in _suspect_weights(W, A, B, m, s) if callable(weight)],
        *((scaled(lora_alpha / n), f"the rank is {n} whatever comes in; take A.shape[0].") for n in {2, 4, 8} - {r}),
        (scaled(lora_alpha // r), "the scaling is rounded down; use / and not //."),
        (scaled(lora_alpha / r**0.5), "lora_alpha is divided by the root of the rank, as in rsLoRA; divide by it."),
        (scaled(r / lora_alpha), "the scaling is upside down; it is lora_alpha / r."),
        *(
            (scaled(lora_alpha / n), "the rank is taken from the wrong side; it is A.shape[0].")
            for n in {*W.shape} - {r}
        ),
        (
            lambda: (F.linear(x, V) + bias) * (m / V.norm(dim=1)),
            "the bias is scaled along with x Vᵀ; m belongs to the weight alone, so add the bias last.",
        ),
        (lambda: F.linear(x, row * V / _length(V)), "the bias is missing; add it to the result."),
        (
            lambda: m * F.linear(x, V) / F.linear(x, V).norm(dim=-1, keepdim=True) + bias,
            "the output is normalized, not the weight; take the norm of the rows of V before x comes in.",
        ),
        (
            lambda: x @ (row * V / _length(V)) + bias,
            "x is multiplied by the weight, not by its transpose; F.linear(x, weight) does what nn.Linear does.",
        ),
    ]


_AXIS = "the norm runs along dim=0, one per input; DoRA takes one per output: look at the dim of your norm, dim=1."
_KEEPDIM = (
    "a vector of one number per row was spread over the columns, and broadcast by luck since W is square here; "
    "use keepdim=True or [:, None]."
)
_UPDATE_ALONE = "the update B A is normalized by itself; take the norm of W plus the update."


def _examine_gradients(
    y: Tensor, expected: Tensor, dy: Tensor, trained: dict[str, Tensor], W: Tensor, scaling: float
) -> None:
    expect(
        y.requires_grad,
        "y does not carry a gradient; look for torch.no_grad(), .data or .detach() around more than the norm.",
    )
    inputs = list(trained.values())
    got = torch.autograd.grad(y, inputs, dy, allow_unused=True)
    right = torch.autograd.grad(expected, inputs, dy)
    V = W + scaling * trained["B"] @ trained["A"]
    attached = torch.autograd.grad(F.linear(trained["x"], trained["m"][:, None] * F.normalize(V, dim=1)), inputs, dy)
    for name, g, r, full in zip(trained, got, right, attached, strict=True):
        expect(
            g is not None,
            f"no gradient reaches {name}; look for a .detach(), .data or no_grad around more than the norm.",
        )
        expect(
            name in ("m", "x") or not close(g, full),
            "y is right, but gradients flow through the norm too; detach the norm (paper, section 4.3).",
        )
        _expect_value(g, r, f"the gradient of {name}", "detach the norm, and nothing else.")


def _expect_value(value: Tensor, expected: Tensor, what: str, advice: str) -> None:
    expect(bool(value.isfinite().all()), f"{what} is not finite; look for a division by 0 and a root of less than 0.")
    if not close(value, expected, 1e-7):
        off = (value - expected).abs().max().item()
        raise Wrong(f"{what} is off by up to {off:.2g} and matches no slip that this check knows; {advice}")


@check(_merged, "a plain linear layer with this weight is the DoRA layer.")
def merged_weight(attempt: Attempt) -> None:
    """Check `my_merged_weight(W, A, B, m, scaling) -> W_merged`."""
    for (d_out, d_in, r), scaling in [((4, 4, 2), 2.5), ((5, 3, 2), 0.5), ((3, 6, 3), 4)]:
        W, _, A, B, m = _case(d_out, d_in, r, seed=10 + d_out)
        _examine_one_merge(attempt, W, A, B, m, scaling)


def _examine_one_merge(attempt: Attempt, W: Tensor, A: Tensor, B: Tensor, m: Tensor, scaling: float) -> None:
    merged = call(attempt, W, A, B, m, scaling)
    merged = expect_tensor(merged, tuple(W.shape), W.dtype, "the merged weight", "it takes W's place.")
    right = _merged(W, A, B, m, scaling)
    if not close(merged, right):
        blame(merged, _suspect_weights(W, A, B, m, scaling))
    _expect_value(merged, right, "the merged weight", "compare your V with W + scaling * BA.")


@check(_norm, "the norm of every row of V, and no matrix of W's size was made.")
def factored_norm(attempt: Attempt) -> None:
    """Check `my_factored_norm(W, W_squared, A, B, scaling) -> norm`."""
    for (d_out, d_in, r), scaling in [((6, 6, 2), 0.3), ((48, 40, 3), 0.7)]:
        W, _, A, B, _ = _case(d_out, d_in, r, seed=20 + d_out)
        _examine_one_norm(attempt, W, W.square().sum(dim=1), A, B, scaling)
    W, _, A, B, _ = _case(256, 192, 3, seed=25)
    given = W, W.square().sum(dim=1), A, B, 0.3
    call(attempt, *given)  # what a first call sets up is not counted
    tracemalloc.start()  # sees arrays of NumPy, which largest_temporary does not, and Python's objects
    try:
        made = largest_temporary(attempt, *given)
        in_numpy = tracemalloc.get_traced_memory()[1] // W.element_size()
    finally:
        tracemalloc.stop()
    expect(
        made < W.numel() // 4 and in_numpy < W.numel(),
        f"the norm is right, but on the way {max(made, in_numpy):,} numbers were made at once, where W has "
        f"{W.numel():,}; W meets A.T alone, (d_out, r), so that neither B @ A nor W.square() is needed.",
    )


def _examine_one_norm(attempt: Attempt, W: Tensor, W2: Tensor, A: Tensor, B: Tensor, s: float) -> None:
    norm = call(attempt, W, W2, A, B, s)
    norm = expect_tensor(
        norm, tuple(W2.shape), W.dtype, "the norm", "one number per row; look at your sums over dim=1."
    )
    root, crossed, update = torch.sqrt, ((W @ A.T) * B).sum(dim=1), (B @ (A @ A.T) * B).sum(dim=1)
    right = W2 + 2 * s * crossed + s * s * update
    slips: Suspects = [
        (lambda: right, "this is the squared norm; take its square root at the end."),
        (lambda: root(W2 + s * crossed + s * s * update), "the cross term counts once; it counts twice."),
        (lambda: root(W2 + 2 * s * crossed + s * update), "the last term carries scaling once; it is squared."),
        (lambda: root(W2 + 2 * crossed + update), "scaling is missing; it stands in the last two terms."),
        (lambda: root(W2 + s * s * update), "the cross term 2 * scaling * ⟨W Aᵀ, B⟩ is missing."),
        (lambda: root((W2 + 2 * s * crossed).abs()), "the last term, the update's own length, is missing."),
        (lambda: root(W2), "this is the norm of W; the update's two terms are missing."),
        (lambda: root(W2**2 + 2 * s * crossed + s * s * update), "W_squared holds ‖W‖² and is squared again."),
        (lambda: (W + s * B @ A).norm(dim=0), "this is the norm along dim=0, one per input; take one per output."),
    ]
    blame(norm, slips)
    _expect_value(norm, root(right), "the norm", "print the three terms, each of shape (d_out,), one by one.")
