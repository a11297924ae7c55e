"""Measurements that a lesson may rest on: here, times that are fair to compare within one run."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn


def time_in_turns(layers: dict[str, nn.Module], x: Tensor, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a forward and backward pass of each layer, the layers taking turns.

    Taking turns lets whatever else the machine does hit all layers alike: compare ratios within one call.

    Args:
        layers: name to layer; all map x (..., d_in) to the same shape.
        x: the input, on the layers' device.
        rounds: timed turns a layer, after one that is not counted.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but at least one timed round is expected: pass 7 or more.")
    times: dict[str, list[float]] = {name: [] for name in layers}
    x = x.detach().requires_grad_()
    dy = torch.randn_like(next(iter(layers.values()))(x))
    order = [*layers]
    for _ in range(rounds + 1):
        for name in order:
            _wait(x)
            started = time.perf_counter()
            layers[name](x).backward(dy)
            _wait(x)
            times[name].append(time.perf_counter() - started)
            x.grad = None
            layers[name].zero_grad()
        order = order[1:] + order[:1]  # nobody always runs after the one that leaves the memory in disarray
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
