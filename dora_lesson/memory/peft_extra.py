"""What PEFT's layers take in a training step above this package's."""

from __future__ import annotations

from typing import Any


def peft_extra(
    dora: bool, adapted: list[Any], tokens: int, blocks: int, gradient_checkpointing: bool
) -> tuple[int, int]:
    """Bytes that PEFT's layers save, and form for a moment, above this package's.

    PEFT (0.21, `tuners/lora/layer.py` and `dora.py`) works in the adapter's float32 on a 16-bit base, so that outputs
    are there in two sizes; its DoRA forms the dense B·A and the weight's norm for every pass, by way of an identity
    matrix of d_in rows. The factors were read off measured steps of small Llamas in bfloat16, over 16-bit and 4-bit
    bases alike, and `tests/test_memory_fit.py` holds them to such a step:

    - for every output of an adapted layer and token, 2 bytes for LoRA and 6 for DoRA; with checkpointing 5 and 8 for
      the outputs of one block alone, since only one is whole at a time;
    - for DoRA, four float32 copies of the largest weight and one identity of the largest d_in, once.
    """
    outputs = sum(layer.out_features for layer in adapted)
    if gradient_checkpointing:
        saved = (8 if dora else 5) * outputs // blocks * tokens
    else:
        saved = (6 if dora else 2) * outputs * tokens
    largest, widest = max(x.weight.numel() for x in adapted), max(x.in_features for x in adapted)
    return saved, 16 * largest + 4 * widest**2 if dora else 0
