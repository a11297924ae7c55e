"""A frozen linear layer as adapters use it, in 16 or 32 bits or in bitsandbytes' 4: its product and its rows.

Shapes: W (d_out, d_in), x (tokens, d_in). A 4-bit layer is a `bitsandbytes.nn.Linear4bit`, NF4 or FP4, with double
quantization or without (QLoRA, Dettmers et al., arXiv 2305.14314, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 512  # rows unpacked at a time


def is_four_bit(layer: nn.Module) -> bool:
    """Whether the layer's weights are packed in 4 bits and come with what unpacks them."""
    return _held_state(layer) is not None


def before_sharding(layer: Any, device: torch.device) -> None:
    """Make a 4-bit layer's weight an ordinary tensor of bytes, and let the layer itself keep what unpacks it.

    A tensor that is cut up and put together again comes back as an ordinary one (see `sharding`). What unpacks the
    weights, a thirtieth of their size, goes to the device whole.
    """
    layer.quant_state = _quant_state(layer)
    layer.quant_state.to(device)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Tensor), requires_grad=False)


def block_size(layer: Any) -> int:
    """How many neighbouring weights of a 4-bit layer share one scale."""
    size: int = _held_state(layer).blocksize
    return size


def frozen_product(base: nn.Linear, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias, (tokens, d_out), differentiable in x."""
    if not is_four_bit(base):
        return F.linear(x, base.weight, bias)
    from bitsandbytes import matmul_4bit

    y: Tensor = matmul_4bit(x.to(_compute_dtype(base, x)), base.weight, quant_state=_quant_state(base)).to(x.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def frozen_products(base: nn.Linear, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ, (tokens, d_out), differentiable in x, and W Aᵀ, (d_out, r), a constant; a 4-bit W is unpacked once."""
    if is_four_bit(base):
        # One product for tokens and rows of A, and so one unpacking of W; A and W take no gradient.
        product: tuple[Tensor, Tensor] = _FourBitProducts.apply(x, A.detach(), base)
        return product
    with torch.no_grad():
        # In blocks of rows: on a CPU, one product with so thin a factor takes up to a third longer.
        WA = torch.cat([rows @ A.to(rows.dtype).T for rows in base.weight.split(2048)]).to(A.dtype)
    return F.linear(x.to(base.weight.dtype), base.weight), WA


class _FourBitProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, base: Any) -> tuple[Tensor, Tensor]:
        from bitsandbytes import matmul_4bit

        ctx.base, ctx.dtype = base, _compute_dtype(base, x)
        rows = torch.cat([x.to(ctx.dtype), A.to(ctx.dtype)])
        both = matmul_4bit(rows, base.weight, quant_state=_quant_state(base))
        WA = both[len(x) :].T.to(A.dtype, copy=True)
        ctx.mark_non_differentiable(WA)
        return both[: len(x)].to(x.dtype, copy=True), WA

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (dy.to(ctx.dtype) @ dequantized(ctx.base, ctx.dtype)).to(dy.dtype), None, None


def frozen_weight(base: nn.Linear) -> Tensor:
    """W, (d_out, d_in): the layer's own tensor, or its 4-bit weights unpacked."""
    return dequantized(base) if is_four_bit(base) else base.weight


def linear_like(base: Any, W: Tensor, four_bit: bool = False) -> nn.Linear:
    """A frozen layer of the base's shape, bias and dtype that holds W; of its kind of 4 bits, if `four_bit`."""
    dtype = base.weight.quant_state.dtype if is_four_bit(base) else base.weight.dtype
    d_out, d_in = W.shape
    layer: nn.Linear
    if four_bit:
        import bitsandbytes as bnb

        packed = base.weight
        settings = {"quant_type": packed.quant_type, "compress_statistics": packed.compress_statistics}
        layer = bnb.nn.Linear4bit(d_in, d_out, base.bias is not None, base.compute_dtype, device="meta", **settings)
        layer.weight = bnb.nn.Params4bit(
            W.to(packed.quant_state.dtype), False, blocksize=packed.blocksize, **settings
        ).to(W.device)
        if base.bias is not None:
            layer.bias = nn.Parameter(base.bias.detach().clone())
        return layer.requires_grad_(False)
    layer = nn.utils.skip_init(nn.Linear, d_in, d_out, base.bias is not None, device=W.device, dtype=dtype)
    layer.requires_grad_(False).weight.copy_(W)
    if base.bias is not None:
        layer.bias.copy_(base.bias)
    return layer


def dequantized(base: Any, dtype: torch.dtype | None = None) -> Tensor:
    """W of a 4-bit layer, (d_out, d_in), as its own product uses it."""
    from bitsandbytes.functional import dequantize_4bit

    state = _quant_state(base)
    W: Tensor = dequantize_4bit(base.weight.view(-1, 1), state)
    return W if dtype is None else W.to(dtype)


def _compute_dtype(base: Any, x: Tensor) -> torch.dtype:
    dtype: torch.dtype = base.compute_dtype or x.dtype
    return dtype


def _quant_state(base: Any) -> Any:
    """What unpacks a 4-bit layer's weights, and the weights in the order that it expects.

    On some CPUs bitsandbytes reorders a layer's bytes when the layer answers in eval mode, and then can no longer
    unpack them; a state dict is written from bytes put back in order.
    """
    if getattr(_held_state(base), "packing_format_for_cpu", False):
        base.state_dict()
    return _held_state(base)


def _held_state(layer: Any) -> Any:
    """What the weight holds, else what the layer does; None for a layer that is not in 4 bits."""
    held = getattr(getattr(layer, "weight", None), "quant_state", None)
    return getattr(layer, "quant_state", None) if held is None else held


def restore_order(model: nn.Module) -> None:
    """Put the bytes of all 4-bit layers back in the order that a backward pass can read.

    Where bitsandbytes has reordered them for answers, its product has no backward pass: a layer without an adapter
    would give no gradient to the layers below it, with no more than a warning.
    """
    for layer in model.modules():
        if is_four_bit(layer):
            _quant_state(layer)


def iter_dequantized_rows(base: Any) -> Iterator[tuple[slice, Tensor]]:
    """W in pieces of some hundred rows, in order, each with the slice of rows that it holds."""
    from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

    d_in = base.in_features
    pieces = [slice(i, min(i + _ROWS, base.out_features)) for i in range(0, base.out_features, _ROWS)]
    if not is_four_bit(base):
        yield from ((rows, base.weight[rows]) for rows in pieces)
        return
    state = _quant_state(base)
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    blocks, packed = absmax.view(-1, d_in // state.blocksize), base.weight.view(-1, d_in // 2)
    settings = {"code": state.code, "blocksize": state.blocksize, "quant_type": state.quant_type, "dtype": state.dtype}
    for rows in pieces:
        shape = torch.Size((rows.stop - rows.start, d_in))
        piece = QuantState(blocks[rows].flatten(), shape=shape, **settings)
        yield rows, dequantize_4bit(packed[rows].reshape(-1, 1), piece)
