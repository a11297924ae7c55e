"""Keep hand-written adapters on disk in PEFT's format, and read what PEFT saved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dora_lesson.adapters.inject import adapted_layers, add_adapters, matching_linears, some_layers
from dora_lesson.adapters.layers import DoRALinear, LoRALinear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What load_adapters takes from a configuration, and what cannot change the result.
_READ = {"peft_type", "use_dora", "r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path"}
_HARMLESS = {"task_type", "inference_mode", "peft_version", "revision", "auto_mapping", "init_lora_weights"}
_HARMLESS |= {"runtime_config", "ephemeral_gpu_offload", "exclude_modules"}


def save_adapters(model: nn.Module, path: str | Path) -> Path:
    """Write the hand-written adapters to a folder in PEFT's format and return it.

    The folder is written beside `path` and put in its place at the end. A call that is cut off leaves the adapter that
    was there; `load_adapters` finds it.

    Raises:
        ValueError: the model has no hand-written adapters, layers differ in settings, or `path` holds other files.
    """
    from peft import LoraConfig

    layers = some_layers(model)
    first = next(iter(layers.values()))
    settings = {(type(x), x.r, x.lora_alpha, x.dropout.p) for x in layers.values()}
    if len(settings) > 1:
        raise ValueError("The layers differ in method, r, lora_alpha or lora_dropout: one folder holds one setting.")
    path = Path(path)
    if path.exists():
        foreign = [p.name for p in path.iterdir()] if path.is_dir() else [path.name]
        if foreign := sorted(set(foreign) - {CONFIG, WEIGHTS, "README.md"}):
            raise ValueError(f"{path} holds {foreign[0]}, which is no part of an adapter: choose a folder of its own.")
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
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B
        if isinstance(layer, DoRALinear):
            tensors[f"{_PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = _beside(path)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed call left
    partial.mkdir()
    config.save_pretrained(str(partial))
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, partial / WEIGHTS, {"format": "pt"})
    _put_back(path)
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
    _put_back(path)
    config, tensors = _read(path)
    here, there = base_name(model), Path(str(config.get("base_model_name_or_path") or "")).name
    if here and there and Path(here).name != there:
        raise ValueError(f"{path} was trained on {there}, but this model is {Path(here).name}: load that base first.")
    method = "dora" if config.get("use_dora") else "lora"
    names = sorted({key[len(_PREFIX) :].rsplit(".lora_", 1)[0] for key in tensors if key.startswith(_PREFIX)})
    modules = dict(model.named_modules())
    expected: dict[str, tuple[int, ...]] = {}
    for name in names:
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{path} adapts {name}, which this model does not have as a linear layer: another base?")
        d_out, d_in, r = layer.out_features, layer.in_features, config["r"]
        expected[f"{_PREFIX}{name}.lora_A.weight"] = (r, d_in)
        expected[f"{_PREFIX}{name}.lora_B.weight"] = (d_out, r)
        if method == "dora":
            expected[f"{_PREFIX}{name}.lora_magnitude_vector"] = (d_out,)
    for key in sorted({*expected, *tensors}):
        if key not in tensors or key not in expected:
            what = "lacks" if key in expected else "also holds"
            raise ValueError(f"{path / WEIGHTS} {what} {key}, against its configuration: save the adapter again.")
        if tuple(tensors[key].shape) != expected[key]:
            raise ValueError(
                f"{path / WEIGHTS}: {key} has shape {tuple(tensors[key].shape)}, but this model needs "
                f"{expected[key]}: the adapter belongs to another base."
            )
    rest = {key: config.get(key) for key in ("r", "lora_alpha", "lora_dropout")}
    if not names:
        raise ValueError(f"{path / WEIGHTS} holds no adapter: save it again.")
    add_adapters(model, method, target_modules=names, **rest)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, adapted in adapted_layers(model).items():
            adapted.lora_A.copy_(tensors[f"{_PREFIX}{name}.lora_A.weight"])
            adapted.lora_B.copy_(tensors[f"{_PREFIX}{name}.lora_B.weight"])
            if isinstance(adapted, DoRALinear):
                adapted.magnitude.copy_(tensors[f"{_PREFIX}{name}.lora_magnitude_vector"])
    return model


def base_name(model: nn.Module) -> str:
    """The base's name on the hub, or the last part of its folder's, so that no path of a machine is written down."""
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    return Path(name).name if Path(name).is_absolute() else name


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from peft import LoraConfig

    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / file} is not there: give the folder that holds {CONFIG} and {WEIGHTS}.")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / CONFIG} is no valid JSON ({error}): save the adapter again.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{path / CONFIG} describes no LoRA or DoRA adapter: choose another folder.")
    defaults = LoraConfig().to_dict()
    for key, value in config.items():
        if key in _READ | _HARMLESS or value in (None, False, [], {}) or value == defaults.get(key):
            continue
        raise ValueError(f"{path / CONFIG} sets {key}={value!r}, which the hand-written layers do not have: use PEFT.")
    if missing := sorted({"r", "lora_alpha"} - set(config)):
        raise ValueError(f"{path / CONFIG} does not say {missing[0]}: save the adapter again.")
    config.setdefault("lora_dropout", 0.0)
    try:
        return config, load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is cut or damaged ({error}): copy or save it again.") from None


def _shortest_names(model: nn.Module, layers: dict[str, LoRALinear]) -> list[str]:
    """Last parts of the names where these select exactly the adapted layers, as in q_proj; else the names in full."""
    short = sorted({name.split(".")[-1] for name in layers})
    return short if set(matching_linears(model, short)) == set(layers) else sorted(layers)


def _beside(path: Path) -> tuple[Path, Path]:
    path = path.absolute()
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.previous")


def _put_back(path: Path) -> None:
    """Restore the adapter that a killed `save_adapters` had moved aside and not yet replaced."""
    _, previous = _beside(path)
    if previous.exists() and not path.exists():
        os.replace(previous, path)
