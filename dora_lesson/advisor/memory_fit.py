"""Which setting of a fine-tune fits a card: PEFT's layers, 16-bit or 4-bit base, checkpointing, batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dora_lesson.memory.estimate import MemoryEstimate, adapter_parameters, estimate

EFFECTIVE_BATCH = 16  # sequences a step; what does not go through at once is accumulated
BATCHES = (1, 2, 4, 8)
SPARE_BYTES, SPARE_SHARE = 10**9, 0.07  # for CUDA's context and the allocator's gaps, which no estimate counts


@dataclass(frozen=True)
class Fit:
    """A setting of one method, what `memory.estimate` expects of it, and what PEFT's layers take besides (bytes)."""

    method: str
    r: int
    sequence_length: int
    batch_size: int
    gradient_checkpointing: bool
    expected: MemoryEstimate
    peft_extra: int

    @property
    def gradient_accumulation_steps(self) -> int:
        """Passes a step, so that a step sees `EFFECTIVE_BATCH` sequences."""
        return EFFECTIVE_BATCH // self.batch_size

    @property
    def peak(self) -> int:
        """Bytes at the peak of a step with PEFT's layers."""
        return self.expected.total + self.peft_extra


def usable_bytes(vram_gb: float) -> int:
    """What of a card may be planned: all but 1 GB or 7 %, whichever is more. A GB is 1e9 bytes."""
    return int(vram_gb * 1e9 - max(SPARE_BYTES, SPARE_SHARE * vram_gb * 1e9))


def needed_gb(peak: int) -> float:
    """The card, in GB, on which that peak may be planned: the inverse of `usable_bytes`."""
    return max(peak + SPARE_BYTES, peak / (1 - SPARE_SHARE)) / 1e9


def find_fit(
    config: Any,
    method: str,
    room: int,
    *,
    sequence_length: int,
    r: int,
    dtype: torch.dtype = torch.bfloat16,
    frugal: bool = False,
) -> Fit | None:
    """The first setting of this method that fits in `room` bytes, or None.

    The order is: no checkpointing before checkpointing, which runs each block's forward pass twice; within each, the
    larger batch before the smaller. `frugal` looks at the setting that takes least alone: checkpointing, one sequence a
    pass.
    """
    for again in (True,) if frugal else (False, True):
        found = None
        for size in (1,) if frugal else BATCHES:
            larger = setting(config, method, size, again, sequence_length=sequence_length, r=r, dtype=dtype)
            if larger.peak > room:
                break  # and so are all after it
            found = larger
        if found:
            return found
    return None


def setting(
    config: Any,
    method: str,
    batch_size: int,
    gradient_checkpointing: bool,
    *,
    sequence_length: int,
    r: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Fit:
    """One setting with its memory, whether it fits anywhere or not. Adapters on all linear layers, AdamW.

    Raises:
        ValueError: as in `memory.estimate`.
    """
    key = (config.to_json_string(), method, batch_size, gradient_checkpointing, sequence_length, r, dtype)
    if key not in _seen:
        expected = estimate(
            config,
            method,
            batch_size=batch_size,
            sequence_length=sequence_length,
            r=r,
            dtype=dtype,
            gradient_checkpointing=gradient_checkpointing,
            gradient_accumulation_steps=EFFECTIVE_BATCH // batch_size,
        )
        extra = peft_extra(config, method, batch_size * sequence_length, gradient_checkpointing)
        _seen[key] = Fit(method, r, sequence_length, batch_size, gradient_checkpointing, expected, extra)
    return _seen[key]


# An estimate takes a tenth of a second, counting a thirtieth, and a slider asks often.
_seen: dict[tuple[Any, ...], Fit] = {}
_counted: dict[tuple[str, str, int], tuple[int, int]] = {}


def parameters(config: Any, method: str, r: int) -> tuple[int, int]:
    """`memory.adapter_parameters` of "lora" or "dora" on all linear layers, (trainable, total), remembered."""
    key = (config.to_json_string(), method, r)
    if key not in _counted:
        _counted[key] = adapter_parameters(config, method, r=r)
    return _counted[key]


def peft_extra(config: Any, method: str, tokens: int, gradient_checkpointing: bool) -> int:
    """Bytes that PEFT's layers take above `memory.estimate`, which counts this course's.

    PEFT (0.21, `tuners/lora/layer.py` and `dora.py`) works in the adapter's float32 on a 16-bit base, so that outputs
    are there in two sizes; its DoRA forms the dense B·A and the weight's norm for every pass, by way of an identity
    matrix of d_in rows. The factors were read off measured steps of small Llamas in bfloat16, over 16-bit
    and 4-bit bases alike, and `tests/test_fitting.py` holds them to such a step:

    - for every output of an adapted layer and token, 2 bytes for LoRA and 6 for DoRA; with checkpointing 5 and 8 for
      the outputs of one block alone, since only one is whole at a time;
    - for DoRA, four float32 copies of the largest weight and one identity of the largest d_in, once.

    Args:
        config: of a Llama; all linear layers have adapters.
        method: lora, dora, qlora or qdora.
        tokens: of one pass.
        gradient_checkpointing: as in `estimate`.
    """
    dora = method.endswith("dora")
    outputs = parameters(config, "dora", 1)[0] - parameters(config, "lora", 1)[0]
    if gradient_checkpointing:
        passing = (8 if dora else 5) * outputs // config.num_hidden_layers * tokens
    else:
        passing = (6 if dora else 2) * outputs * tokens
    wide, narrow = config.intermediate_size, config.hidden_size
    return passing + (16 * wide * narrow + 4 * max(wide, narrow) ** 2 if dora else 0)
