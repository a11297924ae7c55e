"""Which setup of a fine-tune fits a card: PEFT's layers, 16-bit or 4-bit base, checkpointing, batch size."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dora_lesson.advisor.request import Request, Shape
from dora_lesson.core import METHODS
from dora_lesson.evidence.published import load_published
from dora_lesson.memory.estimate import MemoryEstimate, adapter_parameters, estimate

BATCHES = (1, 2, 4, 8)
SPARE_BYTES, SPARE_SHARE = 10**9, 0.07  # for CUDA's context and the allocator's gaps, which no estimate counts


class Parameters(NamedTuple):
    """How many parameters the base has, and how many LoRA and DoRA train, on all linear layers."""

    base: int
    lora: int
    dora: int


@dataclass(frozen=True)
class TrainingSetup:
    """How one method is trained, with the bytes of a step: with this course's layers, and with PEFT's.

    `peak` is what one GPU holds at the peak of a step with PEFT's layers; the two estimates are of all that is held.
    """

    method: str
    r: int
    sequence_length: int
    batch_size: int
    gradient_checkpointing: bool
    gradient_accumulation_steps: int
    optimizer: str
    parameters: Parameters
    estimate: MemoryEstimate
    peft: MemoryEstimate
    peak: int

    @property
    def is_dora(self) -> bool:
        """Whether the adapter is DoRA's."""
        return METHODS[self.method].adapter == "dora"

    @property
    def four_bit(self) -> bool:
        """Whether the base is in 4 bits."""
        return METHODS[self.method].four_bit

    def sequences(self, gpus: int) -> int:
        """How many sequences make a step on so many GPUs."""
        return self.batch_size * self.gradient_accumulation_steps * gpus

    @property
    def trained(self) -> int:
        """How many parameters are trained."""
        return self.parameters.dora if self.is_dora else self.parameters.lora


def usable_bytes(vram_gb: float) -> int:
    """What of a card may be planned: all but 1 GB or 7 %, whichever is more. A GB is 1e9 bytes."""
    return int(vram_gb * 1e9 - max(SPARE_BYTES, SPARE_SHARE * vram_gb * 1e9))


def needed_gb(peak: int) -> float:
    """The card, in GB, on which that peak may be planned: the inverse of `usable_bytes`."""
    return max(peak + SPARE_BYTES, peak / (1 - SPARE_SHARE)) / 1e9


def find_setup(request: Request, method: str) -> TrainingSetup | None:
    """The first setup of this method that fits the card of the request, or None.

    The order is: no checkpointing before checkpointing, which runs each block's forward pass twice; within each, the
    larger batch before the smaller; then checkpointing with 8-bit AdamW. Over 4 bits these leave the room that
    published runs took beyond the estimate. Last, and alone where memory is first, comes the setup that takes least.
    """
    if request.priority != "memory" and (chosen := _with_room_to_spare(request, method)):
        return chosen
    least = smallest_setup(request, method)
    return least if least.peak <= usable_bytes(request.vram_gb) else None


def is_tight(request: Request, setup: TrainingSetup) -> bool:
    """Whether a step as far above the estimate as published 4-bit runs were would not fit the card."""
    return setup.peak > _room(request, setup.method)


def _room(request: Request, method: str) -> float:
    above = load_published("memory/above the estimate %/4 bits/highest") if METHODS[method].four_bit else 0
    return usable_bytes(request.vram_gb) / (1 + above / 100)


def _with_room_to_spare(request: Request, method: str) -> TrainingSetup | None:
    room = _room(request, method)
    share = max(1, request.effective_batch_size // request.gpus)  # of a step's sequences, for each GPU
    batches = [size for size in BATCHES if size == 1 or share % size == 0]
    for checkpointing, optimizer in [(False, request.optimizer), (True, request.optimizer), (True, _least(request))]:
        fitting = None
        for batch_size in batches:
            larger = training_setup(request, method, batch_size, checkpointing, optimizer)
            if larger.peak > room:
                break  # and so are all after it
            fitting = larger
        if fitting:
            return fitting
    return None


def smallest_setup(request: Request, method: str) -> TrainingSetup:
    """The setup of a method that takes least: checkpointing, one sequence a pass, 8-bit AdamW where it can be had."""
    return training_setup(request, method, 1, True, _least(request))


def _least(request: Request) -> str:
    return "adamw" if request.device == "mps" or request.trainer == "fsdp" else "adamw_8bit"


def fits(request: Request, method: str) -> bool:
    """Whether the smallest setup of this method fits the card."""
    return smallest_setup(request, method).peak <= usable_bytes(request.vram_gb)


def training_setup(
    request: Request, method: str, batch_size: int, gradient_checkpointing: bool, optimizer: str
) -> TrainingSetup:
    """One setup with its memory, whether it fits anywhere or not. Adapters on all linear layers.

    Raises:
        ValueError: as in `memory.estimate`.
    """
    gpus = request.gpus if request.trainer == "fsdp" else 1  # ZeRO-2 shards no weights: each GPU holds all
    passes = max(1, request.effective_batch_size // (batch_size * request.gpus))
    sizes = (request.r, request.sequence_length, batch_size)
    return _setup(request.shape, method, *sizes, gradient_checkpointing, request.dtype, optimizer, passes, gpus)


def count_parameters(request: Request) -> Parameters:
    """The parameters of the request's model and of the adapters on it."""
    return _parameters(request.shape, request.r)


@functools.cache  # an estimate takes a tenth of a second, and a slider asks often
def _setup(
    shape: Shape,
    method: str,
    r: int,
    sequence_length: int,
    batch_size: int,
    checkpointing: bool,
    dtype: torch.dtype,
    optimizer: str,
    passes: int,
    gpus: int,
) -> TrainingSetup:
    ours, theirs = (
        estimate(
            shape.config,
            method,
            batch_size=batch_size,
            sequence_length=sequence_length,
            r=r,
            dtype=dtype,
            optimizer=optimizer,
            gradient_checkpointing=checkpointing,
            gradient_accumulation_steps=passes,
            peft=peft,
        )
        for peft in (False, True)
    )
    peak = theirs.total if gpus == 1 else sharded_peak(theirs, shape.config, gpus)
    settings = (r, sequence_length, batch_size, checkpointing, passes, optimizer)
    return TrainingSetup(method, *settings, _parameters(shape, r), ours, theirs, peak)


def sharded_peak(whole: MemoryEstimate, config: Any, gpus: int) -> int:
    """Bytes that each of several GPUs holds at the peak where FSDP shards weights, gradients and states.

    Beside its share and its own activations, a GPU holds gathered: embedding and output layer for the whole pass, and
    two blocks, one that is worked on and one that is fetched.
    """
    parts = whole.parts
    root = 2 * config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    blocks = parts["weights"] + parts["quantization constants"] - root
    gathered = root + 2 * blocks // config.num_hidden_layers
    return (whole.held + parts["gradients"]) // gpus + gathered + parts["activations"] + parts["temporaries"]


@functools.cache
def _parameters(shape: Shape, r: int) -> Parameters:
    lora, total = adapter_parameters(shape.config, "lora", r=r)
    return Parameters(total - lora, lora, adapter_parameters(shape.config, "dora", r=r)[0])
