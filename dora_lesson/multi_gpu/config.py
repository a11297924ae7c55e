"""The configuration of a run on several processes: a YAML file, read and checked before anything is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dora_lesson.core import METHODS, Method, first_problem


class MultiGpuConfig(BaseModel):
    """What the file says; every key is needed.

    model: of the hub, or a folder; null is the bundled one. r, lora_alpha, target_modules: as in `add_adapters`. steps,
    batch_size (chats a process), learning_rate, seed: as in `finetune`. output_dir: for checkpoints and the adapter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None
    method: Literal["lora", "dora", "qlora", "qdora"]
    r: int = Field(ge=1, strict=True)
    lora_alpha: float = Field(gt=0)
    target_modules: str | list[str]
    steps: int = Field(ge=1, strict=True)
    batch_size: int = Field(ge=1, strict=True)
    learning_rate: float = Field(gt=0, lt=1)  # YAML reads 2e-4 as a text, which pydantic takes for the number
    seed: int = Field(ge=0, strict=True)
    output_dir: str
    distributed: Literal["none", "data_parallel", "fsdp"]

    @property
    def how(self) -> Method:
        """The method's row in the table of methods."""
        return METHODS[self.method]

    @property
    def adapter_dir(self) -> Path:
        return Path(self.output_dir) / "adapter"

    def for_finetune(self) -> dict[str, Any]:
        """The arguments that `finetune` takes from here."""
        return self.model_dump(include={"steps", "batch_size", "learning_rate", "seed", "output_dir"})


def read_config(path: str | Path) -> MultiGpuConfig:
    """Read a configuration and check it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid YAML, or has a wrong key or value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: pass a file such as dora_lesson/multi_gpu/data_parallel.yaml.")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct that line.") from None
    known = [*MultiGpuConfig.model_fields]
    for key in keys if isinstance(keys, dict) else []:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}."
            raise ValueError(f"{path} sets {key!r}, which is not a key of a run: {hint}")
    try:
        return MultiGpuConfig.model_validate(keys)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; compare it with data_parallel.yaml.") from None
