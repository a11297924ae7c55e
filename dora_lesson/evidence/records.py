"""Records in `data/records`: how they say what made them, and how they are read."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dora_lesson.core import DATA, first_problem
from dora_lesson.evidence.paired_run import PairedRunConfig

PROVENANCE = ("command", "date", "hardware", "versions", "seeds")
_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")


def load_record(name: str) -> dict[str, Any]:
    """A recorded result of `data/records`, with the command, date, hardware, versions and seeds that made it.

    Raises:
        ValueError: there is no such record, or it is broken, or it does not say how it was made.
    """
    paths = {path.stem: path for path in (DATA / "records").glob("*.json")}
    if name not in paths:
        raise ValueError(f"There is no record {name!r}; the records are: {', '.join(sorted(paths)) or 'none'}.")
    return read_record(paths[name])


def load_runs(name: str) -> list[dict[str, Any]]:
    """The recorded runs of an experiment in `data/records`, such as "control".

    Raises:
        ValueError: there is no such experiment, or one of its records is broken.
    """
    paths = {path.stem: path for path in (DATA / "records").glob("*.jsonl")}
    if name not in paths or not (runs := list(read_runs(paths[name]).values())):
        names = ", ".join(sorted(paths)) or "none"
        raise ValueError(f"There are no runs {name!r}; the recorded experiments are: {names}.")
    return runs


def read_runs(path: str | Path) -> dict[str, dict[str, Any]]:
    """The records of runs in a file, one a line, by the runs' names; none where there is no file yet.

    Raises:
        ValueError: a line is not the record of a run, does not say how it was made, or stands there twice.
    """
    path = Path(path)
    runs: dict[str, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        place = f"line {number} of {path.name}"
        record = _require_run(place, _parse(line, place))
        run = run_config(record)
        if run.name in runs:
            raise ValueError(f"{place} is {run.name} for the second time: delete one of the two.")
        runs[run.name] = record | {"config": run.model_dump(mode="json")}  # older ones lack newer settings
    return runs


def _require_run(place: str, record: dict[str, Any]) -> dict[str, Any]:
    if missing := [key for key in ("config", "scores") if key not in record]:
        raise ValueError(f"{place} has no {missing[0]}, so it is not a run: pass a file of runs.")
    return record


def run_config(record: dict[str, Any]) -> PairedRunConfig:
    """The configuration of a recorded run.

    Raises:
        ValueError: it has other keys or values than runs have.
    """
    try:
        return PairedRunConfig.model_validate(record["config"])
    except ValidationError as error:
        raise ValueError(f"A record's config is not that of a run ({first_problem(error)}): make it again.") from None


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        ValueError: the file is not a record, or does not say how it was made.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error}): make it again with its command.") from None


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON ({error}): delete it, and make it again.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{place} holds a {type(record).__name__}, but a record is expected: make it again.")
    if missing := [key for key in PROVENANCE if not record.get(key)]:
        raise ValueError(f"{place} does not say its {missing[0]}: make it again with its command.")
    return record


def provenance(command: str, seeds: Sequence[int]) -> dict[str, Any]:
    """What a record says of how it was made: command, date, hardware, versions, seeds."""
    threads = torch.get_num_threads()
    on_cpu = f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else on_cpu,
        "versions": versions(),
        "seeds": list(seeds),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide what a run does."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


def _processor() -> str:
    """The processor's name; platform.processor() is empty on many a Linux."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.M)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()
