"""LoRA and DoRA layers over a frozen `nn.Linear` or `Linear4bit`: what lessons 02 and 03 write by hand, made fast.

Shapes throughout: base weight W (d_out, d_in), lora_A (r, d_in), lora_B (d_out, r), magnitude (d_out,), input
x (..., d_in), output (..., d_out). `scaling` is lora_alpha / r, as in PEFT. The adapter's parameters are float32 for
a half-precision or 4-bit base, else of the base's dtype; their products run in the dtype of the base layer's output.

Sources: LoRA, Hu et al., arXiv 2106.09685; DoRA, Liu et al., arXiv 2402.09353v6, Eq. 5 and section 4.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from dora_lesson.adapters.linear4bit import (
    frozen_product,
    frozen_products,
    frozen_weight,
    is_four_bit,
    iter_dequantized_rows,
    linear_like,
    quant_state,
)


class LoRALinear(nn.Module):
    """y = x Wᵀ + bias + scaling · dropout(x) Aᵀ Bᵀ, with W and bias frozen (LoRA paper, Eq. 3).

    Args:
        base: the layer to adapt. It is frozen in place and held, never copied.
        r: rank, an integer from 1 to min(d_out, d_in).
        lora_alpha: positive and finite; the update is scaled by lora_alpha / r.
        lora_dropout: probability from 0 up to, not including, 1, applied to the adapter's input in training.

    Raises:
        TypeError: `base` is not a plain, loaded, unadapted `nn.Linear`, or `r` is not an integer.
        ValueError: `r`, `lora_alpha` or `lora_dropout` is out of range, or the weights are on the meta device.
    """

    def __init__(self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__()
        _require_base(base)
        _require_numbers(base, r, lora_alpha, lora_dropout)
        self.base = base.requires_grad_(False)
        self.r, self.lora_alpha, self.scaling = r, lora_alpha, lora_alpha / r
        W = base.weight
        like_adapter: dict[str, Any] = {"device": W.device, "dtype": torch.promote_types(W.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **like_adapter))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **like_adapter))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(lora_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        tokens = x.reshape(-1, x.shape[-1])
        y = self._add_update(frozen_product(self.base, tokens, self.base.bias), self.dropout(tokens))
        return y.view(*x.shape[:-1], self.base.out_features)

    def _add_update(self, y: Tensor, x: Tensor) -> Tensor:
        """Add scaling · x Aᵀ Bᵀ to y (tokens, d_out) in place, which spares a second tensor of that size."""
        xA = F.linear(x.to(y.dtype), self.lora_A.to(y.dtype))  # (tokens, r)
        return y.addmm_(xA, self.lora_B.to(y.dtype).T, alpha=self.scaling)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scaling · BA, (d_out, d_in), in the adapter's dtype."""
        return frozen_weight(self.base) + self.scaling * (self.lora_B @ self.lora_A)

    def merge(self, four_bit: bool = False) -> nn.Linear:
        """A new frozen `nn.Linear` that computes what this layer computes in eval mode, in the base's dtype.

        Over a 4-bit base that is the dtype it had before it was quantized; with `four_bit` the merged weight is
        quantized again as the base was, and rounded as coarsely.

        Raises:
            ValueError: `four_bit` for a base that is not in 4 bits.
        """
        if four_bit and not is_four_bit(self.base):
            raise ValueError("The base is not in 4 bits: merge without four_bit, and quantize the merged model.")
        return linear_like(self.base, self.merged_weight(), four_bit)

    def extra_repr(self) -> str:
        return f"r={self.r}, lora_alpha={self.lora_alpha}"


