"""LoRA and DoRA layers over a frozen `nn.Linear` or `Linear4bit`: what lessons 02 and 03 write by hand, made fast.

Shapes throughout: base weight W (d_out, d_in), lora_A (r, d_in), lora_B (d_out, r), magnitude (d_out,), input
x (..., d_in), output (..., d_out). The adapter's parameters are float32 for a half-precision or 4-bit base, else of the
base's dtype. Their products run in the dtype of the base layer's output; for float16, whose range is too small for
their gradients, in float32. Norms are taken in float32 at least, whatever the dtype and under autocast too.

Sources: LoRA, Hu et al., arXiv 2106.09685; DoRA, Liu et al., arXiv 2402.09353v6, Eq. 5 and section 4.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from dora_lesson.adapters.kept import Kept, has_memory
from dora_lesson.adapters.linear4bit import (
    frozen_product,
    frozen_weight,
    is_called_plainly,
    is_four_bit,
    linear_like,
    product_and_projection,
    projection,
    require_base,
)


class LoRALinear(nn.Module):
    """y = base(x) + scaling · dropout(x) Aᵀ Bᵀ, with the base frozen (LoRA paper, Eq. 3).

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
        self.base = base.requires_grad_(False)
        self.r, self.lora_alpha, self.use_rslora = r, lora_alpha, use_rslora
        self.scaling = lora_alpha / (math.sqrt(r) if use_rslora else r)
        self.dropout = nn.Dropout(lora_dropout)
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
        if not is_called_plainly(self.base):
            raise ValueError(
                "The base has hooks or a forward pass of its own, which no merged weight can replace: "
                "remove the hooks first, or keep the adapter unmerged."
            )
        if four_bit and not is_four_bit(self.base):
            raise ValueError("The base is not in 4 bits: merge without four_bit, and quantize the merged model.")
        return linear_like(self.base, self.merged_weight(), four_bit).train(self.training)

    def train(self, mode: bool = True) -> LoRALinear:
        super().train(mode)
        if is_four_bit(self.base):
            self.base.train()  # in eval mode bitsandbytes reorders the bytes on some CPUs (see `quant_state`)
        return self

    def extra_repr(self) -> str:
        return f"r={self.r}, lora_alpha={self.lora_alpha}"


