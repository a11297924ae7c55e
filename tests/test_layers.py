"""The layers against PEFT, against a dense float64 reference, and against the ways in which they could go wrong."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
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
        r=draw(st.integers(1, 12)),
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
    """B A is built to cancel W up to `left_over`. What is left is the rounding of W + sBA: a few eps of ‖W‖."""
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
    assert ours == theirs + x.element_size() * (tokens * d_out + 2 * d_out)  # z, ‖V‖, and m / ‖V‖


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


def test_answers_one_after_another_take_the_norm_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _, x, _ = twins(Case())
    taken = []
    whole = DoRALinear.weight_norm
    monkeypatch.setattr(DoRALinear, "weight_norm", lambda layer: taken.append(1) or whole(layer))
    layer.eval()
    with torch.no_grad():
        layer(x), layer(x)
        assert len(taken) == 1
        layer.lora_B.mul_(2)
        layer(x)
        assert len(taken) == 2
    layer(x)  # with gradients
    with torch.no_grad():
        layer(x)
    assert len(taken) == 3


WRITES_UNSEEN = {
    "lora_B": lambda layer: layer.lora_B.data.mul_(3),
    "lora_A": lambda layer: layer.lora_A.detach().numpy().__imul__(3),
    "base": lambda layer: layer.base.weight.data.mul_(3),
    "numpy": lambda layer: layer.base.weight.numpy().__imul__(3),
}


@pytest.mark.parametrize("write", WRITES_UNSEEN.values(), ids=WRITES_UNSEEN)
@pytest.mark.parametrize("training", [True, False])
def test_refresh_follows_writes_that_autograd_does_not_see(write: Any, training: bool) -> None:
    layer, _, x, _ = twins(Case())
    layer.train(training)
    with torch.no_grad():
        layer(x)
        write(layer)
        layer.refresh()
        torch.testing.assert_close(layer(x), dense(layer, x))


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_the_adapter_may_be_written_to_behind_autograds_back_between_passes_with_gradients(name: str) -> None:
    layer, _, x, _ = twins(Case())
    for training in (True, False):
        layer.train(training)
        layer(x)
        getattr(layer, name).data.mul_(3)
        torch.testing.assert_close(layer(x), dense(layer, x))
    torch.testing.assert_close(layer.merge()(x), dense(layer, x))


def test_a_tensor_that_is_swapped_through_data_is_seen() -> None:
    layer, _, x, _ = twins(Case())
    layer.eval()
    with torch.no_grad():
        layer(x)
        layer.base.weight.data = layer.base.weight * 2
        layer.lora_B.data = layer.lora_B * 3
        torch.testing.assert_close(layer(x), dense(layer, x))
    torch.testing.assert_close(layer(x), dense(layer, x))


@pytest.mark.parametrize("training", [True, False])
def test_a_fused_optimizer_in_either_mode_trains_on_the_norm_of_now(training: bool) -> None:
    layer, _, x, _ = twins(Case(dtype=torch.float32))
    layer.train(training)
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B, layer.magnitude], lr=0.1, fused=True)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-5)


def dense(layer: DoRALinear, x: Tensor) -> Tensor:
    """What the layer should give, with V formed."""
    V = layer.base.weight + layer.scaling * layer.lora_B @ layer.lora_A
    return F.linear(x, (layer.magnitude / V.norm(dim=1).detach())[:, None] * V, layer.base.bias)


def test_threads_that_answer_at_once_each_get_the_norm_of_their_own_weights() -> None:
    """Two threads, each with weights of its own in the one layer's place, as `functional_call` puts them there."""
    layer, _, x, _ = twins(Case(d_out=64, d_in=64))
    layer.eval()
    sets = [{name: factor * p.detach() for name, p in layer.named_parameters()} for factor in (1.0, 2.0, 3.0)]
    expected = []
    for weights in sets:
        with torch.no_grad():
            twin = copy.deepcopy(layer)
            twin.load_state_dict(weights)
            expected.append(dense(twin, x))

    def answers(number: int) -> bool:
        twin = layer._replicate_for_data_parallel()  # shares what is kept, and has weights of its own
        twin.base = layer.base._replicate_for_data_parallel()
        with torch.no_grad():
            for name, value in sets[number].items():
                owner = twin.base if name.startswith("base.") else twin
                owner._parameters[name.removeprefix("base.")] = nn.Parameter(value)
            return all(torch.allclose(twin(x), expected[number]) for _ in range(200))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(answers, range(3)))


