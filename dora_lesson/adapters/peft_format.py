"""Keep hand-written adapters on disk in PEFT's format, and read what PEFT saved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dora_lesson.adapters import inject
from dora_lesson.adapters.layers import DoRALinear, LoRALinear
from dora_lesson.core import first_problem

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Keys of a configuration that cannot change what the adapter computes; the file's own tensors say which layers it has.
_HARMLESS = {"task_type", "inference_mode", "peft_version", "revision", "auto_mapping", "init_lora_weights"}
_HARMLESS |= {"runtime_config", "ephemeral_gpu_offload", "exclude_modules", "target_modules"}


class AdapterConfig(BaseModel):
    """What `adapter_config.json` says as far as the hand-written layers follow it."""

    model_config = ConfigDict(extra="allow")

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_dora: bool = False
    base_model_name_or_path: str | None = None


def save_adapters(model: nn.Module, path: str | Path) -> Path:
    """Write the hand-written adapters to a folder in PEFT's format and return it.

    The folder is written whole beside `path` and then renamed, so that a call that is cut off loses nothing.

    Raises:
        ValueError: the model has no hand-written adapters, layers differ in settings, or `path` holds other files.
    """
    from peft import LoraConfig

    layers = inject.require_adapters(model)
    first = next(iter(layers.values()))
    if len({(type(x), x.r, x.lora_alpha, x.dropout.p) for x in layers.values()}) > 1:
        raise ValueError("The layers differ in method, r, lora_alpha or lora_dropout: one folder holds one setting.")
    path = Path(path).absolute()
    files = {p.name for p in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    if other := sorted(files - {CONFIG, WEIGHTS, "README.md"}):
        raise ValueError(f"{path} holds {other[0]}, which is not part of an adapter: choose a folder of its own.")
    config = LoraConfig(
        r=first.r,
        lora_alpha=first.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=first.dropout.p,
        use_dora=isinstance(first, DoRALinear),
        target_modules=_shortest_names(model, layers),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name(model),
        inference_mode=True,
    )
    tensors = _all_tensors(layers)
    partial, previous = (path.with_name(f".{path.name}.{state}") for state in ("partial", "previous"))
    shutil.rmtree(partial, ignore_errors=True)  # what a killed call left
    partial.mkdir(parents=True)
    config.save_pretrained(str(partial))
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, partial / WEIGHTS, {"format": "pt"})
    if path.exists():
        os.replace(path, previous)
    os.replace(partial, path)
    shutil.rmtree(previous, ignore_errors=True)
    return path


def load_adapters(model: nn.Module, path: str | Path) -> nn.Module:
    """Put the adapter that this package or PEFT saved in a folder into the model, in place; return the model.

    Raises:
        FileNotFoundError: the folder or one of its two files is not there.
        ValueError: a cut file, an option that the hand-written layers do not have, an adapter for another base, or a
            model that has adapters already. The model is then as it was.
    """
    path = Path(path)
    config, tensors = _read(path)
    base, trained_on = Path(base_name(model)).name, Path(config.base_model_name_or_path or "").name
    if base and trained_on and base != trained_on:
        raise ValueError(f"{path} was trained on {trained_on}, but this model is {base}: load that base first.")
    names = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors if key.startswith(_PREFIX)})
    if not names:
        raise ValueError(f"{path / WEIGHTS} does not hold an adapter: save it again.")
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise ValueError(f"{path} adapts {name}, which this model does not have as a linear layer: another base?")
    settings: Any = {"r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    inject.add_adapters(model, "dora" if config.use_dora else "lora", target_modules=names, **settings)
    parameters = _all_tensors(inject.adapted_layers(model))
    if problem := _mismatch(parameters, tensors):
        inject.remove_adapters(model)
        raise ValueError(f"{path / WEIGHTS} {problem}.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return model


def _mismatch(parameters: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """How a file's tensors differ from those that its configuration and this model ask for; empty if they do not."""
    for key in sorted({*parameters, *tensors}):
        if key not in tensors or key not in parameters:
            verb = "lacks" if key in parameters else "also holds"
            return f"{verb} {key}, against its configuration: save the adapter again"
        found, needed = tuple(tensors[key].shape), tuple(parameters[key].shape)
        if found != needed:
            return f"has shape {found} for {key}, but this model needs {needed}: the adapter is for another base"
    return ""


def base_name(model: nn.Module) -> str:
    """The base's name on the hub, or the last part of its folder's, so that no path of a machine is written down."""
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    return Path(name).name if Path(name).is_absolute() else name


def _all_tensors(layers: dict[str, LoRALinear]) -> dict[str, Tensor]:
    """What PEFT's file holds: key to tensor."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= {f"{_PREFIX}{name}.lora_A.weight": layer.lora_A, f"{_PREFIX}{name}.lora_B.weight": layer.lora_B}
        if isinstance(layer, DoRALinear):
            tensors[f"{_PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude
    return tensors


def _read(path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    from peft import LoraConfig

    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / file} is not there: give the folder that holds {CONFIG} and {WEIGHTS}.")
    try:
        config = AdapterConfig.model_validate_json((path / CONFIG).read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path / CONFIG} does not describe a LoRA or DoRA adapter: {first_problem(error)}.") from None
    defaults = LoraConfig().to_dict()
    for key, value in (config.model_extra or {}).items():
        if key not in _HARMLESS and value and value != defaults.get(key):
            raise ValueError(f"{path / CONFIG} sets {key}={value!r}, which these layers cannot do: use PEFT.")
    try:
        return config, load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is cut or damaged ({error}): copy or save it again.") from None


def _shortest_names(model: nn.Module, layers: dict[str, LoRALinear]) -> list[str]:
    """Last parts of the names where these select exactly the adapted layers, as in q_proj; else the names in full."""
    short = sorted({name.split(".")[-1] for name in layers})
    return short if set(inject.matching_linears(model, short)) == set(layers) else sorted(layers)
