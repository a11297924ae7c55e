"""Hold a layer against PEFT's on the same numbers: outputs, gradients and merged weight.

Imported by the layer tests, by the bench and by the tests that show that a wrong layer is caught.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dora_lesson import DoRALinear, LoRALinear


@dataclass(frozen=True)
class Case:
    d_out: int = 11
    d_in: int = 7
    r: int = 3
    lora_alpha: float = 5.0
    bias: bool = True
    lora_dropout: float = 0.0
    leading: tuple[int, ...] = (2, 5)
    seed: int = 0
    dtype: torch.dtype = torch.float64


class _Holder(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.proj = layer


def peft_layer(base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_dora: bool = True) -> Any:
    """PEFT's adapted version of `base`, as it sits in a model."""
    config = LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, use_dora=use_dora, target_modules=["proj"]
    )
    return get_peft_model(_Holder(base), config).base_model.model.proj


def parameters_of(layer: Any) -> dict[str, Tensor]:
    """The trained tensors under this course's names, whoever's layer it is."""
    found: dict[str, Tensor]
    if isinstance(layer, LoRALinear):
        found = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
        return found | ({"magnitude": layer.magnitude} if isinstance(layer, DoRALinear) else {})
    found = {"lora_A": layer.lora_A["default"].weight, "lora_B": layer.lora_B["default"].weight}
    if layer.use_dora["default"]:
        found["magnitude"] = layer.lora_magnitude_vector["default"].weight
    return found


def twins(case: Case, make: type[LoRALinear] = DoRALinear) -> tuple[LoRALinear, Any, Tensor, Tensor]:
    """Our layer and PEFT's with the same weights, B ≠ 0, a moved magnitude; an input and an output gradient."""
    torch.manual_seed(case.seed)
    base = nn.Linear(case.d_in, case.d_out, bias=case.bias, dtype=case.dtype)
    theirs = peft_layer(
        copy.deepcopy(base), case.r, case.lora_alpha, case.lora_dropout, use_dora=issubclass(make, DoRALinear)
    )
    ours = make(base, case.r, case.lora_alpha, case.lora_dropout)
    with torch.no_grad():
        for name, parameter in parameters_of(ours).items():
            # float32 for a half-precision base: the dtype in which both keep their adapters
            value = torch.rand_like(parameter) + 0.5 if name == "magnitude" else torch.randn_like(parameter)
            parameter.copy_(value)
            parameters_of(theirs)[name].copy_(value)
    x = torch.randn(*case.leading, case.d_in, dtype=case.dtype)
    dy = torch.randn(*case.leading, case.d_out, dtype=case.dtype)
    return ours, theirs, x, dy


def outputs_and_gradients(layer: nn.Module, x: Tensor, dy: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """y and the gradients of x and of every trained tensor, under a fixed dropout mask."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = layer(x)
    trained = parameters_of(layer)
    gradients = torch.autograd.grad(y, [x, *trained.values()], dy, allow_unused=True)
    names = ["x", *trained]
    return {"y": y.detach()} | {
        f"d{name}": torch.zeros(()) if g is None else g for name, g in zip(names, gradients, strict=True)
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖ over the whole tensor, in float64."""
    difference = (got.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300)).item()


def assert_parity(case: Case, make: type[LoRALinear] = DoRALinear, tolerance: float = 1e-10) -> None:
    """Outputs, gradients and merged weight agree with PEFT's to a relative `tolerance`."""
    ours, theirs, x, dy = twins(case, make)
    got, expected = outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy)
    for name, value in expected.items():
        assert relative_error(got[name], value) <= tolerance, f"{name}: {relative_error(got[name], value):.1e}"
    merged = ours.merge()
    theirs.merge()
    assert relative_error(merged.weight, theirs.get_base_layer().weight) <= tolerance, "merged weight"
    if case.bias:
        assert torch.equal(merged.bias, ours.base.bias)