# What people do with layers.


def test_a_pass_in_inference_mode_does_not_spoil_a_later_one_with_gradients() -> None:
    layer, _, x, dy = twins(Case())
    layer.eval()
    expected = outputs_and_gradients(layer, x, dy)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected["y"])
    for name, value in outputs_and_gradients(layer, x, dy).items():
        assert torch.equal(value, expected[name])


@BOTH
def test_inference_mode_makes_trainable_adapters_and_refuses_a_base_made_in_it(make: type[LoRALinear]) -> None:
    base = nn.Linear(6, 5)
    with torch.inference_mode():
        layer = make(base, 2, 4)
        with pytest.raises(ValueError, match="inference mode"):
            make(nn.Linear(6, 5), 2, 4)
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.lora_B.grad is not None


def test_functional_call_gradients_and_ensembles_are_those_of_the_formula() -> None:
    layer, _, x, _ = twins(Case())
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(layer_weights: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, layer_weights, (x,)).square().sum()

    names = ["lora_A", "lora_B", "magnitude"]
    expected = torch.autograd.grad(dense(layer, x).square().sum(), [getattr(layer, name) for name in names])
    found = torch.func.grad(loss)(weights)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)
    two = {name: torch.stack([p, 2 * p]) for name, p in weights.items()}
    each = torch.func.vmap(loss)(two)
    twin = copy.deepcopy(layer)
    twin.load_state_dict({name: 2 * p for name, p in weights.items()})
    torch.testing.assert_close(each, torch.stack([dense(layer, x).square().sum(), dense(twin, x).square().sum()]))


@pytest.mark.parametrize("buffers", [True, False])
def test_a_base_weight_given_for_one_call_does_not_outlive_it(buffers: bool) -> None:
    layer, _, x, _ = twins(Case())
    before, given = layer(x), {"base.weight": 3 * layer.base.weight.detach()}
    given |= dict(layer.named_buffers()) if buffers else {}
    twin = copy.deepcopy(layer)
    twin.base.weight.data *= 3
    twin.refresh()
    for _ in range(2):
        torch.testing.assert_close(functional_call(layer, given, (x,)), twin(x))
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer._W2, layer.base.weight.square().sum(dim=1))  # what a compiled layer reads


def test_the_norm_is_a_constant_in_forward_mode_too() -> None:
    ours, theirs, x, _ = twins(Case())
    found = torch.func.jacfwd(lambda B: functional_call(ours, {"lora_B": B}, (x,)))(ours.lora_B.detach())
    name = next(name for name, _ in theirs.named_parameters() if ".lora_B" in f".{name}")
    expected = torch.func.jacfwd(lambda B: functional_call(theirs, {name: B}, (x,)))(ours.lora_B.detach())
    torch.testing.assert_close(found, expected)


def test_a_second_backward_pass_is_that_of_the_formula() -> None:
    layer, _, x, _ = twins(Case())
    found = []
    for y in (layer(x), dense(layer, x)):
        (g,) = torch.autograd.grad(y.square().sum(), layer.magnitude, create_graph=True)
        found.append(torch.autograd.grad(g.sum(), layer.lora_B)[0])
    torch.testing.assert_close(*found)


