"""The design of an experiment: a YAML file that names arms, rates and seeds, read and checked before anything runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dora_lesson.evidence.stats import detectable
from dora_lesson.training.paired_run import Setting

METHODS = ("lora", "dora", "full", "qlora", "qdora")
DESIGN = Path(__file__).parent / "sweep.yaml"
DTYPES = ("float32", "bfloat16", "float16")
_SIZE = ("ranks", "alpha_over_r", "lora_dropout", "A_spread")  # of adapters; full fine-tuning has none
PER_RUN: dict[str, Any] = {"learning_rate": 0.0, "seed": 0, "split": ""}  # what the runs of an arm get one by one


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
        raise ValueError(f"There is no design {path}: copy {DESIGN.name} of dora_lesson/experiments and change it.")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no YAML ({' '.join(str(error).split())}).") from None
    try:
        arms = _arms(said, base)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}.") from None
    return Design(
        arms, said["tuning_seed"], said["seeds"], said["spread"], "python -m dora_lesson experiment" + "".join(options)
    )


def _arms(said: Any, base: str | None) -> list[tuple[Setting, list[float]]]:
    """Check all that a design says, and return its arms."""
    top = set(yaml.safe_load(DESIGN.read_text(encoding="utf-8")))
    _require(isinstance(said, dict) and set(said) == top, f"the keys {', '.join(sorted(top))} are expected")
    seeds, tuning, targets = said["seeds"], said["tuning_seed"], said["target_modules"]
    _require(said["base"] is None or isinstance(said["base"], str), f"base is {said['base']!r}, but null or a text")
    _require(said["dtype"] in DTYPES, f"dtype is {said['dtype']!r}, but one of {', '.join(DTYPES)} is expected")
    for key in ("steps", "batch_size", "held_out"):
        _require(_whole(said[key], 1), f"{key} is {said[key]!r}, but a whole number from 1 is expected")
    _require(_list_of(targets, str), f"target_modules are {targets!r}, but a list such as [q_proj, v_proj] is expected")
    _require(
        _list_of(seeds, int) and len(seeds) > 1 and min(seeds) >= 0,
        f"seeds are {seeds!r}, but two or more different numbers from 0 are expected",
    )
    _require(_whole(tuning, 0), f"tuning_seed is {tuning!r}, but a whole number from 0 is expected")
    _require(tuning not in seeds, "tuning_seed is one of seeds; take one that no compared run has")
    _require(_number(said["spread"], above=0), f"spread is {said['spread']!r}, but a number above 0 is expected")
    _require(isinstance(said["arms"], list) and said["arms"], f"arms are {said['arms']!r}, but a list is expected")
    common = {key: said[key] for key in ("steps", "batch_size", "held_out", "dtype")}
    common |= {"base": base or said["base"], "target_modules": tuple(targets)}
    arms = [arm for line in said["arms"] for arm in _arms_of(line, common)]
    for (one, rates), (other, more) in itertools.combinations(arms, 2):
        if one.name != other.name:  # at no rate yet: method, rank and lora_alpha
            continue
        same = f"have method {one.method}, rank {one.r} and lora_alpha {one.lora_alpha:g} in common"
        _require(one == other, f"two arms {same}, but not lora_dropout and A_spread: give each a design and a folder")
        _require(1 in (len(rates), len(more)), f"two arms to tune {same}: put their rates on one line")
        _require(_different(rates + more) or len(rates + more) > 2, f"two arms {same}, and the rate: leave one out")
    return arms


def _arms_of(line: Any, common: dict[str, Any]) -> list[tuple[Setting, list[float]]]:
    """The arms that a line of the file stands for: methods × ranks, each with the line's rates."""
    known = isinstance(line, dict) and set(line) <= {*_SIZE, "methods", "rates"} and {"methods", "rates"} <= set(line)
    _require(known, f"an arm {line!r}: methods and rates are expected, and beside them {', '.join(_SIZE)}")
    methods, rates = line["methods"], line["rates"]
    _require(_list_of(methods, str), f"methods are {methods!r}, but a list such as [lora, dora] is expected")
    for method in methods:
        _require(method in METHODS, f"method is {method!r}, but one of {', '.join(METHODS)} is expected")
    _require(
        _list_of(rates, float) and _different(rates) and all(_number(rate, above=0) for rate in rates),
        f"rates are {rates!r}, but a list of different numbers above 0 such as [1.0e-3] is expected",
    )
    if "full" in methods:
        alone = methods == ["full"] and not set(line) & set(_SIZE)
        _require(alone, "full fine-tuning has no adapter: give it a line of its own, with methods and rates alone")
        setting = Setting(method="full", r=0, lora_alpha=0.0, lora_dropout=0.0, A_spread=0.0, **PER_RUN, **common)
        return [(setting, rates)]
    size = {"lora_dropout": 0.0, "A_spread": 0.0} | {key: line[key] for key in line if key in _SIZE}
    ranks, ratio = size.pop("ranks", None), size.pop("alpha_over_r", None)
    dropout, wide = size["lora_dropout"], size["A_spread"]
    _require(
        _list_of(ranks, int) and min(ranks) > 0,
        f"{methods[0]} needs ranks, a list of different whole numbers from 1; they are {ranks!r}",
    )
    _require(_number(ratio, above=0), f"{methods[0]} needs alpha_over_r, a number above 0; it is {ratio!r}")
    _require(_number(dropout, least=0) and dropout < 1, f"lora_dropout is {dropout!r}, but 0 or more, and less than 1")
    _require(_number(wide, least=0), f"A_spread is {wide!r}, but a number from 0 is expected")
    return [
        (Setting(method=method, r=r, lora_alpha=r * ratio, **size, **PER_RUN, **common), rates)
        for r, method in itertools.product(ranks, methods)
    ]


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _list_of(value: Any, kind: type) -> bool:
    """Whether this is a list of different entries of this very type, with one at least."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(entry) is kind for entry in value)
        and len(set(value)) == len(value)
    )


def _different(rates: list[float]) -> bool:
    """Whether the names of records tell these rates apart, which have six digits of them."""
    return len({f"{rate:g}" for rate in rates}) == len(rates)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _number(value: Any, above: float = -math.inf, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > above and value >= least
