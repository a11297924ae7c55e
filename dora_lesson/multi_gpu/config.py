"""The configuration of a run on several processes: a YAML file, read and checked before anything is loaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

METHODS = ("lora", "dora", "qlora", "qdora")
DISTRIBUTED = ("none", "data_parallel", "fsdp")
_NUMBERS: dict[str, Any] = {
    "r": int,
    "lora_alpha": (int, float),
    "steps": int,
    "batch_size": int,
    "learning_rate": (int, float),
    "seed": int,
}


@dataclass(frozen=True)
class RunConfig:
    """What the file says; every key is needed.

    model: of the hub, or a folder; null is the bundled one. method: lora, dora, qlora or qdora, where q means a base
    in 4 bits. r, lora_alpha, target_modules: as in `add_adapters`. steps, batch_size (chats a process), learning_rate,
    seed: as in `finetune`. output_dir: for checkpoints and the adapter. distributed: none, data_parallel or fsdp.
    """

    model: str | None
    method: str
    r: int
    lora_alpha: float
    target_modules: str | list[str]
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    output_dir: str
    distributed: str

    @property
    def four_bit(self) -> bool:
        return self.method.startswith("q")

    @property
    def adapter(self) -> str:
        """The method without its q: what `add_adapters` calls it."""
        return self.method.removeprefix("q")

    @property
    def adapter_dir(self) -> Path:
        return Path(self.output_dir) / "adapter"

    def for_finetune(self) -> dict[str, Any]:
        """The arguments that `finetune` takes from here."""
        keys = ("steps", "batch_size", "learning_rate", "seed", "output_dir")
        return {key: getattr(self, key) for key in keys}


def read_config(path: str | Path) -> RunConfig:
    """Read a configuration and check it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no YAML, a key too many or too few, or a value that cannot be meant.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: give the configuration of a run, such as dora_lesson/multi_gpu/data_parallel.yaml."
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML ({' '.join(str(error).split())}): correct that line.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, but lines of the form `key: value` are expected.")
    keys = [field.name for field in fields(RunConfig)]
    if unknown := [key for key in found if key not in keys]:
        near = difflib.get_close_matches(str(unknown[0]), keys, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(keys)}."
        raise ValueError(f"{path} sets {unknown[0]!r}, which is no key of a run: {hint}")
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{path} does not set {missing[0]}: add a line for it, as in data_parallel.yaml.")
    if isinstance(found["learning_rate"], str):  # to YAML 2e-4 is a text, and only 2.0e-4 a number
        found["learning_rate"] = _float_or_same(found["learning_rate"])
    _require_values(path, found)
    return RunConfig(**found)


def _require_values(path: Path, found: dict[str, Any]) -> None:
    for key, allowed in {"method": METHODS, "distributed": DISTRIBUTED}.items():
        if found[key] not in allowed:
            raise ValueError(f"{path} sets {key} to {found[key]!r}, but one of {', '.join(allowed)} is expected.")
    for key, kind in _NUMBERS.items():
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{path} sets {key} to {found[key]!r}, but {what} is expected.")
    targets = found["target_modules"]
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise ValueError(
            f"{path} sets target_modules to {targets!r}, but layers such as [q_proj, v_proj] are expected."
        )
    if not isinstance(found["output_dir"], str) or not isinstance(found["model"], str | None):
        key = "model" if isinstance(found["output_dir"], str) else "output_dir"
        raise ValueError(f"{path} sets {key} to {found[key]!r}, but a text is expected.")


def _float_or_same(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