class Doubled(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2 * W


@pytest.mark.parametrize("training", [True, False])
def test_parametrized_weights_are_followed(training: bool) -> None:
    base = nn.Linear(6, 5)
    register_parametrization(base, "weight", Doubled())
    layer = DoRALinear(base, 2, 4).train(training)
    register_parametrization(layer, "lora_B", Doubled())
    x = torch.randn(3, 6)
    with torch.no_grad():
        for p in layer.parametrizations.lora_B.parameters():
            p.normal_()
        torch.testing.assert_close(layer(x), dense(layer, x))
        base.parametrizations.weight.original.mul_(1.5)
        torch.testing.assert_close(layer(x), dense(layer, x))
    torch.testing.assert_close(layer.merge()(x), dense(layer, x))


@pytest.mark.parametrize("training", [True, False])
def test_exports_to_one_graph(training: bool) -> None:
    layer, _, x, _ = twins(Case(dtype=torch.float32))
    layer.train(training)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_a_base_that_is_offloaded_is_refused_in_a_sentence() -> None:
    x = torch.randn(3, 6)
    lora = nn.Sequential(LoRALinear(nn.Linear(6, 5), 2, 4))
    expected = lora(x)
    torch.testing.assert_close(cpu_offload(lora, torch.device("cpu"))(x), expected)
    dora = cpu_offload(nn.Sequential(DoRALinear(nn.Linear(6, 5), 2, 4)), torch.device("cpu"))
    with pytest.raises(ValueError, match="meta device"):
        dora(x)


@BOTH
def test_a_layer_can_be_pickled_and_the_copy_follows_its_own_weights(make: type[LoRALinear]) -> None:
    layer, _, x, _ = twins(Case(), make)
    layer.eval()
    with torch.no_grad():
        layer(x)
        twin = pickle.loads(pickle.dumps(layer))
        torch.testing.assert_close(twin(x), layer(x))
        twin.lora_B.mul_(2)
        assert not torch.allclose(twin(x), layer(x))


# The base is called, not imitated.


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x) + 1


def steer(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y + 0.5


@BOTH
@pytest.mark.parametrize("lora_dropout", [0.0, 0.5])
@pytest.mark.parametrize("how", ["subclass", "hook", "instance"])
def test_a_base_with_a_forward_of_its_own_or_hooks_is_as_in_peft(
    make: type[LoRALinear], how: str, lora_dropout: float
) -> None:
    ours, theirs, x, dy = twins(Case(lora_dropout=lora_dropout), make)
    for base in (ours.base, theirs.base_layer):
        if how == "subclass":
            base.__class__ = Scaled
        elif how == "hook":
            base.register_forward_hook(steer)
        else:
            base.forward = lambda x, base=base: 2 * F.linear(x, base.weight, base.bias)
    got, expected = outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy)
    for name, value in expected.items():
        assert relative_error(got[name], value) <= 1e-10, name
    with pytest.raises(ValueError, match="hooks or a forward pass of its own"):
        ours.merge()


@BOTH
def test_a_hook_sees_what_the_base_gives_and_nothing_writes_to_it_later(make: type[LoRALinear]) -> None:
    layer, _, x, _ = twins(Case(), make)
    seen: list[Tensor] = []
    layer.base.register_forward_hook(lambda module, inputs, y: seen.append(y))
    layer(x)
    torch.testing.assert_close(seen[0], F.linear(x, layer.base.weight, layer.base.bias))


@BOTH
def test_a_parent_that_reads_the_weight_uses_the_adapter(make: type[LoRALinear]) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.out_proj = layer = make(attention.out_proj, 2, 4)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 3, 8)
    y = attention(x, x, x)[0]
    y.sum().backward()
    assert layer.lora_A.grad.abs().sum() > 0
    attention.out_proj = layer.merge()
    torch.testing.assert_close(attention(x, x, x)[0], y)


