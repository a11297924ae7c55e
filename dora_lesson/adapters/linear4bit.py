"""A frozen linear layer as adapters use it, in 16 or 32 bits or in bitsandbytes' 4: its products and its rows.

Shapes: W (d_out, d_in), x (tokens, d_in), A (r, d_in). A 4-bit layer is a `bitsandbytes.nn.Linear4bit`, NF4 or FP4,
with double quantization or without (QLoRA, Dettmers et al., arXiv 2305.14314, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_four_bit(layer: nn.Module) -> bool:
    """Whether the layer's weights are packed in 4 bits and come with what unpacks them."""
    return isinstance(layer, nn.Linear) and _held_state(layer) is not None


def frozen_product(base: nn.Linear, x: Tensor) -> Tensor:
    """x Wᵀ, (..., d_out), differentiable in x."""
    return _multiply(base, x).to(x.dtype) if is_four_bit(base) else F.linear(x, frozen_weight(base))


def both_products(base: nn.Linear, x: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """x Wᵀ as `frozen_product` gives it, and `projection(W, A)`, with 4-bit weights unpacked once for both."""
    if is_four_bit(base):
        return _FourBitProducts.apply(x, A.detach(), base)  # type: ignore[no-any-return]
    return frozen_product(base, x), projection(frozen_weight(base), A)


@torch.no_grad()
def projection(W: Tensor, A: Tensor) -> Tensor:
    """W Aᵀ, (d_out, r), a constant, in the dtype of A, which is float32 at least.

    In blocks of rows: a CPU takes up to 60 % longer for one product with so thin a factor.
    """
    with torch.autocast(A.device.type, enabled=False):
        blocks = [rows.to(A.dtype) @ A.T for rows in W.split(len(W) if W.is_cuda else 2048)]
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]


def _multiply(base: Any, x: Tensor) -> Tensor:
    """x Wᵀ of a 4-bit layer in the dtype that it computes in."""
    from bitsandbytes import matmul_4bit

    state = readable_quant_state(base)
    return matmul_4bit(x.to(_compute_dtype(base, x)), base.weight, quant_state=state)  # type: ignore[no-any-return]


class _FourBitProducts(torch.autograd.Function):
    """x Wᵀ and W Aᵀ, with W unpacked once for both."""

    @staticmethod
    def forward(x: Tensor, A: Tensor, base: Any) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(base, x)
        with torch.autocast(x.device.type, enabled=False):
            W = frozen_weight(base)
            return F.linear(x.to(dtype), W.to(dtype)).to(x.dtype), projection(W, A)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.base = inputs[2]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        with torch.autocast(dy.device.type, enabled=False):
            dtype = _compute_dtype(ctx.base, dy)
            return (dy.to(dtype) @ frozen_weight(ctx.base).to(dtype)).to(dy.dtype), None, None


def _compute_dtype(base: Any, x: Tensor) -> torch.dtype:
    return base.compute_dtype or x.dtype


def is_called_plainly(base: nn.Module) -> bool:
    """Whether calling the layer does what `nn.Linear` or bitsandbytes' `Linear4bit` does, and no more."""
    own = nn.Linear.forward
    if is_four_bit(base):
        from bitsandbytes.nn import Linear4bit

        own = Linear4bit.forward
    hooks = base._forward_pre_hooks or base._forward_hooks or base._backward_pre_hooks or base._backward_hooks
    return type(base).forward is own and "forward" not in base.__dict__ and not hooks


def frozen_weight(base: nn.Linear) -> Tensor:
    """W, (d_out, d_in): the layer's own tensor, or its 4-bit weights unpacked.

    Raises:
        ValueError: the weights are on the meta device, not loaded or offloaded since.
    """
    if not is_four_bit(base):
        if base.weight.is_meta:
            raise ValueError("The base has its weights on the meta device: load them first, and do not offload them.")
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    state = readable_quant_state(base)  # it puts the bytes in order, so it comes before they are read
    return dequantize_4bit(base.weight.view(-1, 1), state)  # type: ignore[no-any-return]


