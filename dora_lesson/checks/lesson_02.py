"""Checks of lesson 02: LoRA's forward pass, its parameter count, and how far a run moved its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dora_lesson.adapters.geometry import direction_change, magnitude_change
from dora_lesson.checks.runner import (
    Attempt,
    Suspects,
    Wrong,
    blame,
    call,
    check,
    close,
    expect,
    expect_number,
    expect_tensor,
    kind,
)
from dora_lesson.memory.tracking import largest_temporary

_BY_A_SIDE = "lora_alpha is divided by d_in or d_out; divide by r, the rows of A."

# The course's own versions.


def _forward(x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, lora_alpha: float) -> Tensor:
    return F.linear(x, W, bias) + lora_alpha / A.shape[0] * (x @ A.T) @ B.T


def _count(shapes: list[tuple[int, int]], r: int) -> int:
    return sum(r * (d_out + d_in) for d_out, d_in in shapes)


def _movement(start: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    return {
        name: (magnitude_change(start[name], W).item(), direction_change(start[name], W).item())
        for name, W in now.items()
    }


@check(_forward, "the frozen layer plus the scaled low-rank update.")
def lora_forward(attempt: Attempt) -> None:
    """Check `my_lora_forward(x, W, bias, A, B, lora_alpha) -> y`."""
    # Each with a scaling of its own, or one could write the number down.
    for (d_out, d_in, r), alpha, leading in [
        ((4, 4, 3), 15.0, (4,)),
        ((5, 3, 2), 5.0, (6,)),
        ((3, 6, 2), 3, (2, 4)),
        ((3, 6, 2), 7, ()),
    ]:
        _examine_one_forward(attempt, d_out, d_in, r, alpha, leading)
    _examine_its_gradients(attempt)
    _examine_its_memory(attempt)


def _examine_one_forward(
    attempt: Attempt, d_out: int, d_in: int, r: int, alpha: float, leading: tuple[int, ...]
) -> None:
    torch.manual_seed(d_out)
    W, A, B = (torch.randn(shape).double() for shape in [(d_out, d_in), (r, d_in), (d_out, r)])
    bias, x = torch.randn(d_out).double(), torch.randn(*leading, d_in).double()
    y = call(attempt, x, W, bias, A, B, alpha)
    y = expect_tensor(y, (*leading, d_out), x.dtype, "y", "x may have any number of leading dimensions.")
    right = _forward(x, W, bias, A, B, alpha)
    if close(y, right):
        return
    base, update = F.linear(x, W, bias), (x @ A.T) @ B.T
    slips: Suspects = [
        (lambda: base - alpha / r * update, "the update is subtracted; add it."),
        (lambda: alpha / r * (base + update), "the frozen layer is scaled as well; scale the update alone."),
        (lambda: base + alpha // r * update, "// rounds the scaling down; divide with /."),
        (lambda: base + r / alpha * update, "the scaling is upside down; it is lora_alpha / r."),
        (lambda: base + alpha / r**0.5 * update, "the scaling has the root of r, as in rsLoRA; divide by r itself."),
        *((base + alpha / side * update, _BY_A_SIDE) for side in (d_in, d_out)),
        (lambda: base + 2 * update, "the scaling is the number 2; compute it from lora_alpha and the rows of A."),
        (lambda: base + alpha * update, "the update is scaled by lora_alpha itself; scaling is lora_alpha / r."),
        (lambda: base + update, "the update is not scaled; multiply it by lora_alpha / r."),
        (lambda: base, "this is the frozen layer alone; add the update."),
        (lambda: alpha / r * update, "this is the update alone; add what the frozen layer gives."),
        (lambda: x @ W.T + alpha / r * update, "the bias is missing; F.linear(x, W, bias) adds it."),
        (lambda: base + alpha / r * update + bias, "the bias is added twice; the update has none."),
        (lambda: x @ W + bias + alpha / r * update, "x is multiplied by W; nn.Linear multiplies by W.T."),
        (lambda: base + alpha / r * (x @ A) @ B, "A and B are used untransposed; shapes here: A (r, d_in)."),
        (lambda: base + alpha / r * (x @ B) @ A, "A and B have changed places; x meets A first."),
        (lambda: base + alpha / r * (x @ B.T) @ A.T, "A and B have changed places; x meets A first."),
    ]
    blame(y, slips)
    raise Wrong("y matches no slip that this check knows; print x @ A.T, then its product with B.T, and scale.")


def _examine_its_gradients(attempt: Attempt) -> None:
    torch.manual_seed(0)
    W, A, B, x = (torch.randn(shape).double() for shape in [(6, 5), (2, 5), (6, 2), (3, 5)])
    leaves = [tensor.requires_grad_() for tensor in (x, A, B)]
    bias, alpha = torch.zeros(6).double(), 4.0
    y = call(attempt, x, W, bias, A, B, alpha)
    rights = torch.autograd.grad(_forward(x, W, bias, A, B, alpha).square().sum(), leaves)
    given = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) if y.requires_grad else [None] * 3
    for name, mine, right in zip("xAB", given, rights, strict=True):
        reaches = mine is not None and close(mine, right)
        expect(reaches, f"the right gradient does not reach {name}; leave out detach and no_grad.")


def _examine_its_memory(attempt: Attempt) -> None:
    W, A, B, x = (torch.randn(shape) for shape in [(64, 48), (2, 48), (64, 2), (3, 48)])
    given = x, W, torch.zeros(64), A, B, 4.0
    call(attempt, *given)
    largest = largest_temporary(lambda: attempt(*given))
    advice = "take x through A first, then through B, and through W with F.linear(x, W, bias)."
    expect(largest < 64 * 48, f"it forms a matrix of the size of W; {advice}")


@check(_count, "r (d_in + d_out) for each adapted layer.")
def lora_count(attempt: Attempt) -> None:
    """Check `my_lora_count(shapes, r) -> int`."""
    for shapes, r in [([(5, 3)], 2), ([(5, 3), (7, 11), (3, 2)], 4), ([(5, 3), (5, 3), (7, 11)], 4)]:
        # A list of its own for the attempt, which may empty it.
        count, right = expect_number(call(attempt, list(shapes), r), "the count"), _count(shapes, r)
        slips = [
            (sum(d_out * d_in for d_out, d_in in shapes), "this counts W; the trained parts are A and B."),
            (sum(r * d_in for _, d_in in shapes), "this counts A alone; B has d_out times r numbers more."),
            (sum(r * d_out for d_out, _ in shapes), "this counts B alone; A has r times d_in numbers more."),
            (sum(r * (d_out + d_in) + d_out for d_out, d_in in shapes), "this is DoRA's count; LoRA has no magnitude."),
            (sum(d_out + d_in for d_out, d_in in shapes), "r is missing; A has r rows and B has r columns."),
            (r * sum(shapes[0]), "only the first layer is counted; add up all of them."),
            (_count([*set(shapes)], r), "layers of one shape are counted once; a set drops them, so keep the list."),
            (sum(r * d_out * d_in for d_out, d_in in shapes), "d_in and d_out are multiplied; A and B are separate."),
        ]
        for wrong, message in slips:
            expect(count == right or count != wrong, message)
        expect(count == right, f"for shapes {shapes} and r={r} you give {count}; A is (r, d_in), B is (d_out, r).")


@check(_movement, "one pair (ΔM, ΔD) for each layer, over its rows.")
def movement(attempt: Attempt) -> None:
    """Check `my_movement(start, now) -> {name: (ΔM, ΔD)}`."""
    torch.manual_seed(2)
    start = {"a": torch.randn(6, 4).double(), "b": 3 * torch.randn(6, 4).double()}
    now = {name: W * torch.linspace(0.5, 1.8, len(W))[:, None] + 0.2 * torch.randn_like(W) for name, W in start.items()}
    now = dict(reversed(now.items()))  # a state dict need not have the other's order
    given = dict(start), dict(now)
    answer = call(attempt, *given)
    for own, theirs, name in zip((start, now), given, ("start", "now"), strict=True):
        same = own.keys() == theirs.keys() and all(theirs[key] is own[key] for key in own)
        expect(same, f"it changed the dict {name}, which the lesson still needs; build a new dict.")
    expect(isinstance(answer, dict), f"your function returns {kind(answer)}; return a dict by layer name.")
    expect(set(answer) == set(start), f"the names are {sorted(map(str, answer))}; give one for each of {[*start]}.")
    for name, pair in answer.items():
        expect(isinstance(pair, tuple | list) and len(pair) == 2, f"the entry of {name!r} is not a pair (ΔM, ΔD).")
        M, D = (expect_number(value, f"{what} of {name!r}") for value, what in zip(pair, ("ΔM", "ΔD"), strict=True))
        right = _movement(start, now)[name]
        signed = (now[name].norm(dim=1) - start[name].norm(dim=1)).mean().item()
        columns = _movement({name: start[name].T}, {name: now[name].T})[name]
        cos = 1 - right[1]
        # By order, not by name: the pair is called by the name that the layer has in `now`, or in `start`.
        by_order = [
            ([*start.values()][[*now].index(name)], now[name]),
            (start[name], [*now.values()][[*start].index(name)]),
        ]
        unpaired = [_movement({name: W0}, {name: W1})[name] for W0, W1 in by_order]
        rounded = [(round(right[0], digits), round(right[1], digits)) for digits in (3, 4)]
        for wrong, message in [
            *((pair, "layers are paired by the order of the two dicts; pair them by name.") for pair in unpaired),
            ((right[1], right[0]), "the pair is the wrong way round; ΔM first, then ΔD."),
            ((signed, right[1]), "ΔM lets growth and shrinking cancel; take the absolute value before the mean."),
            (columns, "the norms run over dim=0; take rows, dim=1."),
            ((right[0], cos), "the second number is the cosine; ΔD is 1 minus it."),
            *((pair, "the numbers are rounded; return them as they are.") for pair in rounded),
        ]:
            expect(not (_near(M, wrong[0]) and _near(D, wrong[1])), message)
        expect(_near(M, right[0]), f"ΔM of {name!r} is {M:.4g}, {right[0]:.4g} is expected; compare row lengths.")
        expect(_near(D, right[1]), f"ΔD of {name!r} is {D:.4g}, {right[1]:.4g} is expected; compare row directions.")


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 2e-5 * max(1e-3, abs(b))  # taken in float32
