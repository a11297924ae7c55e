"""LoRA over a frozen `nn.Linear` or `Linear4bit`: what lesson 02 writes by hand, made ready for use.

Shapes: base weight W (d_out, d_in), lora_A (r, d_in), lora_B (d_out, r), input x (..., d_in), output (..., d_out).
A and B are float32 for a half-precision or 4-bit base, else of the base's dtype. Their products run in the dtype of the
base layer's output; for float16, whose range is too small for their gradients, in float32, but under autocast.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dora_lesson.adapters.linear4bit import frozen_weight, is_called_plainly, is_four_bit, linear_like, require_base


class LoRALinear(nn.Module):
    """y = base(x) + scaling · dropout(x) Aᵀ Bᵀ, with the base frozen (Hu et al., arXiv 2106.09685, Eq. 3).

    Args:
        base: the layer to adapt. It is frozen in place and held, never copied; it is called as it is, hooks and all.
        r: rank, an integer from 1. One above min(d_out, d_in) is allowed, as in PEFT, and adds nothing.
        lora_alpha: positive and finite; `scaling` is lora_alpha / r.
        lora_dropout: probability from 0 up to, not including, 1, applied to the adapter's input in training.
        use_rslora: `scaling` is lora_alpha / √r instead (rsLoRA, Kalajdzievski, arXiv 2312.03732).

    Raises:
        TypeError: `base` is not an unadapted `nn.Linear` with floating-point or 4-bit weights, or `r` not an integer.
        ValueError: a number is out of range, or the base's weights are not loaded or cannot be trained over.
    """

    def __init__(
        self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False
    ) -> None:
        super().__init__()
        require_base(base)
        _require_numbers(r, lora_alpha, lora_dropout)
        if use_rslora not in (True, False):
            raise TypeError(f"use_rslora is {use_rslora!r}, but True or False is expected.")
        self.base = base.requires_grad_(False)
        # Python's own numbers, not NumPy's, which no configuration file takes.
        self.r, self.use_rslora = int(r), bool(use_rslora)
        self.lora_alpha = lora_alpha if isinstance(lora_alpha, int) else float(lora_alpha)
        self.scaling = self.lora_alpha / (math.sqrt(self.r) if use_rslora else self.r)
        self.dropout = nn.Dropout(float(lora_dropout))
        W = base.weight
        like_adapter: dict[str, Any] = {"device": W.device, "dtype": torch.promote_types(W.dtype, torch.float32)}
        with torch.inference_mode(False):
            self.lora_A = nn.Parameter(torch.empty(r, base.in_features, **like_adapter))
            self.lora_B = nn.Parameter(torch.zeros(base.out_features, r, **like_adapter))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        y = self.base(x)
        return self._add_update(y, self.dropout(x)).to(y.dtype)

    def _add_update(self, y: Tensor, x: Tensor) -> Tensor:
        """y + scaling · x Aᵀ Bᵀ in the shape of y; in its dtype, or in float32 for float16."""
        dtype = torch.float32 if y.dtype == torch.float16 else y.dtype
        xA = F.linear(x.to(dtype), self.lora_A.to(dtype)).view(-1, self.r)  # (tokens, r)
        flat = y.reshape(-1, y.shape[-1]).to(dtype)  # (tokens, d_out)
        return torch.addmm(flat, xA, self.lora_B.to(dtype).T, alpha=self.scaling).view(y.shape)

    @property
    def weight(self) -> Tensor:
        """The weight in effect, (d_out, d_in), made at each read, differentiable, without dropout.

        Some parents multiply by a child's weight and do not call the child, as `nn.MultiheadAttention` does.
        """
        W = frozen_weight(self.base)
        return self._effective(W.to(self.lora_A.dtype)).to(W.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, (d_out,), or None."""
        return self.base.bias

    def _effective(self, W: Tensor) -> Tensor:
        return W + self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scaling · BA, (d_out, d_in), in float32 at least."""
        dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self._effective(frozen_weight(self.base).to(dtype))

    def merge(self, four_bit: bool = False) -> nn.Linear:
        """A new frozen layer of the base's kind that computes what this layer computes in eval mode, in its dtype.

        Over a 4-bit base it is a full-size one in the dtype from before it was quantized; with `four_bit` the merged
        weight is quantized again as the base was, and rounded as coarsely.

        Raises:
            ValueError: `four_bit` for a base that is not in 4 bits, or a base that does more than multiply.
        """
        self.require_mergeable(four_bit)
        with torch.inference_mode(False):  # else the merged weight could never train again
            return linear_like(self.base, self.merged_weight(), four_bit).train(self.training)

    def require_mergeable(self, four_bit: bool = False) -> None:
        """Refuse what `merge` refuses."""
        if not is_called_plainly(self.base):
            raise ValueError("The base has hooks or a forward pass of its own: remove the hooks, or do not merge.")
        if four_bit and not is_four_bit(self.base):
            raise ValueError("The base is not in 4 bits: merge without four_bit, and quantize the merged model.")

    def train(self, mode: bool = True) -> LoRALinear:
        super().train(mode)
        if is_four_bit(self.base):
            self.base.train()  # in eval mode bitsandbytes reorders the bytes on some CPUs (see `readable_quant_state`)
        return self

    def extra_repr(self) -> str:
        return f"r={self.r}, lora_alpha={self.lora_alpha}"


def _require_numbers(r: Any, lora_alpha: Any, lora_dropout: Any) -> None:
    if not isinstance(r, numbers.Integral) or isinstance(r, bool):
        raise TypeError(f"r is {r!r}, but an integer is expected: pass a rank such as 8 or 16.")
    if r < 1:
        raise ValueError(f"r is {r}, but a rank from 1 is expected: try 8 or 16.")
    if not isinstance(lora_alpha, numbers.Real) or isinstance(lora_alpha, bool):
        raise TypeError(f"lora_alpha is {lora_alpha!r}, but a number is expected: try {r} or {2 * r}.")
    if not math.isfinite(lora_alpha) or lora_alpha <= 0:
        raise ValueError(f"lora_alpha is {lora_alpha!r}, but a positive finite number is expected: try {r} or {2 * r}.")
    if not isinstance(lora_dropout, numbers.Real) or not 0 <= float(lora_dropout) < 1:
        raise ValueError(f"lora_dropout is {lora_dropout!r}, but a probability from 0 up to 1 is expected.")
