"""The layers against PEFT, against a dense float64 reference, and against the ways in which they could go wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dora_lesson import DoRALinear, LoRALinear, largest_temporary, saved_bytes
from tests.parity import Case, assert_parity, outputs_and_gradients, peft_layer, relative_error, twins

BOTH = pytest.mark.parametrize("make", [LoRALinear, DoRALinear])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    d_out, d_in = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return Case(
        d_out=d_out,
        d_in=d_in,
        r=draw(st.integers(1, min(d_out, d_in))),
        lora_alpha=draw(st.floats(0.1, 64)),
        bias=draw(st.booleans()),
        lora_dropout=draw(st.sampled_from([0.0, 0.1, 0.5])),
        leading=draw(st.sampled_from([(1,), (6,), (2, 3), (2, 1, 4)])),
        seed=draw(st.integers(0, 2**31)),
    )


@BOTH
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases())
def test_agrees_with_peft_in_float64(make: type[LoRALinear], case: Case) -> None:
    assert_parity(case, make)


# A relative error of a few eps of the dtype is what rounding alone leaves: PEFT rounds at other places than we do.
# bfloat16 has eps 2^-7; PEFT keeps the adapter's products in float32 there, we round them once to bfloat16.
@BOTH
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 10 * 2**-23), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_peft_in_lower_precision(
    make: type[LoRALinear], dtype: torch.dtype, tolerance: float, bias: bool
) -> None:
    case = Case(d_out=48, d_in=64, r=8, lora_alpha=1.0, bias=bias, dtype=dtype, leading=(4, 16))
    assert_parity(case, make, tolerance)


# The four wrong layers that would pass a test at B = 0, or a test of shapes.


class WrongAxis(DoRALinear):
    def forward(self, x: Tensor) -> Tensor:
        V = self.base.weight + self.scaling * self.lora_B @ self.lora_A
        m = self.magnitude if V.shape[0] == V.shape[1] else self.magnitude.mean().expand(V.shape[1])
        return F.linear(x, m * V / V.norm(dim=0).detach(), self.base.bias)


class NormNotDetached(DoRALinear):
    def forward(self, x: Tensor) -> Tensor:
        V = self.base.weight + self.scaling * self.lora_B @ self.lora_A
        return F.linear(x, self.magnitude[:, None] * V / V.norm(dim=1, keepdim=True), self.base.bias)


class MagnitudeOfOnes(DoRALinear):
    def forward(self, x: Tensor) -> Tensor:
        V = self.base.weight + self.scaling * self.lora_B @ self.lora_A
        ones = torch.ones_like(self.magnitude) + 0 * self.magnitude
        return F.linear(x, ones[:, None] * V / V.norm(dim=1, keepdim=True).detach(), self.base.bias)


class AlphaNotDivided(DoRALinear):
    def __init__(self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout)
        self.scaling = lora_alpha


@pytest.mark.parametrize(
    ("make", "caught_by"),
    [(WrongAxis, "y"), (NormNotDetached, "dlora_A"), (MagnitudeOfOnes, "y"), (AlphaNotDivided, "y")],
)
@pytest.mark.parametrize("shape", [(11, 7), (9, 9)])
def test_parity_catches_a_wrong_layer(make: type[DoRALinear], caught_by: str, shape: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match=rf"^(dx|{caught_by}):"):
        assert_parity(Case(d_out=shape[0], d_in=shape[1]), make)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_untrained_layer_is_the_base_to_the_bit(make: type[LoRALinear], dtype: torch.dtype) -> None:
    base = nn.Linear(24, 32, bias=False, dtype=dtype)
    x = torch.randn(5, 24, dtype=dtype)
    assert torch.equal(make(base, 4, 8)(x), base(x))


@BOTH
def test_base_is_frozen_and_never_copied(make: type[LoRALinear]) -> None:
    base = nn.Linear(6, 5)
    layer = make(base, 2, 4)
    assert layer.base is base
    assert layer.base.weight.data_ptr() == base.weight.data_ptr()
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"} | ({"magnitude"} if make is DoRALinear else set())
    assert layer.scaling == 2.0
    before = base.weight.clone()
    layer(torch.randn(3, 6)).sum().backward()
    assert torch.equal(base.weight, before)
    assert base.weight.grad is None


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_merge_computes_the_same_and_leaves_the_layer_alone(make: type[LoRALinear], bias: bool) -> None:
    ours, _, x, _ = twins(Case(bias=bias, lora_dropout=0.3), make)
    ours.eval()
    before = copy.deepcopy(ours.state_dict())
    merged = ours.merge()
    assert type(merged) is nn.Linear
    assert not any(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(merged(x), ours(x), rtol=1e-12, atol=1e-12)
    merged.weight.zero_()
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_shapes_of_the_input_are_kept() -> None:
    layer = DoRALinear(nn.Linear(6, 5), 2, 4)
    for leading in [(), (1,), (0,), (2, 3), (2, 0, 4)]:
        assert layer(torch.randn(*leading, 6)).shape == (*leading, 5)


# Rows of zeros.


def test_rows_of_zeros_stay_finite_forward_and_backward_and_start_as_the_base() -> None:
    base = nn.Linear(6, 5, dtype=torch.float64)
    with torch.no_grad():
        base.weight[[0, 3]] = 0
    layer = DoRALinear(base, 2, 4)
    x, dy = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))
    assert layer.weight_norm()[0] == 0
    for moved in (False, True):
        if moved:  # B moves, and one zero row with it
            with torch.no_grad():
                layer.lora_B[:4].normal_()
                layer.magnitude.add_(0.1)
        for name, value in outputs_and_gradients(layer, x, dy).items():
            assert value.isfinite().all(), name
        assert layer.merged_weight().isfinite().all()
    torch.testing.assert_close(layer.merge()(x), layer(x))


# The factored norm.


def dense_norm(layer: DoRALinear) -> Tensor:
    V = layer.base.weight.double() + layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    return V.norm(dim=1)


@pytest.mark.parametrize("left_over", [1.0, 0.3, 1e-1, 1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_holds_its_error_bound_also_where_V_nearly_cancels(left_over: float, dtype: torch.dtype) -> None:
    """B A is built to cancel W up to `left_over`.

    The sum keeps 20 eps of ‖V‖² as long as it is no smaller than a tenth of its terms; below, the rows are formed,
    and what is left is the rounding of W + sBA itself: a few eps of ‖W‖, absolute.
    """
    torch.manual_seed(0)
    A, B = torch.randn(4, 64, dtype=torch.float64), torch.randn(32, 4, dtype=torch.float64)
    noise = torch.randn(32, 64, dtype=torch.float64)
    W = -2.0 * B @ A + left_over * noise * (2.0 * B @ A).norm() / noise.norm()
    base = nn.Linear(64, 32, bias=False, dtype=dtype)
    with torch.no_grad():
        base.weight.copy_(W)
    layer = DoRALinear(base, 4, 8)
    with torch.no_grad():
        layer.lora_A.copy_(A)
        layer.lora_B.copy_(B)
    exact, eps = dense_norm(layer), torch.finfo(dtype).eps
    allowed = 20 * eps * exact + 8 * eps * base.weight.double().norm(dim=1)
    assert ((layer.weight_norm().double() - exact).abs() <= allowed).all()
    assert layer(torch.randn(3, 64, dtype=dtype)).isfinite().all()


def test_norm_without_the_second_look_would_break_that_bound() -> None:
    """The bare sum loses every digit at the strongest cancellation above, so the test there can fail."""
    torch.manual_seed(0)
    A, B = torch.randn(4, 64), torch.randn(32, 4)
    W = -2.0 * B @ A + 1e-6 * torch.randn(32, 64)
    BA2 = 4 * (B @ (A @ A.T) * B).sum(1)
    bare = (W.square().sum(1) + 4 * ((W @ A.T) * B).sum(1) + BA2).clamp_min(0).sqrt()
    exact = (W.double() + 2.0 * B.double() @ A.double()).norm(dim=1)
    assert ((bare - exact).abs() > 8 * torch.finfo(torch.float32).eps * W.norm(dim=1)).any()


def largest_new_tensor(layer: nn.Module, x: Tensor) -> int:
    return largest_temporary(lambda: layer(x).sum().backward())


def test_no_temporary_of_the_weights_size_forward_or_backward() -> None:
    d_in, d_out, tokens = 96, 128, 8
    x = torch.randn(tokens, d_in, requires_grad=True)
    layer = DoRALinear(nn.Linear(d_in, d_out), 4, 8)
    largest = largest_new_tensor(layer, x)
    assert largest == max(tokens * d_out, 4 * d_out)
    assert largest_new_tensor(peft_layer(nn.Linear(d_in, d_out), 4, 8), x) >= d_in * d_out  # and this can tell


@pytest.mark.parametrize("r", [4, 16])
def test_saves_for_backward_what_lora_saves_plus_one_output(r: int) -> None:
    tokens, d_in, d_out = 32, 96, 128
    x = torch.randn(tokens, d_in, requires_grad=True)
    ours = saved_bytes(DoRALinear(nn.Linear(d_in, d_out, bias=False), r, 8), x)
    theirs = saved_bytes(peft_layer(nn.Linear(d_in, d_out, bias=False), r, 8, use_dora=False), x)
    assert ours <= theirs + x.element_size() * tokens * d_out


# What is kept between calls must never be stale.


@pytest.mark.parametrize("change", ["lora_A", "lora_B", "base", "load", "data", "double"])
def test_norm_follows_every_change(change: str) -> None:
    layer, _, x, _ = twins(Case(dtype=torch.float32))
    layer.eval()
    layer(x)
    with torch.no_grad():
        if change == "base":
            layer.base.weight.mul_(1.5)
        elif change == "load":
            layer.load_state_dict({k: v + 0.25 for k, v in layer.state_dict().items()})
        elif change == "data":  # as an optimizer that writes behind autograd's back would, between train and eval
            layer.train()
            layer.lora_B.data.mul_(1.5)
            layer.eval()
        elif change == "double":
            layer.double()
            x = x.double()
        else:
            getattr(layer, change).mul_(1.5)
    torch.testing.assert_close(layer.weight_norm().double(), dense_norm(layer), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.merged_weight(), layer.base.bias), rtol=1e-4, atol=1e-5)


def test_norm_is_computed_once_in_eval_mode() -> None:
    layer, _, _, _ = twins(Case())
    assert layer.eval().weight_norm() is layer.weight_norm()
    assert layer.train().weight_norm() is not layer.weight_norm()


def test_a_deep_copy_is_independent() -> None:
    layer, _, _, _ = twins(Case())
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.base.weight.mul_(3)
    torch.testing.assert_close(twin.weight_norm(), dense_norm(twin))
    torch.testing.assert_close(layer.weight_norm(), dense_norm(layer))


def test_works_under_autocast_and_gradient_checkpointing() -> None:
    layer, _, x, dy = twins(Case(dtype=torch.float32, d_out=32, d_in=32))
    exact = outputs_and_gradients(layer, x, dy)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        rough = outputs_and_gradients(layer, x, dy.bfloat16())
    assert all(relative_error(rough[name], exact[name]) < 2**-6 for name in exact)
    again = x.clone().requires_grad_()
    checkpoint(layer, again, use_reentrant=False).backward(dy)
    torch.testing.assert_close(again.grad, exact["dx"])


def test_the_magnitude_is_not_rounded_to_bfloat16() -> None:
    """m / ‖V‖ = 1.003 is 1 in bfloat16: the product is taken in float32 and rounded once."""
    base = nn.Linear(64, 8, bias=False, dtype=torch.bfloat16)
    layer = DoRALinear(base, 2, 2)
    with torch.no_grad():
        layer.magnitude.mul_(1.003)
    scaled = layer(torch.eye(64, dtype=torch.bfloat16)).T  # the rows that the layer in effect uses
    assert torch.equal(scaled, (base.weight.float() * (layer.magnitude / layer.weight_norm())[:, None]).bfloat16())
    assert not torch.equal(scaled, base.weight)


# Bad arguments: each says what was given, what was expected, what to do.


@BOTH
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"r": 0}, ValueError, "r is 0.*from 1 to 5"),
        ({"r": -2}, ValueError, "r is -2.*from 1 to 5"),
        ({"r": 6}, ValueError, "r is 6.*d_out=5 and d_in=6.*from 1 to 5"),
        ({"r": 2.0}, TypeError, r"r is 2\.0.*integer"),
        ({"r": True}, TypeError, "r is True.*integer"),
        ({"r": "8"}, TypeError, "r is '8'.*integer"),
        ({"lora_alpha": math.inf}, ValueError, "lora_alpha is inf.*finite"),
        ({"lora_alpha": math.nan}, ValueError, "lora_alpha is nan.*finite"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha is 0.*positive"),
        ({"lora_alpha": "16"}, TypeError, "lora_alpha is '16'.*number"),
        ({"lora_dropout": 1.0}, ValueError, r"lora_dropout is 1\.0.*probability"),
        ({"lora_dropout": -0.1}, ValueError, "lora_dropout is -0.1.*probability"),
        ({"base": nn.LayerNorm(6)}, TypeError, "LayerNorm.*nn.Linear"),
        ({"base": nn.Embedding(6, 5)}, TypeError, "Embedding.*nn.Linear"),
        ({"base": "q_proj"}, TypeError, "str.*nn.Linear"),
        ({"base": nn.Linear(6, 5, device="meta")}, ValueError, "meta.*load"),
        ({"base": LoRALinear(nn.Linear(6, 5), 2, 4)}, TypeError, "LoRALinear.*already holds an adapter"),
        ({"base": DoRALinear(nn.Linear(6, 5), 2, 4)}, TypeError, "DoRALinear.*already holds an adapter"),
        ({"base": peft_layer(nn.Linear(6, 5), 2, 4)}, TypeError, "already holds an adapter"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(make: type[LoRALinear], arguments: dict, error: type[Exception], says: str) -> None:
    base = nn.Linear(6, 5)
    given = {"base": base, "r": 2, "lora_alpha": 4} | arguments
    with pytest.raises(error, match=says):
        make(**given)
    assert base.weight.requires_grad  # a refused layer leaves its base as it was


@BOTH
def test_quantized_weights_are_refused(make: type[LoRALinear]) -> None:
    base = nn.Linear(6, 5)
    base.weight = nn.Parameter(torch.zeros(15, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TypeError, match=r"uint8.*16-bit or 32-bit"):
        make(base, 2, 4)
