"""Lesson 03's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dora_lesson import checks

Attempt = Callable[..., Any]


def with_weight(weight: Callable[..., Tensor]) -> Attempt:
    """A forward pass from a formula for the weight in terms of W, BA (scaled), m."""

    def my_dora_forward(
        x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, m: Tensor, lora_alpha: float
    ) -> Tensor:
        return F.linear(x, weight(W, lora_alpha / A.shape[0] * B @ A, m), bias)

    return my_dora_forward


def norm(T: Tensor) -> Tensor:
    return T.norm(dim=1, keepdim=True)


# Right answers.


def as_in_the_paper(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.shape[0] * B @ A
    return F.linear(x, m[:, None] * V / torch.linalg.norm(V, dim=1, keepdim=True).detach(), bias)


def two_small_products(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    r, _ = A.shape
    scaling = lora_alpha / r
    with torch.no_grad():
        length = (W + scaling * B @ A).pow(2).sum(-1).sqrt()
    return (x @ W.T + scaling * (x @ A.T) @ B.T) * (m / length) + bias


def as_peft_writes_it(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    scaling = lora_alpha / len(A)
    ratio = m / (W + scaling * B @ A).detach().norm(dim=1)
    base = x @ W.T
    return base + bias + (ratio - 1) * base + ratio * F.linear(F.linear(x, A), B) * scaling


def with_einsum(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.size(0) * torch.einsum("or,ri->oi", B, A)
    weight = torch.einsum("o,oi->oi", m / V.detach().norm(p=2, dim=-1), V)
    return torch.einsum("...i,oi->...o", x, weight) + bias


def row_by_row(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.shape[0] * (B @ A)
    rows = [m[i] * V[i] / V[i].detach().norm() for i in range(V.shape[0])]
    return x @ torch.stack(rows).T + bias


def alpha_in_front_of_B(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = torch.addmm(W, B * lora_alpha / A.shape[0], A)
    return torch.nn.functional.linear(x, V * (m / V.norm(dim=1).detach()).unsqueeze(1), bias)


RIGHT_FORWARDS = [
    as_in_the_paper,
    two_small_products,
    as_peft_writes_it,
    with_einsum,
    row_by_row,
    alpha_in_front_of_B,
    with_weight(lambda W, BA, m: m.view(-1, 1) * (W + BA) / (W + BA).detach().norm(dim=1).view(-1, 1)),
]


def merged_by_formula(W, A, B, m, scaling):  # type: ignore[no-untyped-def]
    V = W + scaling * B @ A
    return m[:, None] * V / V.norm(dim=1, keepdim=True)


def merged_by_normalize(W, A, B, m, scaling):  # type: ignore[no-untyped-def]
    return torch.diag(m) @ F.normalize(W + scaling * (B @ A), dim=1)


def merged_from_a_clone(W, A, B, m, scaling):  # type: ignore[no-untyped-def]
    V = W.clone()
    V += scaling * B @ A
    V *= (m / V.norm(dim=1)).unsqueeze(-1)
    return V


def norm_by_sums(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    WA = W @ A.T
    return (W_squared + 2 * scaling * (WA * B).sum(1) + scaling**2 * ((B @ (A @ A.T)) * B).sum(1)).sqrt()


def norm_by_einsum(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    crossed = torch.einsum("or,or->o", F.linear(W, A), B)
    update = torch.einsum("or,rs,os->o", B, A @ A.T, B)
    return torch.sqrt(W_squared + 2 * scaling * crossed + scaling * scaling * update)


def norm_by_qr(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    R = torch.linalg.qr(A.T).R
    return (W_squared + 2 * scaling * (W @ A.T * B).sum(1) + (scaling * B @ R.T).norm(dim=1) ** 2) ** 0.5


def norm_by_loop(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    WA, G, found = W @ A.T, A @ A.T, []
    for i in range(len(W)):
        found.append((W_squared[i] + 2 * scaling * WA[i] @ B[i] + scaling**2 * B[i] @ G @ B[i]).sqrt())
    return torch.stack(found)


RIGHT = (
    [("dora_forward", f) for f in RIGHT_FORWARDS]
    + [("merged_weight", f) for f in (merged_by_formula, merged_by_normalize, merged_from_a_clone)]
    + [("factored_norm", f) for f in (norm_by_loop, norm_by_sums, norm_by_einsum, norm_by_qr)]
)


@pytest.mark.parametrize(("name", "attempt"), RIGHT, ids=lambda v: getattr(v, "__name__", v))
def test_right_answers_are_accepted(name: str, attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    returned = getattr(checks, name)(attempt)
    out = capsys.readouterr().out
    assert out.startswith("correct: ") and out.count("\n") == 1, out
    assert returned is attempt


# Wrong answers, each with a word of the message that it must meet.


def bias_scaled(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.shape[0] * B @ A
    return (x @ V.T + bias) * m / V.norm(dim=1).detach()


def bias_forgotten(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, None, A, B, m, lora_alpha)


def alpha_not_divided(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, A, B, m, lora_alpha * A.shape[0])


def alpha_by_the_wrong_length(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, A, B, m, lora_alpha * A.shape[0] / A.shape[1])


def output_normalised(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    y = x @ (W + lora_alpha / A.shape[0] * B @ A).T
    return m * y / y.norm(dim=-1, keepdim=True) + bias


def base_changed(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    W += (lora_alpha / A.shape[0] * B @ A).detach()
    return F.linear(x, m[:, None] * W / norm(W), bias)


def everything_without_gradient(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return as_in_the_paper(x, W, bias, A, B, m, lora_alpha)


def update_detached(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = (W + lora_alpha / A.shape[0] * B @ A).detach()
    return F.linear(x, m[:, None] * V / norm(V), bias)


def magnitude_detached(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, A, B, m.data, lora_alpha)


def product_the_wrong_way_round(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, B, A, m, lora_alpha)


def transposed_by_luck(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.shape[0] * B @ A
    return x @ (m[:, None] * V / norm(V).detach()) + bias


def in_float32(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, A, B, m, lora_alpha).float()


def a_layer_instead_of_an_output(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return torch.nn.Linear(W.shape[1], W.shape[0])


def only_matrices(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x.flatten(0, -2), W, bias, A, B, m, lora_alpha)


def step_0_only(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return F.linear(x, W, bias)


def scaled_by(scaling: Callable[..., float]) -> Attempt:
    def my_dora_forward(
        x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, m: Tensor, lora_alpha: float
    ) -> Tensor:
        return as_in_the_paper(x, W, bias, A, B, m, scaling(lora_alpha, A, B) * A.shape[0])

    return my_dora_forward


def transposed_update(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    V = W + lora_alpha / A.shape[0] * (B @ A).T
    return F.linear(x, m[:, None] * V / norm(V).detach(), bias)


def input_detached(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x.detach(), W, bias, A, B, m, lora_alpha)


def base_product_without_gradient(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    scaling = lora_alpha / len(A)
    with torch.no_grad():
        base, length = x @ W.T, (W + scaling * B @ A).norm(dim=1)
    return m / length * (base + scaling * (x @ A.T) @ B.T) + bias


def scaling_of_the_first_case(x, W, bias, A, B, m, lora_alpha):  # type: ignore[no-untyped-def]
    return as_in_the_paper(x, W, bias, A, B, m, 4.5 * A.shape[0])


WRONG_FORWARDS: list[tuple[Attempt, str]] = [
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / (W + BA).norm(dim=0).detach()), "dim=0"),
    (with_weight(lambda W, BA, m: m * (W + BA) / (W + BA).norm(dim=0).detach()), "dim=0"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / (W + BA).norm(dim=1).detach()), "keepdim"),
    (with_weight(lambda W, BA, m: m * (W + BA) / norm(W + BA).detach()), "keepdim"),
    (with_weight(lambda W, BA, m: m[:, None] * F.normalize(W + BA, dim=1)), "detach the norm"),
    (with_weight(lambda W, BA, m: (W + BA) / norm(W + BA).detach()), "m is missing"),
    (with_weight(lambda W, BA, m: W + BA), "this is LoRA"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA)), "norm of its rows first"),
    (with_weight(lambda W, BA, m: W + m[:, None] * BA / norm(BA).detach()), "W plus the update"),
    (with_weight(lambda W, BA, m: W + BA / norm(BA).detach()), "W plus the update"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / norm(W)), "norm of W"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / (W + BA).norm().detach()), "whole matrix"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / norm(W + BA).detach() ** 2), "square root"),
    (alpha_not_divided, "lora_alpha / r"),
    (alpha_by_the_wrong_length, "wrong side"),
    (scaled_by(lambda alpha, A, B: alpha / len(B)), "wrong side"),
    (scaled_by(lambda alpha, A, B: 2.0), "scaling is 2 whatever"),
    (scaled_by(lambda alpha, A, B: alpha / 8), "rank is 8 whatever"),
    (scaled_by(lambda alpha, A, B: alpha / 2), "rank is 2 whatever"),
    (scaled_by(lambda alpha, A, B: alpha // len(A)), "rounded down"),
    (scaled_by(lambda alpha, A, B: alpha / len(A) ** 0.5), "rsLoRA"),
    (scaled_by(lambda alpha, A, B: len(A) / alpha), "upside down"),
    (with_weight(lambda W, BA, m: m.abs()[:, None] * (W + BA) / norm(W + BA).detach()), "sign of m"),
    (with_weight(lambda W, BA, m: m[:, None] * (W + BA) / norm(W + BA).detach().clamp(min=1)), "clamp"),
    (with_weight(lambda W, BA, m: norm(W) * (W + BA) / norm(W + BA).detach() + 0 * m[:, None]), "taken from W again"),
    (with_weight(lambda W, BA, m: m[:, None] / norm(W + BA).detach() * W + BA), "LoRA's part is not scaled"),
    (transposed_update, "B A is transposed"),
    (input_detached, "no gradient reaches x"),
    (base_product_without_gradient, "gradient of x"),
    (scaling_of_the_first_case, "matches no slip"),
    (bias_scaled, "bias is scaled"),
    (bias_forgotten, "bias is missing"),
    (output_normalised, "output is normalized"),
    (lambda x, W, b, A, *more: as_in_the_paper(x, W, b, A.requires_grad_(False), *more), "argument number 4 in place"),
    (base_changed, "changed its argument number 2 in place"),
    (everything_without_gradient, "does not carry a gradient"),
    (update_detached, "no gradient reaches A"),
    (magnitude_detached, "no gradient reaches m"),
    (product_the_wrong_way_round, "raised RuntimeError"),
    (transposed_by_luck, "transpose"),
    (in_float32, "dtype torch.float32"),
    (a_layer_instead_of_an_output, "a tensor is expected"),
    (only_matrices, "leading dimensions"),
    (step_0_only, "matches no slip"),
]


def merged_with(weight: Callable[..., Tensor]) -> Attempt:
    def my_merged_weight(W: Tensor, A: Tensor, B: Tensor, m: Tensor, scaling: float) -> Tensor:
        return weight(W, scaling * B @ A, m)

    return my_merged_weight


def merged_in_place(W, A, B, m, scaling):  # type: ignore[no-untyped-def]
    W += scaling * B @ A
    return m[:, None] * W / norm(W)


def merged_without_scaling(W, A, B, m, scaling):  # type: ignore[no-untyped-def]
    return merged_by_formula(W, A, B, m, 1.0)


WRONG_MERGES: list[tuple[Attempt, str]] = [
    (merged_with(lambda W, BA, m: W + BA), "this is LoRA"),
    (merged_without_scaling, "not scaled"),
    (merged_with(lambda W, BA, m: m[:, None] * (W + BA) / (W + BA).norm(dim=0)), "dim=0"),
    (merged_with(lambda W, BA, m: m * (W + BA) / norm(W + BA)), "keepdim"),
    (merged_with(lambda W, BA, m: m / (W + BA).norm(dim=1) * (W + BA)), "keepdim"),
    (merged_with(lambda W, BA, m: m[:, None] * (W + BA)), "norm of its rows first"),
    (merged_with(lambda W, BA, m: F.normalize(W + BA, dim=1)), "m is missing"),
    (merged_with(lambda W, BA, m: m[:, None] * (W + BA) / norm(W)), "norm of W"),
    (merged_with(lambda W, BA, m: m[:, None] * F.normalize(W, dim=1)), "update is missing"),
    (merged_with(lambda W, BA, m: m[:, None] * W / norm(W + BA)), "W stands above"),
    (merged_with(lambda W, BA, m: W + m[:, None] * F.normalize(W + BA, dim=1)), "added to W"),
    (merged_with(lambda W, BA, m: (m[:, None] * F.normalize(W + BA, dim=1)).T.contiguous()), "matches no slip|shape"),
    (merged_with(lambda W, BA, m: m[:, None] * (W + BA) / (W + BA).norm()), "whole matrix"),
    (merged_with(lambda W, BA, m: m[:, None] * (W + BA) / norm(W + BA) ** 2), "square root"),
    (merged_with(lambda W, BA, m: W + m[:, None] * BA / norm(BA)), "W plus the update"),
    (merged_with(lambda W, BA, m: m.abs()[:, None] * (W + BA) / norm(W + BA)), "sign of m"),
    (merged_in_place, "in place"),
    (lambda W, A, B, m, scaling: merged_by_formula(W, A, B, m, 2.5), "matches no slip"),
]


def norm_with(formula: Callable[..., Tensor]) -> Attempt:
    """From a formula in ‖W‖², ⟨WAᵀ, B⟩, ⟨B(AAᵀ), B⟩ and s."""

    def my_factored_norm(W: Tensor, W_squared: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        return formula(W_squared, (W @ A.T * B).sum(1), (B @ (A @ A.T) * B).sum(1), scaling)

    return my_factored_norm


def norm_formed(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    return (W + scaling * B @ A).norm(dim=1)


def norm_of_a_formed_update(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    BA = B @ A
    return (W_squared + 2 * scaling * (W @ A.T * B).sum(1) + scaling**2 * BA.square().sum(1)).sqrt()


def norm_in_numpy(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    V = W.numpy() + scaling * B.numpy() @ A.numpy()
    return torch.from_numpy((V**2).sum(axis=1) ** 0.5)


def norm_in_two_halves(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    halves = zip(W.chunk(2), B.chunk(2), strict=True)
    return torch.cat([(w + scaling * b @ A).norm(dim=1) for w, b in halves])


def norm_that_squares_W(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    return norm_by_sums(W, W.square().sum(dim=1), A, B, scaling)


def norm_along_the_wrong_axis(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    return (W + scaling * B @ A).norm(dim=0)


def norm_in_a_column(W, W_squared, A, B, scaling):  # type: ignore[no-untyped-def]
    return norm_by_sums(W, W_squared, A, B, scaling)[:, None]


WRONG_NORMS: list[tuple[Attempt, str]] = [
    (norm_with(lambda W2, c, u, s: W2 + 2 * s * c + s * s * u), "square root"),
    (norm_with(lambda W2, c, u, s: (W2 + s * c + s * s * u).sqrt()), "counts twice"),
    (norm_with(lambda W2, c, u, s: (W2 + 2 * s * c + s * u).sqrt()), "is squared"),
    (norm_with(lambda W2, c, u, s: (W2 + 2 * c + u).sqrt()), "scaling is missing"),
    (norm_with(lambda W2, c, u, s: (W2 + s * s * u).sqrt()), "cross term"),
    (norm_with(lambda W2, c, u, s: (W2 + 2 * s * c).abs().sqrt()), "last term"),
    (norm_with(lambda W2, c, u, s: W2.sqrt()), "norm of W"),
    (norm_with(lambda W2, c, u, s: (W2**2 + 2 * s * c + s * s * u).sqrt()), "is squared again"),
    (lambda W, W2, A, B, scaling: norm_by_sums(W, W2, A, B, 0.3), "matches no slip"),
    (norm_formed, "numbers were made at once"),
    (norm_of_a_formed_update, "numbers were made at once"),
    (norm_in_numpy, "numbers were made at once"),
    (norm_in_two_halves, "numbers were made at once"),
    (norm_that_squares_W, "numbers were made at once"),
    (norm_along_the_wrong_axis, "dim=0"),
    (norm_in_a_column, "shape"),
    (lambda W, W2, A, B, scaling: norm_by_sums(W, W2, A, B, scaling) + float("nan"), "not finite"),
    (norm_with(lambda W2, c, u, s: (W2 + 2 * s * c + s * s * u).sqrt().mean()), "shape"),
]

WRONG = (
    [("dora_forward", *w) for w in WRONG_FORWARDS]
    + [("merged_weight", *w) for w in WRONG_MERGES]
    + [("factored_norm", *w) for w in WRONG_NORMS]
)


@pytest.mark.parametrize(("name", "attempt", "says"), WRONG, ids=[f"{n}-{s.replace(' ', '-')}" for n, _, s in WRONG])
def test_wrong_answers_meet_the_fitting_message(
    name: str, attempt: Attempt, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    returned = getattr(checks, name)(attempt)
    out = capsys.readouterr().out
    assert out.startswith("wrong: ") and out.count("\n") == 1, out
    assert re.search(says, out), out
    assert "could not be examined" not in out
    assert returned is not attempt


@pytest.mark.parametrize("name", ["dora_forward", "merged_weight", "factored_norm"])
def test_an_unwritten_answer_says_not_yet_and_gives_the_courses_version(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwritten(*arguments: object) -> None:
        raise NotImplementedError

    check = getattr(checks, name)
    reference = check(unwritten)
    assert capsys.readouterr().out.startswith("not yet: ")
    assert check(reference) is reference
    assert capsys.readouterr().out.startswith("correct: ")