class DoRALinear(LoRALinear):
    """y = m / ‖V‖ · x Vᵀ + bias with V = W + scaling · BA, one norm per output row (DoRA paper, Eq. 5).

    `magnitude` m (d_out,) starts at ‖W‖, so that the untrained layer is the base. ‖V‖ is a constant in the backward
    pass (section 4.3). In training with dropout on, x loses entries only where the adapter changes the base's
    output, as in PEFT: y = x Wᵀ + bias + dropout(x) (m / ‖V‖ · V − W)ᵀ. A row of V that is all zeros is divided
    by 1, so that outputs and gradients stay finite.

    Arguments and errors are those of `LoRALinear`.
    """

    def __init__(self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout)
        self._cache: dict[str, tuple[Any, Tensor]] = {}  # name of a norm: (state of the tensors it is of, the norm)
        self.magnitude = nn.Parameter(self._base_norm().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        tokens = x.reshape(-1, x.shape[-1])
        dropped = self.dropout(tokens)
        if (norm := self._cached_norm()) is not None:
            xW = frozen_product(self.base, dropped)
        else:
            xW, WA = frozen_products(self.base, dropped, self.lora_A)
            norm = self._compute_norm(WA)
        xV = self._add_update(xW, dropped)  # (tokens, d_out)
        y = _ScaleOutputs.apply(xV, self.magnitude, norm)
        if self.training and self.dropout.p > 0:  # what dropout took still goes through W alone
            y = y + frozen_product(self.base, tokens - dropped)
        if self.base.bias is not None:
            y = y + self.base.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.base.out_features)

    @torch.no_grad()
    def weight_norm(self) -> Tensor:
        """‖V‖ = ‖W + scaling · BA‖ per row, (d_out,). In eval mode it is kept until W, A or B changes."""
        norm = self._cached_norm()
        return self._compute_norm(frozen_products(self.base, self.lora_A[:0], self.lora_A)[1]) if norm is None else norm

    @torch.no_grad()
    def _compute_norm(self, WA: Tensor) -> Tensor:
        """‖V‖ per row from WA = W Aᵀ (d_out, r), without forming a (d_out, d_in) matrix.

        ‖V‖² = ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B (A Aᵀ), B⟩, row by row. The sum is off by a few eps of its largest term.
        Where W and sBA cancel, so that it comes out below a tenth of ‖W‖² + ‖sBA‖², that error would weigh more than
        tenfold: these rows, if any, are computed from V itself.
        """
        A, B, s = self.lora_A, self.lora_B, self.scaling
        W2 = self._base_norm().square()
        BA2 = s * s * (B @ (A @ A.T) * B).sum(dim=1)
        V2 = W2 + 2 * s * (WA * B).sum(dim=1) + BA2
        cancelled = V2 < 0.1 * (W2 + BA2)
        if cancelled.any():
            V = [W[cancelled[rows]] + s * B[rows][cancelled[rows]] @ A for rows, W in iter_dequantized_rows(self.base)]
            V2[cancelled] = torch.cat(V).square().sum(dim=1)
        self._cache["V"] = _state(self.base.weight, A, B), V2.sqrt()
        return self._cache["V"][1]

    def _cached_norm(self) -> Tensor | None:
        """‖V‖ if it is of the present W, A and B; None in training, where B has changed since."""
        state, norm = self._cache.get("V", (None, None))
        current = not self.training and state == _state(self.base.weight, self.lora_A, self.lora_B)
        return norm if current else None

    @torch.no_grad()
    def _base_norm(self) -> Tensor:
        """‖W‖ per row, (d_out,), computed once until W changes."""
        state = _state(self.base.weight)
        if self._cache.get("W", (None,))[0] != state:
            norms = [vector_norm(rows, dim=1, dtype=self.lora_A.dtype) for _, rows in iter_dequantized_rows(self.base)]
            self._cache["W"] = state, torch.cat(norms)
        return self._cache["W"][1]

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """m / ‖V‖ · V, (d_out, d_in), in the adapter's dtype."""
        return (self.magnitude / _nonzero(self.weight_norm()))[:, None] * super().merged_weight()

    def train(self, mode: bool = True) -> DoRALinear:
        self._cache.pop("V", None)  # some optimizers write to memory without telling autograd's version counter
        return super().train(mode)


class _ScaleOutputs(torch.autograd.Function):
    """z · m / norm for z (tokens, d_out), with the norm a constant: the backward pass of the paper's section 4.3.

    Written out because m / norm in bfloat16 moves in steps of 0.4 to 0.8 %, more than a magnitude moves in a
    fine-tune: the products are taken in the dtype of m, and rounded once.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, m: Tensor, norm: Tensor) -> Tensor:
        ctx.save_for_backward(z, m, norm)
        return torch.mul(z, m / _nonzero(norm), out=torch.empty_like(z))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        z, m, norm = ctx.saved_tensors
        product = dy * z
        dm = product.sum(dim=0, dtype=m.dtype) / _nonzero(norm)
        return torch.mul(dy, m / _nonzero(norm), out=product), dm, None  # the product's memory serves twice


def _nonzero(norm: Tensor) -> Tensor:
    """The norm to divide by: 1 for a row of zeros, which stays zero whatever divides it."""
    return torch.where(norm > 0, norm, 1)


def _state(*tensors: Tensor) -> tuple[tuple[int, int], ...]:
    """Changes when one of the tensors is written to in place, replaced or moved."""
    return tuple((t.data_ptr(), t._version) for t in tensors)


def _require_base(base: nn.Module) -> None:
    kind = type(base).__name__
    if isinstance(base, LoRALinear) or hasattr(base, "base_layer"):
        raise TypeError(f"The base is a {kind}, which already holds an adapter: pass the plain nn.Linear inside it.")
    if not isinstance(base, nn.Linear):
        raise TypeError(f"The base is a {kind}, but an nn.Linear is expected: pass one linear layer.")
    if base.weight.is_meta:
        raise ValueError("The base has its weights on the meta device: load them first.")
    if is_four_bit(base):
        block, d_in = quant_state(base).blocksize, base.in_features
        if d_in % block:  # bitsandbytes unpacks such rows wrongly on a CPU
            raise ValueError(f"The base has d_in={d_in}, not a multiple of its block size {block}: keep it in 16 bits.")
    elif not base.weight.is_floating_point():
        raise TypeError(f"The base holds {base.weight.dtype} weights: pass a 16-bit or 32-bit layer, or a 4-bit one.")


def _require_numbers(base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float) -> None:
    d_out, d_in = base.out_features, base.in_features
    largest = min(d_out, d_in)
    if not isinstance(r, int) or isinstance(r, bool):
        raise TypeError(f"r is {r!r}, but an integer is expected: pass a rank such as 8 or 16.")
    if not 1 <= r <= largest:
        raise ValueError(f"r is {r}, but a layer with d_out={d_out} and d_in={d_in} takes a rank from 1 to {largest}.")
    if not isinstance(lora_alpha, int | float):
        raise TypeError(f"lora_alpha is {lora_alpha!r}, but a number is expected: try {r} or {2 * r}.")
    if not math.isfinite(lora_alpha) or lora_alpha <= 0:
        raise ValueError(f"lora_alpha is {lora_alpha!r}, but a positive finite number is expected: try {r} or {2 * r}.")
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout is {lora_dropout!r}, but a probability from 0 up to 1 is expected.")
