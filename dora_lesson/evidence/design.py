"""The plan of a comparison, written down before its runs: a YAML file that names arms, rates and seeds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from dora_lesson.core import DATA, first_problem
from dora_lesson.evidence.paired_run import PairedRunConfig, RunMethod
from dora_lesson.evidence.stats import detectable

DESIGNS = DATA / "designs"
DEFAULT = DESIGNS / "control.yaml"


def _as_number(value: Any) -> Any:
    """The number in a text: YAML takes 2e-3, without a dot, for one."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


Number = Annotated[float, BeforeValidator(_as_number)]
Rate = Annotated[Number, Field(ge=0, lt=1)]


class ArmLine(BaseModel):
    """A line of the design: methods × ranks, each of them one arm. Every rate is run with every seed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    methods: list[RunMethod] = Field(min_length=1)
    rates: list[Rate] = Field(min_length=1)
    ranks: list[Annotated[int, Field(ge=1)]] | None = None
    alpha_over_r: float | None = Field(default=None, gt=0)
    lora_dropout: float = 0.0
    lora_A_std: float = 0.0
    full_magnitude: bool = False
    magnitude_rate: Number = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _adapters_have_a_size(self) -> ArmLine:
        adapters = [method for method in self.methods if "ora" in method]
        if adapters and not (self.ranks and self.alpha_over_r):
            raise ValueError(f"{adapters[0]} needs ranks and alpha_over_r")
        if not adapters and (self.ranks or self.alpha_over_r or self.lora_dropout or self.lora_A_std):
            raise ValueError(f"{self.methods[0]} has no adapter: give it methods and rates alone")
        if self.full_magnitude and self.methods != ["qdora"]:
            raise ValueError("full_magnitude is for qdora alone: give the other methods a line of their own")
        if self.magnitude_rate != 1 and not set(self.methods) <= {"dora", "qdora"}:
            raise ValueError("magnitude_rate is for dora and qdora: give the other methods a line of their own")
        return self


class Design(BaseModel):
    """What a design file says.

    `spread` is the standard deviation of a paired difference in held-out loss that is expected, and two arms are
    called alike where the 90 % interval of their difference lies within ± `margin`; both in nats a token. The other
    keys are those of `PairedRunConfig`, the same for all runs.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    base: str | None
    level: Literal["plain", "spoken"] = "plain"
    dtype: str
    bf16: bool = False
    steps: int
    batch_size: int
    target_modules: list[str] | str
    held_out: int
    scored: int = 0
    checkpoints: int = 0
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    spread: Number = Field(gt=0)
    margin: Number = Field(gt=0)
    lines: list[ArmLine] = Field(alias="arms", min_length=1)
    _command: str = PrivateAttr(default="python -m dora_lesson.experiments")

    @model_validator(mode="after")
    def _runs_can_be_told_apart(self) -> Design:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must all differ")
        by_name: dict[str, PairedRunConfig] = {}
        for config, rates in self.arms:
            for rate in rates:
                run = config.model_copy(update={"learning_rate": rate})
                if by_name.setdefault(run.name, run) != run:
                    raise ValueError(f"two different arms would both be recorded as {run.name}: give each a design")
        return self

    @property
    def arms(self) -> list[tuple[PairedRunConfig, list[float]]]:
        """Each arm with the rates to try; its configuration has the first of them, and the first seed."""
        return [arm for line in self.lines for arm in self._arms_of(line)]

    @property
    def runs(self) -> list[PairedRunConfig]:
        """All runs, seed by seed, so that pairs are complete early; what is not trained has one run."""
        runs = (
            arm.model_copy(update={"learning_rate": rate, "seed": seed})
            for seed, (arm, rates) in itertools.product(self.seeds, self.arms)
            for rate in rates
            if arm.trains or seed == self.seeds[0]
        )
        return list(dict.fromkeys(runs))

    @property
    def command(self) -> str:
        """What makes the runs of this design."""
        return self._command

    def _arms_of(self, line: ArmLine) -> Iterator[tuple[PairedRunConfig, list[float]]]:
        common: dict[str, Any] = self.model_dump(include={*PairedRunConfig.model_fields})
        common |= {"learning_rate": line.rates[0], "seed": self.seeds[0]}
        size: dict[str, Any] = line.model_dump(
            include={"lora_dropout", "lora_A_std", "full_magnitude", "magnitude_rate"}
        )
        for r, method in itertools.product(line.ranks or [0], line.methods):
            alpha: dict[str, Any] = {"r": r, "lora_alpha": r * (line.alpha_over_r or 0)}
            yield PairedRunConfig(method=method, **alpha, **size, **common), line.rates

    def __str__(self) -> str:
        text = f"{len(self.arms)} arms, {len(self.runs)} runs, {len(self.seeds)} seeds each."
        if len(self.seeds) < 2:
            return text
        return (
            f"{text}\nIf paired differences spread by {self.spread:g} nats a token, the smallest that this design "
            f"detects (5 % level, four times in five) is {detectable(self.spread, len(self.seeds)):.3f}."
        )


def read_design(path: str | Path | None = None, base: str | None = None) -> Design:
    """Read and check a design; None is the course's first comparison. `base` replaces the one that the file names.

    Raises:
        ValueError: the file is not there, or does not describe runs that can be made.
    """
    options = [f" --design {path}" if path else "", f" --base {base}" if base else ""]
    path = Path(path or DEFAULT)
    if not path.is_file():
        raise ValueError(f"There is no design {path}: copy data/designs/control.yaml and change it.")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(keys, dict):
            raise ValueError(f"{path.name} holds no keys and values: copy data/designs/control.yaml and change it.")
        design = Design.model_validate(keys)
        design.base = base or design.base
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not valid YAML ({' '.join(str(error).split())}).") from None
    except ValidationError as error:
        raise ValueError(f"{path.name}: {first_problem(error)}.") from None
    design._command += "".join(options)
    return design
