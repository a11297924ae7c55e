"""DoRA over a frozen `nn.Linear` or `Linear4bit`: what lesson 03 writes by hand, made fast and ready for use.

Shapes as in `lora`; magnitude m (d_out,), in the dtype of A and B. Norms are taken in float32 at least, whatever the
dtype and under autocast too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from dora_lesson.adapters.kept import Kept
from dora_lesson.adapters.linear4bit import both_products, frozen_product, frozen_weight, is_called_plainly, projection
from dora_lesson.adapters.lora import LoRALinear


class DoRALinear(LoRALinear):
    """y = m / ‖V‖ · x Vᵀ + bias with V = W + scaling · BA, one norm per output row (Liu et al., 2402.09353v6, Eq. 5).

    `magnitude` m (d_out,) starts at ‖W‖, so that the untrained layer is the base. ‖V‖ is a constant in the backward
    pass (section 4.3). In training with dropout on, x loses entries only where the adapter changes the base's
    output, as in PEFT: y = base(x) + dropout(x) (m / ‖V‖ · V − W)ᵀ. A row of V that is all zeros is divided by 1, so
    that outputs and gradients stay finite; a row of W that is all zeros has magnitude 0, and training leaves it there.

    Two things are kept between calls: ‖W‖, and ‖V‖ from one call without gradients in eval mode to the next. They are
    taken anew when a tensor is written to, replaced, moved or loaded. A write that autograd does not see (through
    `.data`, NumPy, a fused optimizer's step between answers in eval mode, or, in a compiled model, into the base) needs
    a call of `refresh()`.

    Arguments and errors are those of `LoRALinear`.
    """

    _W2: Tensor  # ‖W‖² per row

    def __init__(
        self, base: nn.Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False
    ) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        self.register_buffer("_W2", None, persistent=False)
        self._W2_of, self._norm_of_answers = Kept(), Kept()
        self.refresh()
        with torch.inference_mode(False):
            self.magnitude = nn.Parameter(self._W2.sqrt().to(self.lora_A.dtype))
        self.register_load_state_dict_post_hook(_refresh)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d_in) to (..., d_out)."""
        dropped, bias, norm = self.dropout(x), self.base.bias, self._known_norm()
        if dropped is x and not is_called_plainly(self.base):
            if norm is None:
                norm = self._factored_norm(projection(frozen_weight(self.base), _wide(self.lora_A)))
            xW = self.base(x) if bias is None else self.base(x) - bias
        elif norm is None:
            xW, WA = both_products(self.base, dropped, _wide(self.lora_A))
            norm = self._factored_norm(WA)
        else:
            xW = frozen_product(self.base, dropped)
        z = self._add_update(xW, dropped)  # dropout(x) Vᵀ, (..., d_out)
        y = (z * (_wide(self.magnitude) / norm.detach())).to(xW.dtype)  # a constant in forward mode too
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
            return F.threshold(V2, 0, 1).sqrt()  # 1 for a row of zeros

    def _known_norm(self) -> Tensor | None:
        """In answers ‖V‖, to divide by, which is computed from V once and kept; in training None."""
        if torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() or self.training:
            self._norm_of_answers.drop()
            return None
        sources = self.base.weight, self.lora_A, self.lora_B, self.scaling
        norm = self._norm_of_answers.get(*sources)
        return self._norm_of_answers.put(F.threshold(self.weight_norm(), 0, 1), *sources) if norm is None else norm

    def refresh(self) -> None:
        """Take ‖W‖ anew and forget ‖V‖: needed only after a write that autograd does not see, as through `.data`."""
        self._W2_of.drop()
        self._norm_of_answers.drop()
        self._W2 = self._squares()

    def _squares(self) -> Tensor:
        """‖W‖² per row, (d_out,), in float32 at least."""
        W, compiling = self.base.weight, torch.compiler.is_compiling()
        # The fused steps of a base that trains too are not counted as writes.
        if not W.requires_grad and (kept := self._W2 if compiling else self._W2_of.get(W)) is not None:
            return kept
        with torch.inference_mode(False), torch.no_grad():
            dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
            norms = [vector_norm(rows, dim=1, dtype=dtype) for rows in frozen_weight(self.base).split(512)]
            W2 = torch.cat(norms).square()
        return W2 if compiling else self._W2_of.put(W2, W)

    def _effective(self, W: Tensor) -> Tensor:
        """m / ‖V‖ · V, (d_out, d_in)."""
        V = super()._effective(W)
        norm = F.threshold(vector_norm(V.detach(), dim=1), 0, 1)
        return (self.magnitude / norm)[:, None] * V

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