# Every dtype that it accepts.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("x_scale", "dy_scale"), [(1, 1), (100, 500), (1, 1e-6), (100, 1e-4)])
def test_half_precision_gradients_are_neither_lost_nor_infinite(
    dtype: torch.dtype, x_scale: float, dy_scale: float
) -> None:
    """Against float64 on the same rounded weights: off by no more than 2 eps, or than half as much again as PEFT's."""
    ours, theirs, x, dy = twins(Case(d_out=48, d_in=64, leading=(32,), dtype=dtype))
    with torch.no_grad():
        for layer in (ours.lora_B, theirs.lora_B["default"].weight):
            layer.mul_(0.05)
    x, dy = x * x_scale, dy * dy_scale
    exact = copy.deepcopy(ours).double()
    expected = outputs_and_gradients(exact, x.double(), dy.double())
    got, peft = outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy)
    tiny = 64 * 2**-24 if dtype == torch.float16 else 0  # a gradient of x may itself be too small for float16
    for name in ("y", "dlora_A", "dlora_B", "dmagnitude"):
        assert got[name].isfinite().all(), name
        allowed = max(2 * torch.finfo(dtype).eps, 1.5 * relative_error(peft[name], expected[name]))
        assert relative_error(got[name], expected[name]) <= allowed, name
    assert (got["dx"].double() - expected["dx"]).norm() <= 0.02 * expected["dx"].norm() + tiny


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_a_norm_in_the_hundreds_do_not_overflow(dtype: torch.dtype) -> None:
    base = nn.Linear(64, 8, dtype=dtype)
    with torch.no_grad():
        base.weight.mul_(1000)
    layer = DoRALinear(base, 4, 4)
    x = 0.01 * torch.randn(3, 64, dtype=dtype)
    assert layer.weight_norm().max() > 400
    torch.testing.assert_close(layer(x), base(x), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("cancelled", [0.6, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_norm_of_a_training_pass_is_right_where_w_and_the_update_cancel(
    cancelled: float, dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At B A = −0.95 W the sum may be off by a thousandth, whatever the dtype of the base."""
    torch.manual_seed(0)
    A, B = torch.randn(4, 256), torch.randn(64, 4)
    base = nn.Linear(256, 64, bias=False, dtype=dtype)
    with torch.no_grad():
        base.weight.copy_(B @ A)
    layer = DoRALinear(base, 4, 4)
    with torch.no_grad():
        layer.lora_A.copy_(A)
        layer.lora_B.copy_(-cancelled * B)
    taken = []
    factored = DoRALinear._factored_norm
    monkeypatch.setattr(DoRALinear, "_factored_norm", lambda layer, WA: taken.append(factored(layer, WA)) or taken[-1])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(torch.randn(3, 256, dtype=dtype))
    (norm,) = taken
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), dense_norm(layer), rtol=1e-3, atol=0)
    torch.testing.assert_close(layer.weight_norm().double(), dense_norm(layer), rtol=1e-5, atol=0)


# One graph, and no questions to the host.


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph_without_compiling_again_from_layer_to_layer(training: bool) -> None:
    torch._dynamo.reset()
    layers = [twins(Case(dtype=torch.float32, seed=seed))[0].train(training) for seed in range(3)]
    _, _, x, dy = twins(Case(dtype=torch.float32))
    forward = torch.compile(lambda layer, x: layer(x), fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layer in layers:
            expected = outputs_and_gradients(layer, x, dy)
            got = torch.autograd.grad(forward(layer, x.requires_grad_()), [x, layer.lora_B, layer.magnitude], dy)
            for g, name in zip(got, ("dx", "dlora_B", "dmagnitude"), strict=True):
                torch.testing.assert_close(g, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_layer_follows_a_base_that_trains_too() -> None:
    torch._dynamo.reset()
    layer, _, x, _ = twins(Case(dtype=torch.float32))
    layer.base.weight.requires_grad_(True)
    forward = torch.compile(lambda x: layer(x), fullgraph=True)
    forward(x).sum().backward()
    with torch.no_grad():
        layer.base.weight *= 2
    torch.testing.assert_close(forward(x), layer(x))


class Ops(TorchDispatchMode):
    """Notes the operations that compute; views, and questions of dtype, do not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket.__name__ not in ("detach", "_unsafe_view"):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "more"), [(torch.float32, 10), (torch.bfloat16, 11)])
def test_a_training_pass_makes_few_kernels_more_than_loras_and_asks_the_host_nothing(
    bias: bool, dtype: torch.dtype, more: int
) -> None:
    counts = {}
    for make in (LoRALinear, DoRALinear):
        layer, _, x, dy = twins(Case(bias=bias, dtype=dtype), make)
        layer(x.requires_grad_())
        with Ops() as forward:
            y = layer(x)
        with Ops() as backward:
            y.backward(dy)
        assert "_local_scalar_dense" not in forward.names + backward.names
        counts[make] = len(forward.names), len(backward.names)
    assert counts[DoRALinear][0] <= counts[LoRALinear][0] + more
    assert counts[DoRALinear][1] <= counts[LoRALinear][1] + 10


def test_nothing_is_saved_for_a_frozen_magnitude() -> None:
    x = torch.randn(32, 96, requires_grad=True)
    lora, dora = (make(nn.Linear(96, 128), 4, 8) for make in (LoRALinear, DoRALinear))
    dora.magnitude.requires_grad_(False)
    assert saved_bytes(dora, x) == saved_bytes(lora, x) + 128 * 4  # m / ‖V‖, for the gradient of x


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
        ({"r": 0}, ValueError, "r is 0.*from 1"),
        ({"r": -2}, ValueError, "r is -2.*from 1"),
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
        ({"base": nn.LazyLinear(5)}, ValueError, "LazyLinear.*not seen an input"),
        ({"base": nn.Linear(6, 5).to(torch.float8_e4m3fn)}, TypeError, "float8.*16-bit or 32-bit"),
        ({"base": bnb.nn.Linear4bit(64, 64)}, TypeError, "Linear4bit.*not packed"),
        ({"base": bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)}, TypeError, "Linear8bitLt.*4-bit one"),
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


# What is kept between calls.


def test_a_base_that_trains_too_is_followed_by_the_norm() -> None:
    """Fused optimizers, the Trainer's default, write without a count."""
    torch.manual_seed(0)
    layer, x = DoRALinear(nn.Linear(16, 8), 4, 8).train(), torch.randn(5, 16)
    layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = layer(x).detach()
    torch.testing.assert_close(copy.deepcopy(layer)(x).detach(), trained)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x).detach(), trained)
    layer.refresh()
    torch.testing.assert_close(trained, layer(x).detach())


@BOTH
def test_a_changed_scaling_counts_from_the_next_call(make: type[LoRALinear]) -> None:
    torch.manual_seed(0)
    layer, x = make(nn.Linear(16, 8), 4, 8).eval(), torch.randn(5, 16)
    nn.init.normal_(layer.lora_B)
    with torch.no_grad():
        layer(x)
        layer.scaling = 0.5
        answer = layer(x)
    torch.testing.assert_close(answer, F.linear(x, layer.merged_weight(), layer.bias))


@BOTH
def test_what_is_no_number_is_refused_and_numpy_s_integers_are_taken(make: type[LoRALinear]) -> None:
    wrong: list[dict[str, Any]] = [{"lora_dropout": "0.1"}, {"use_rslora": "False"}, {"lora_alpha": True}, {"r": True}]
    for changed in wrong:
        (name,) = changed
        with pytest.raises((TypeError, ValueError), match=f"{name} is "):
            make(nn.Linear(4, 4), **{"r": 2, "lora_alpha": 4} | changed)
    assert make(nn.Linear(4, 4), np.int64(2), 4).r == 2  # type: ignore[arg-type]
