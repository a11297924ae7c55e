"""How long to train: steps, epochs and warm-up from the number of examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_STEPS = 100  # fewer teach little, however few the chats are


def kept_aside(examples: int) -> int:
    """Of the examples, those that the script judges and does not train on: one in ten, and 200 or so at most."""
    return examples // max(10, examples // 200)


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps, the passes over the examples that they make, and the steps of them that warm up.

    The last step of a pass takes what is left: the trainer carries no example over into the next.
    """

    steps: int
    epochs: float
    warmup_steps: int


def schedule(examples: int, batch_size: int) -> Schedule:
    """One pass over the examples, and `LEAST_STEPS` at least; a tenth of the steps warms up."""
    a_pass = math.ceil(examples / batch_size)
    steps = max(LEAST_STEPS, a_pass)
    return Schedule(steps, steps / a_pass, max(1, steps // 10))
