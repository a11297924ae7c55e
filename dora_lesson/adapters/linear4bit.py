"""A frozen linear layer as adapters use it, in 16 or 32 bits or in bitsandbytes' 4: its products and its rows.

Shapes: W (d_out, d_in), x (tokens, d_in), A (r, d_in). A 4-bit layer is a `bitsandbytes.nn.Linear4bit`, NF4 or FP4,
with double quantization or without (QLoRA, Dettmers et al., arXiv 2305.14314, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dora_lesson.core import quiet_known_noise

_ROWS = 512  # rows in a piece

quiet_known_noise()  # bitsandbytes logs a line about a missing package on the first 4-bit product


def is_four_bit(layer: nn.Module) -> bool:
    """Whether the layer's weights are packed in 4 bits and come with what unpacks them."""
    return _held_state(layer) is not None


def frozen_product(base: nn.Linear, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias, (tokens, d_out), differentiable in x."""
    if not is_four_bit(base):
        return F.linear(x, base.weight, bias)
    y = _multiply(base, x).to(x.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def frozen_products(base: nn.Linear, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ, (tokens, d_out), differentiable in x, and W Aᵀ, (d_out, r), a constant."""
    if is_four_bit(base):
        products: tuple[Tensor, Tensor] = _FourBitProducts.apply(x, A.detach(), base)
        return products
    with torch.no_grad():
        # In blocks of rows: a CPU takes up to 60 % longer for one product with so thin a factor.
        WA = torch.cat([rows @ A.to(rows.dtype).T for rows in base.weight.split(2048)]).to(A.dtype)
    return F.linear(x.to(base.weight.dtype), base.weight), WA


class _FourBitProducts(torch.autograd.Function):
    """The tokens and the rows of A go through the layer together, so that W is unpacked once for both products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, base: Any) -> tuple[Tensor, Tensor]:
        y = _multiply(base, torch.cat([x, A.to(x.dtype)]))
        ctx.base, ctx.dtype = base, y.dtype
        WA = y[len(x) :].T.to(A.dtype, copy=True)
        ctx.mark_non_differentiable(WA)
        return y[: len(x)].to(x.dtype, copy=True), WA

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (dy.to(ctx.dtype) @ frozen_weight(ctx.base).to(ctx.dtype)).to(dy.dtype), None, None


def frozen_weight(base: nn.Linear) -> Tensor:
    """W, (d_out, d_in): the layer's own tensor, or its 4-bit weights unpacked."""
    if not is_four_bit(base):
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    state = quant_state(base)
    W: Tensor = dequantize_4bit(base.weight.view(-1, 1), state)
    return W


def iter_dequantized_rows(base: nn.Linear) -> Iterator[tuple[slice, Tensor]]:
    """W in pieces of some hundred rows, in order, each with the slice of rows that it holds."""
    W = frozen_weight(base)
    for start in range(0, len(W), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, W[rows]


def linear_like(base: Any, W: Tensor, four_bit: bool = False) -> nn.Linear:
    """A frozen layer of the base's shape, bias and dtype that holds W; of its kind of 4 bits, if `four_bit`."""
    dtype = base.weight.quant_state.dtype if is_four_bit(base) else base.weight.dtype
    d_out, d_in = W.shape
    has_bias = base.bias is not None
    layer: nn.Linear
    if four_bit:
        import bitsandbytes as bnb

        packed = base.weight
        settings = {"quant_type": packed.quant_type, "compress_statistics": packed.compress_statistics}
        layer = bnb.nn.Linear4bit(d_in, d_out, has_bias, base.compute_dtype, device="meta", **settings)
        params = bnb.nn.Params4bit(W.to(dtype), False, blocksize=packed.blocksize, **settings)
        layer.weight = params.to(W.device)
    else:
        layer = nn.utils.skip_init(nn.Linear, d_in, d_out, has_bias, device=W.device, dtype=dtype)
        layer.requires_grad_(False).weight.copy_(W)
    if has_bias:
        layer.bias = nn.Parameter(base.bias.detach().clone())
    return layer.requires_grad_(False)


def restore_order(model: nn.Module) -> None:
    """Put the bytes of all 4-bit layers back in the order that a backward pass can read.

    Where bitsandbytes has reordered them for answers, its product has no backward pass: a layer without an adapter
    would give no gradient to the layers below it, with no more than a warning.
    """
    for layer in model.modules():
        if is_four_bit(layer):
            quant_state(layer)


def _multiply(base: Any, x: Tensor) -> Tensor:
    """x Wᵀ of a 4-bit layer in its compute dtype, differentiable in x.

    The layer's own forward pass would reorder its bytes on some CPUs (see `quant_state`).
    """
    from bitsandbytes import matmul_4bit

    state = quant_state(base)
    y: Tensor = matmul_4bit(x.to(base.compute_dtype or x.dtype), base.weight, quant_state=state)
    return y


def quant_state(base: Any) -> Any:
    """The layer's QuantState, with the layer's bytes in the order that it expects.

    On some CPUs bitsandbytes reorders a layer's bytes when the layer answers in eval mode, and then can no longer
    unpack them; writing a state dict puts them back in order.
    """
    if getattr(_held_state(base), "packing_format_for_cpu", False):
        base.state_dict()
    return _held_state(base)


def _held_state(layer: Any) -> Any:
    """The QuantState of the weight, or else of the layer; None for a layer that is not in 4 bits."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state