class DoRALinear(LoRALinear):
    """y = m / ‖V‖ · x Vᵀ + bias with V = W + scaling · BA, one norm per output row (DoRA paper, Eq. 5).

    `magnitude` m (d_out,) starts at ‖W‖, so that the untrained layer is the base. ‖V‖ is a constant in the backward
    pass (section 4.3). In training with dropout on, x loses entries only where the adapter changes the base's
    output, as in PEFT: y = base(x) + dropout(x) (m / ‖V‖ · V − W)ᵀ. A row of V that is all zeros is divided by 1, so
    that outputs and gradients stay finite.

    Two things are kept between calls: ‖W‖, and, from one call without gradients in eval mode to the next, ‖V‖. Both
    are taken anew when a tensor is written to, replaced, moved or loaded. A write that autograd does not see (through
    `.data`, NumPy, or, in a compiled model, into the base) needs a call of `refresh()`.

    Arguments and errors are those of `LoRALinear`.
    """

    _W2: Tensor  # ‖W‖² per row

    def __init__(
        self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False
    ) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        self.register_buffer("_W2", None, persistent=False)
        self._W2_is_right, self._norm_of_answers, self._norm_of_pass = Kept(), Kept(), Kept()
        self.refresh()
        with torch.inference_mode(False):
            self.magnitude = nn.Parameter(self._W2.sqrt().to(self.lora_A.dtype))
        self.register_load_state_dict_post_hook(_refresh)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        dropped, bias, norm = self.dropout(x), self.base.bias, self._known_norm()
        if dropped is x and not is_called_plainly(self.base):
            norm = self._factored_norm(projection(self.base, _wide(self.lora_A))) if norm is None else norm
            xW = self.base(x) if bias is None else self.base(x) - bias
        elif norm is None:
            xW, WA = product_and_projection(self.base, dropped, _wide(self.lora_A))
            norm = self._factored_norm(WA)
        else:
            xW = frozen_product(self.base, dropped)
        z = self._add_update(xW, dropped)  # dropout(x) Vᵀ, (..., d_out)
        y = (z * (_wide(self.magnitude) / norm)).to(xW.dtype)
        if dropped is not x:
            return self.base(x) + (y - xW)
        return y if bias is None else y.add_(bias.to(y.dtype))

    @torch.no_grad()
    def weight_norm(self) -> Tensor:
        """‖V‖ = ‖W + scaling · BA‖ per row, (d_out,), in float32 at least: of V itself, formed some rows at a time."""
        A, B = _wide(self.lora_A), _wide(self.lora_B)
        with torch.autocast(A.device.type, enabled=False):
            rows = zip(frozen_weight(self.base).split(512), B.split(512), strict=True)
            return torch.cat([vector_norm(W.to(A.dtype) + self.scaling * (b @ A), dim=1) for W, b in rows])

    @torch.no_grad()
    def _factored_norm(self, WA: Tensor) -> Tensor:
        """‖V‖ per row, to divide by, from WA = W Aᵀ (d_out, r), without forming a (d_out, d_in) matrix.

        ‖V‖² = ‖W‖² + s ⟨2 W Aᵀ + s B (A Aᵀ), B⟩, row by row. It is off by at most 16 eps of ‖W‖² + ‖sBA‖². Where W
        and sBA cancel, that weighs more: ‖V‖ = 0.05 ‖W‖ is good to 1e-3 in float32. `weight_norm` has no such limit.
        """
        A, B, s = _wide(self.lora_A), _wide(self.lora_B), self.scaling
        with torch.autocast(A.device.type, enabled=False):
            inner = torch.addmm(WA, B, A @ A.T, beta=2, alpha=s)  # (d_out, r)
            V2 = torch.baddbmm(self._squares()[:, None, None], inner[:, None], B[:, :, None], alpha=s).view(-1)
            norm = F.threshold(V2, 0, 1).sqrt()  # 1 for a row of zeros
        if not torch.compiler.is_compiling():
            self._norm_of_pass.put(norm, self.base.weight, self.lora_A, self.lora_B)
        return norm

    def _known_norm(self) -> Tensor | None:
        """‖V‖, to divide by, where it is not to be computed from W Aᵀ.

        That is in answers, of which the first computes it from V, and where a backward pass repeats a checkpointed
        forward pass.
        """
        if torch.compiler.is_compiling():
            return None
        tensors = self.base.weight, self.lora_A, self.lora_B
        if torch.is_grad_enabled() or self.training:
            self._norm_of_answers.drop()
            in_backward = torch._C._current_graph_task_id() >= 0
            return self._norm_of_pass.get(*tensors) if in_backward else None
        norm = self._norm_of_answers.get(*tensors)
        return self._norm_of_answers.put(F.threshold(self.weight_norm(), 0, 1), *tensors) if norm is None else norm

    def refresh(self) -> None:
        """Take ‖W‖ anew and forget ‖V‖: needed only after a write that autograd does not see, as through `.data`."""
        for kept in (self._W2_is_right, self._norm_of_answers, self._norm_of_pass):
            kept.drop()
        self._squares()

    @torch.no_grad()
    def _squares(self) -> Tensor:
        """‖W‖² per row, (d_out,), in float32 at least."""
        W = self.base.weight
        if torch.compiler.is_compiling() or self._W2_is_right.get(W):
            return self._W2
        with torch.inference_mode(False):
            dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
            norms = [vector_norm(rows, dim=1, dtype=dtype) for rows in frozen_weight(self.base).split(512)]
            W2 = torch.cat(norms).square()
        if has_memory(W):
            self._W2 = W2
            self._W2_is_right.put(True, W)
        return W2

    def _effective(self, W: Tensor) -> Tensor:
        """m / ‖V‖ · V, (d_out, d_in)."""
        V = super()._effective(W)
        norm = F.threshold(vector_norm(V.detach(), dim=1), 0, 1)
        return (self.magnitude / norm)[:, None] * V

    def train(self, mode: bool = True) -> DoRALinear:
        if hasattr(self, "_norm_of_answers"):  # not yet while the layer is made
            self._norm_of_answers.drop()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> DoRALinear:
        """What `to`, `float`, `cuda` and the like call."""
        super()._apply(*args, **kwargs)
        if not self.base.weight.is_meta:
            self.refresh()
        return self


def _refresh(layer: DoRALinear, _: Any) -> None:
    layer.refresh()


def _wide(t: Tensor) -> Tensor:
    """The tensor in float32, if its own dtype is narrower."""
    return t.float() if t.element_size() < 4 else t


def _require_numbers(r: int, lora_alpha: float, lora_dropout: float) -> None:
    if not isinstance(r, int) or isinstance(r, bool):
        raise TypeError(f"r is {r!r}, but an integer is expected: pass a rank such as 8 or 16.")
    if r < 1:
        raise ValueError(f"r is {r}, but a rank from 1 is expected: try 8 or 16.")
    if not isinstance(lora_alpha, int | float):
        raise TypeError(f"lora_alpha is {lora_alpha!r}, but a number is expected: try {r} or {2 * r}.")
    if not math.isfinite(lora_alpha) or lora_alpha <= 0:
        raise ValueError(f"lora_alpha is {lora_alpha!r}, but a positive finite number is expected: try {r} or {2 * r}.")
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout is {lora_dropout!r}, but a probability from 0 up to 1 is expected.")
