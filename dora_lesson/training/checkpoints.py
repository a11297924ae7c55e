"""Checkpoints of a fine-tuning run: what is trained and no more, in a folder that knows which run it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

_TRAINED = "trained.safetensors"
_RUN = "run.json"


class TrainedOnly(Trainer):
    """A Trainer whose checkpoints hold what is trained and leave the frozen base out, whoever made the adapter.

    On several processes the first one writes what is the same on all, and each its own random state.
    """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().cpu().contiguous() for name, p in _plain(self.model) if p.requires_grad}
        save_file(trained, folder / _TRAINED)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the file that is written last says that all others are there

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _TRAINED)
        with torch.no_grad():
            for name, p in _plain(model if model is not None else self.model):
                if p.requires_grad:
                    p.copy_(saved[name])


def _plain(model: Any) -> Iterable[tuple[str, nn.Parameter]]:
    """Named parameters of the model itself, without the wrapper of a run on several processes."""
    parameters: Iterable[tuple[str, nn.Parameter]] = getattr(model, "module", model).named_parameters()
    return parameters


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write down in the folder which run it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RUN).write_text(json.dumps(settings))


def last_checkpoint(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The newest checkpoint that was written to its end, None if there is none.

    Raises:
        ValueError: the folder holds another run.
    """
    if not (folder / _RUN).is_file():
        return None
    found = json.loads((folder / _RUN).read_text())
    if different := sorted(key for key in settings if found.get(key) != settings[key]):
        what = ", ".join(f"{key} {found.get(key)!r} there, {settings[key]!r} here" for key in different[:3])
        raise ValueError(f"{folder} holds another run ({what}): choose another output_dir, or delete that folder.")
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:  # the trainer writes its state last, so a checkpoint with a whole state is whole
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        complete.append((state["global_step"], path))
    return max(complete)[1] if complete else None


def digest(value: Any) -> str:
    """A short fingerprint of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
