"""Measurements that a lesson may rest on: recorded runs, paired comparisons, and times fair to compare."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dora_lesson.environment import DATA

PROVENANCE = ("command", "date", "hardware", "versions", "seeds")
_RECORDED = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")


def load_record(name: str) -> dict[str, Any]:
    """A recorded result of `data/records`, with the command, date, hardware, versions and seeds that made it.

    Raises:
        ValueError: no such record, a broken one, or one that does not say how it was made.
    """
    path = DATA / "records" / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise ValueError(f"There is no record {name!r}; there are: {there}.")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is no JSON ({error}): make it again with its command.") from None
    if missing := [key for key in PROVENANCE if not record.get(key)]:
        raise ValueError(f"The record {name!r} does not say its {missing[0]}: make it again with its command.")
    return record


def provenance(command: str, seeds: Sequence[int]) -> dict[str, Any]:
    """What a record says of how it was made: command, date, hardware, versions, seeds."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        hardware = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    versions = {name: importlib.metadata.version(name) for name in _RECORDED}
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {
        "command": command,
        "date": today,
        "hardware": hardware,
        "versions": {"python": platform.python_version(), **versions},
        "seeds": list(seeds),
    }


def _processor() -> str:
    """The processor's name; platform.processor() is empty on many a Linux."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.M)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % interval; `count` pairs went into it."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}, {self.count} pairs)"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of b − a over pairs (the same seed, or the same item) with Student's 95 % interval.

    Raises:
        ValueError: the lengths differ, or there are fewer than two pairs.
    """
    from scipy import stats

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"There are {len(a)} and {len(b)} values, but at least two pairs are expected.")
    differences = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(differences))


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