def linear_like(base: Any, W: Tensor, four_bit: bool = False) -> nn.Linear:
    """A frozen layer that holds W, with the base's bias and dtype: a full-size one, or 4-bit as the base is."""
    d_out, d_in = W.shape
    state = readable_quant_state(base) if is_four_bit(base) else None
    dtype = state.dtype if state else base.weight.dtype
    layer: nn.Linear
    if four_bit and state:
        import bitsandbytes as bnb

        settings = {"quant_type": state.quant_type, "compress_statistics": state.nested}
        settings["quant_storage"] = base.weight.dtype
        layer = bnb.nn.Linear4bit(d_in, d_out, base.bias is not None, base.compute_dtype, device="meta", **settings)
        layer.weight = bnb.nn.Params4bit(W.to(dtype), False, blocksize=state.blocksize, **settings).to(W.device)
    else:
        layer = nn.Linear(d_in, d_out, base.bias is not None, device="meta")
        layer.weight = nn.Parameter(W.to(dtype))
    if base.bias is not None:
        # An answer of bitsandbytes may have left the bias in the dtype of its input.
        layer.bias = nn.Parameter(base.bias.detach().to(dtype, copy=True))
    return layer.requires_grad_(False)


def require_base(base: nn.Module) -> None:
    """Refuse what cannot be the base of an adapter, in a sentence."""
    kind = type(base).__name__
    if hasattr(base, "lora_A") or hasattr(base, "base_layer"):
        raise TypeError(f"The base is a {kind}, which already holds an adapter: pass the plain nn.Linear inside it.")
    if not isinstance(base, nn.Linear):
        kind = f"{type(base).__module__}.{kind}" if kind == "Linear" else kind  # a quantized one of torch's own
        raise TypeError(f"The base is a {kind}, but an nn.Linear is expected: pass one linear layer.")
    W, shape = base.weight, (base.out_features, base.in_features)
    if isinstance(W, nn.parameter.UninitializedParameter):
        raise ValueError(f"The base is a {kind} that has not seen an input yet: pass it one, then adapt it.")
    if type(W).__name__ in ("Params4bit", "Int8Params") and not is_four_bit(base):
        raise TypeError(f"The base is a {kind} that is not packed: pass a 16-bit layer, or a 4-bit one on its device.")
    if W.is_meta:
        raise ValueError("The base has its weights on the meta device: load them first, without offload.")
    if W.is_inference():
        raise ValueError("The base was made in inference mode, where nothing can be trained: make it outside of it.")
    if is_four_bit(base):
        d_in, block = base.in_features, readable_quant_state(base).blocksize
        if d_in % block:  # bitsandbytes unpacks such rows wrongly on a CPU
            raise ValueError(f"The base has d_in={d_in}, not a multiple of its block size {block}: keep it in 16 bits.")
    elif not W.is_floating_point() or W.element_size() < 2:
        raise TypeError(f"The base holds {W.dtype} weights: pass a 16-bit or 32-bit layer, or a 4-bit one.")
    elif tuple(W.shape) != shape:
        raise TypeError(f"The base is a {kind} with a weight of shape {tuple(W.shape)}, but {shape} is expected.")


def restore_packed_bytes(model: nn.Module) -> None:
    """Put the bytes of all 4-bit layers back in the order that a backward pass and an adapter can read, and keep them.

    Where bitsandbytes has reordered them for answers, its product has no backward pass: a layer without an adapter
    would give no gradient to the layers below it, with no more than a warning. PEFT's DoRA then takes the norm of bytes
    in the wrong order, and answers nonsense. Call it after `model.eval()`.
    """
    for layer in model.modules():
        if is_four_bit(layer):
            readable_quant_state(layer)
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Module) and is_four_bit(base):
            base.train()  # PEFT's adapters read the bytes themselves: a layer in train mode is not reordered


def readable_quant_state(base: Any) -> Any:
    """The layer's QuantState, with the layer's bytes in the order that it expects.

    On some CPUs bitsandbytes reorders a layer's bytes when the layer answers in eval mode, and then can no longer
    unpack them; writing a state dict puts them back in order.
    """
    if getattr(_held_state(base), "packing_format_for_cpu", False):
        base.state_dict()
        base.scales_are_rounded = True  # on that way, by 0.2 % of the weight on average
    return _held_state(base)


def _held_state(layer: Any) -> Any:
    """The QuantState of the weight, or else of the layer; None for a layer that is not in 4 bits."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state
