"""The design of an experiment: a YAML file that names arms, rates and seeds, read and checked before anything runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dora_lesson.evidence import detectable

METHODS = ("lora", "dora", "full", "qlora", "qdora")
DESIGN = Path(__file__).parent / "configs" / "sweep.yaml"
_LINE = {"methods": None, "ranks": [0], "alpha_over_r": 0.0, "lora_dropout": 0.0, "A_spread": 0.0, "rates": None}


@dataclass(frozen=True)
class Setting:
    """All that decides a run.

    `base` None is the embedded model. `A_spread` is the standard deviation of A at the start, if it is drawn from a
    normal distribution; 0 is PEFT's start, Kaiming uniform.
    """

    base: str | None
    method: str
    r: int
    lora_alpha: float
    lora_dropout: float
    A_spread: float
    target_modules: tuple[str, ...]
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    split: str
    held_out: int
    dtype: str
    schedule: str = "linear, a tenth of the steps of warm-up; AdamW without weight decay"

    @property
    def name(self) -> str:
        """Of the record's file: what tells the runs of one design apart."""
        size = f"-r{self.r}-alpha{self.lora_alpha:g}" if self.r else ""
        return f"{self.method}{size}-rate{self.learning_rate:g}-{self.split}-seed{self.seed}"


@dataclass(frozen=True)
class Design:
    """What a design file says: the arms, each with the rates to try, and the seeds of the runs to compare.

    `spread` is the standard deviation of a paired difference in held-out loss that is expected, in nats a token.
    """

    arms: list[tuple[Setting, list[float]]]
    tuning_seed: int
    seeds: list[int]
    spread: float
    command: str

    def __str__(self) -> str:
        tuned = [rates for _, rates in self.arms if len(rates) > 1]
        runs = len(self.arms) * len(self.seeds)
        found = detectable(self.spread, len(self.seeds))
        return (
            f"{len(self.arms)} arms: {sum(map(len, tuned))} runs to tune the rates of {len(tuned)} of them, and {runs} "
            f"to compare, {len(self.seeds)} seeds each.\n"
            f"If paired differences spread by {self.spread:g} nats a token, the smallest that this design detects "
            f"(5 % level, four times in five) is {found:.3f}."
        )


def read_design(path: str | Path | None = None, base: str | None = None) -> Design:
    """Read and check a design; None is the course's own. `base` replaces the one that the file names.

    Raises:
        ValueError: the file is not there, or says what no run can be made of; the message says what is expected.
    """
    options = [f" --design {path}" if path else "", f" --base {base}" if base else ""]
    path = Path(path or DESIGN)
    if not path.is_file():
        raise ValueError(f"There is no design {path}: copy {DESIGN.name} of dora_lesson/configs and change it.")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML ({' '.join(str(error).split())}).") from None
    top = set(yaml.safe_load(DESIGN.read_text(encoding="utf-8")))
    _require(isinstance(said, dict) and set(said) == top, path, f"the keys {', '.join(sorted(top))} are expected")
    seeds, spread = said["seeds"], said["spread"]
    _require(_list_of(seeds, int) and len(set(seeds)) == len(seeds), path, "seeds are a list of different numbers")
    _require(said["tuning_seed"] not in seeds, path, "tuning_seed is one of seeds; take one that no compared run has")
    _require(isinstance(spread, int | float) and spread > 0, path, f"spread is {spread!r}, but a number above 0")
    common = {key: said[key] for key in ("steps", "batch_size", "held_out", "dtype")}
    common["target_modules"] = tuple(said["target_modules"])
    for key in ("steps", "batch_size", "held_out"):
        _require(
            isinstance(said[key], int) and said[key] > 0, path, f"{key} is {said[key]!r}, but a whole number from 1"
        )
    arms = []
    for line in said["arms"]:
        known = isinstance(line, dict) and set(line) <= set(_LINE) and {"methods", "rates"} <= set(line)
        _require(known, path, f"an arm {line!r}: methods and rates are expected, and may be {', '.join(_LINE)}")
        line = {**_LINE, **line}
        _require(_list_of(line["rates"], float), path, f"rates are {line['rates']!r}, but a list such as [1.0e-3]")
        for r, method in itertools.product(line["ranks"], line["methods"]):
            _require(method in METHODS, path, f"method is {method!r}, but one of {', '.join(METHODS)} is expected")
            _require(method == "full" or (isinstance(r, int) and r > 0), path, f"{method} needs ranks, from 1 on")
            numbers: dict[str, Any] = {"r": r, "lora_alpha": r * line["alpha_over_r"], "learning_rate": 0.0, "seed": 0}
            numbers |= {key: line[key] for key in ("lora_dropout", "A_spread")}
            setting = Setting(base=base or said["base"], method=method, split="", **numbers, **common)
            arms.append((setting, line["rates"]))
    tuned = [setting.name for setting, rates in arms if len(rates) > 1]
    _require(len(set(tuned)) == len(tuned), path, "two arms to tune have method, rank and lora_alpha in common")
    return Design(arms, said["tuning_seed"], seeds, spread, "python -m dora_lesson experiment" + "".join(options))


def _require(holds: Any, path: Path, message: str) -> None:
    if not holds:
        raise ValueError(f"{path.name}: {message}.")


def _list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(entry) is kind for entry in value)
