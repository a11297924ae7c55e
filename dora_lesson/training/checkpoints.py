"""Checkpoints of a fine-tuning run: what is trained and no more, in a folder that knows which run it holds."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from dora_lesson.adapters.linear4bit import is_four_bit
from dora_lesson.adapters.report import adapters_of

RUN = "run.json"  # says which run the folder holds
_TRAINED = "trained.safetensors"


class TrainedOnly(Trainer):
    """A Trainer whose checkpoints hold what is trained and leave the frozen base out, whoever made the adapter."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in self._trained()}, folder / _TRAINED)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state is written last, and says that all other files are there

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _TRAINED)
        for name, p in self._trained():
            p.copy_(saved[name])

    def load_finished(self, checkpoint: Path) -> None:
        """Take over a run that needs no further step; `train` would take one more."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def _trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What is trained, by its name in the model itself, without the wrapper of a run on several processes."""
        model: Any = getattr(self.model, "module", self.model)
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def last_checkpoint(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The newest checkpoint of this run that was written to its end, or None.

    Raises:
        ValueError: the folder holds another run, or does not say which.
    """
    if not (folder / RUN).is_file():
        if any(folder.glob("checkpoint-*")):  # the trainer would delete all but its own newest two
            raise ValueError(f"{folder} holds checkpoints, but not of `finetune`: choose another output_dir.")
        return None
    try:
        recorded = dict(json.loads((folder / RUN).read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{folder / RUN} is damaged: choose another output_dir, or delete that folder.") from None
    if different := [key for key in settings if recorded.get(key) != settings[key]]:
        what = ", ".join(f"{key} {recorded.get(key)!r} there, {settings[key]!r} here" for key in different[:3])
        todo = "load the base again, as it was then, or choose" if different == ["base"] else "choose"
        raise ValueError(f"{folder} holds another run ({what}): {todo} another output_dir, or delete that folder.")
    complete = {}
    for path in folder.glob("checkpoint-*"):
        # One that is cut, renamed or lacks a part is skipped.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            step = int(json.loads((path / TRAINER_STATE_NAME).read_text())["global_step"])
            parts = [[*path.glob(f"*{part}*")] for part in ("optimizer", "scheduler", "rng_state")]
            whole = all(part.is_dir() or zipfile.is_zipfile(part) for part in itertools.chain(*parts))
            with safe_open(path / _TRAINED, "pt"):
                if path.name == f"checkpoint-{step}" and all(parts) and whole:
                    complete[step] = path
    return complete[max(complete)] if complete else None


def describe_run(model: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, Any]:
    """What decides a run beside its data and its numbers: the base, its precision, and what is trained over it."""
    layers = [part for module in model.modules() for part in adapters_of(module)]
    adapters = {id(t) for layer in layers for t in (layer.A, layer.B, layer.magnitude, layer.bias)}
    base = {name: p for name, p in model.named_parameters() if name not in trained or id(p) not in adapters}
    sample = [[name, str(p.dtype), [*p.shape], _some_numbers(p)] for name, p in base.items()]
    parts: dict[str, Any] = {"base": digest(sample), "trained": digest([[n, [*p.shape]] for n, p in trained.items()])}
    parts["method"] = sorted({"lora" if layer.magnitude is None else "dora" for layer in layers}) or ["full"]
    parts["bits"] = sorted({4 if is_four_bit(layer.base) else 8 * layer.base.weight.element_size() for layer in layers})
    for name in ("r", "scaling", "lora_dropout"):
        parts[name] = sorted({getattr(layer, name) for layer in layers})
    return parts


def _some_numbers(p: torch.Tensor) -> list[float]:
    return p.detach().reshape(-1)[:: max(1, p.numel() // 8)][:8].float().tolist()  # type: ignore[no-any-return]


def digest(value: Any) -> str:
    """A short fingerprint of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
