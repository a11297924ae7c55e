"""Keep hand-written adapters on disk in PEFT's format, and read what PEFT saved."""

from __future__ import annotations

import math
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dora_lesson.adapters import inject
from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.lora import LoRALinear
from dora_lesson.core import file_in_the_way, first_problem

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_COMPILED = "_orig_mod."  # what `torch.compile` puts into the names of a block's modules
# Keys of a configuration that say nothing about what the adapter computes over a linear layer.
_HARMLESS = {"task_type", "inference_mode", "peft_version", "revision", "auto_mapping", "runtime_config"}
_HARMLESS |= {"ephemeral_gpu_offload", "fan_in_fan_out", "eva_config"}
# Starts that leave the base as it is; the others (PiSSA, OLoRA, LoftQ and their like) write to it.
_PLAIN_STARTS = ("true", "false", "none", "gaussian", "orthogonal", "eva")


class AdapterConfig(BaseModel):
    """What `adapter_config.json` says as far as the hand-written layers follow it."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_dora: bool = False
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    init_lora_weights: bool | str | None = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    base_model_name_or_path: str | None = None

    def of(self, name: str) -> dict[str, Any]:
        """What `LoRALinear` needs to know about the layer of this name."""
        from peft.utils.other import get_pattern_key

        r = self.rank_pattern.get(get_pattern_key([*self.rank_pattern], name), self.r)
        alpha = self.alpha_pattern.get(get_pattern_key([*self.alpha_pattern], name), self.lora_alpha)
        alpha = int(alpha) if alpha == int(alpha) else alpha
        return {"r": r, "lora_alpha": alpha, "lora_dropout": self.lora_dropout, "use_rslora": self.use_rslora}

    def selects(self, model: nn.Module) -> list[str]:
        """Names of the modules that the configuration selects, by PEFT's own rules; none where it leaves that open."""
        from peft.tuners.tuners_utils import check_target_module_exists

        if self.target_modules is None:
            return []
        if self.target_modules == "all-linear":
            return inject.matching_linears(model, "all-linear")
        return [name for name, _ in model.named_modules() if name and check_target_module_exists(self, name)]


def save_adapters(model: nn.Module, path: str | Path) -> Path:
    """Write the hand-written adapters to a folder in PEFT's format and return it.

    Both files are written whole in a hidden folder, then they replace those of an earlier adapter. Other files stay.

    Raises:
        ValueError: the model has no hand-written adapters, layers differ in method, in dropout or in how they scale,
            one is turned off by a scaling of 0 or holds numbers that are not finite, or `path` lies in a file.

    Warns where more is trained than the adapters, which is not written.
    """
    from peft import LoraConfig

    layers, model = inject.require_adapters(model), inject.unwrapped(model)
    layers = {name.replace(_COMPILED, ""): layer for name, layer in layers.items()}
    first = next(iter(layers.values()))
    if len({(type(x), x.use_rslora, x.dropout.p) for x in layers.values()}) > 1:
        raise ValueError("The layers differ in method, use_rslora or lora_dropout, and one folder holds one of each.")
    if off := [f"{name} has scaling {x.scaling:g}" for name, x in layers.items() if not x.scaling > 0]:
        raise ValueError(f"{off[0]}, but a folder holds positive ones alone: set it back before you save.")
    path = Path(path).expanduser().resolve()
    if file := file_in_the_way(path):
        raise ValueError(f"{file} is a file: choose a folder.")
    config = LoraConfig(
        r=first.r,
        lora_alpha=_alpha(first),  # type: ignore[arg-type]
        lora_dropout=first.dropout.p,
        use_dora=isinstance(first, DoRALinear),
        use_rslora=first.use_rslora,
        rank_pattern={f"^{re.escape(name)}": x.r for name, x in layers.items() if x.r != first.r},
        alpha_pattern={f"^{re.escape(name)}": _alpha(x) for name, x in layers.items() if _alpha(x) != _alpha(first)},  # type: ignore[misc]
        task_type="CAUSAL_LM" if hasattr(model, "generate") else None,
        base_model_name_or_path=inject.base_name(model),
        inference_mode=True,
    )
    config.target_modules = _shortest_names(model, layers)  # a list as it is: PEFT would write its set in any order
    tensors = {key: t.detach().cpu().contiguous() for key, t in _all_tensors(layers).items()}
    if bad := [key for key, t in tensors.items() if not t.isfinite().all()]:
        raise ValueError(f"{bad[0]} holds numbers that are not finite: that run diverged, and nothing is written.")
    adapters = {id(p) for layer in layers.values() for p in layer.parameters(recurse=False)}
    if more := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in adapters]:
        warnings.warn(f"{more[0]} is trained too, and is not saved with the adapters: save it yourself.", stacklevel=2)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path) as partial:
        config.save_pretrained(partial)
        save_file(tensors, f"{partial}/{WEIGHTS}", {"format": "pt"})
        for name in (WEIGHTS, CONFIG):
            os.replace(f"{partial}/{name}", path / name)
    return path


def _alpha(layer: LoRALinear) -> float:
    """The alpha that gives a layer's scaling, which may have been changed."""
    alpha = layer.scaling * (math.sqrt(layer.r) if layer.use_rslora else layer.r)
    return layer.lora_alpha if math.isclose(alpha, layer.lora_alpha) else alpha


def load_adapters(model: nn.Module, path: str | Path, *, any_base: bool = False) -> nn.Module:
    """Put the adapter that this package or PEFT saved in a folder into the model, in place; return the model.

    Args:
        any_base: load although the adapter names another base than this model.

    Raises:
        FileNotFoundError: the folder or one of its two files is not there.
        ValueError: a cut file, an option that the hand-written layers do not have, an adapter for another base, or a
            model that has adapters already. The model is then as it was.
    """
    path = Path(path).expanduser()
    config, tensors = _read(path)
    wrapped, model = model, inject.unwrapped(model)
    inject.require_none(model)
    here, trained_on = inject.base_name(model), config.base_model_name_or_path or ""
    if not any_base and here and trained_on and _bare_name(here) != _bare_name(trained_on):
        todo = "load that base first, or pass any_base=True if they are the same under two names"
        raise ValueError(f"{path} was trained on {trained_on}, but this model is {here}: {todo}.")
    # PEFT adds the base's own weights where `lm_head` is adapted: they count where they differ.
    own = model.state_dict() if any(".lora_" not in key for key in tensors) else {}
    tensors = {key: t for key, t in tensors.items() if not _is_the_bases(key, t, own)}
    names = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key})
    if not names:
        raise ValueError(f"{path / WEIGHTS} does not hold an adapter: save it again.")
    modules = dict(model.named_modules())
    for name in names:
        kind = type(modules.get(name)).__name__
        if not isinstance(modules.get(name), nn.Linear):
            found = f"a {kind} here, and these layers go over an nn.Linear: load it with PEFT"
            missing = "which this model does not have: it is another base than the adapter's"
            raise ValueError(f"{path} adapts {name}, {found if name in modules else missing}.")
    try:
        selected = {name: config.of(name) for name in config.selects(model) or names}
    except re.error as error:
        raise ValueError(f"{path / CONFIG} holds a pattern that cannot be read ({error}): correct it.") from None
    inject.insert_layers(model, "dora" if config.use_dora else "lora", selected)
    parameters = _all_tensors(inject.adapted_layers(model))
    if problem := _mismatch(parameters, tensors):
        inject.remove_adapters(model)
        raise ValueError(f"{path / WEIGHTS} {problem}.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return wrapped


def _mismatch(parameters: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """How a file's tensors differ from those that its configuration and this model ask for; empty if they do not."""
    for key in sorted({*parameters, *tensors}):
        if key not in tensors:
            return f"lacks {key}, which its configuration asks for: save the adapter again"
        if key not in parameters:
            return f"also holds {key}, which no layer here takes: load it with PEFT, or save the adapter again"
        found, needed = tuple(tensors[key].shape), tuple(parameters[key].shape)
        if found != needed:
            return f"has shape {found} for {key}, but this model needs {needed}: the adapter is for another base"
        if not tensors[key].is_floating_point() or tensors[key].element_size() < 2:
            return f"holds {key} in {tensors[key].dtype}: save the adapter in 16 or 32 bits"
        if not tensors[key].isfinite().all():
            return f"holds numbers in {key} that are not finite: that run diverged, take an earlier checkpoint"
    return ""


def _is_the_bases(key: str, t: Tensor, own: dict[str, Tensor]) -> bool:
    weight = own.get(key.removeprefix(_PREFIX).replace(".base_layer.", "."))
    return weight is not None and weight.shape == t.shape and torch.equal(weight.cpu(), t.to(weight.dtype))


def _bare_name(name: str) -> str:
    """A base's own name out of what people write: a hub id, a folder, a snapshot in the hub's cache."""
    return inject.hub_name(name).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].casefold()


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
        config = AdapterConfig.model_validate_json((path / CONFIG).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path / CONFIG} does not describe a LoRA or DoRA adapter: {first_problem(error)}.") from None
    if str(config.init_lora_weights).lower() not in _PLAIN_STARTS:
        todo = "save the adapter with PEFT's path_initial_model_for_weight_conversion, or load it with PEFT"
        raise ValueError(
            f"{path / CONFIG}: init_lora_weights={config.init_lora_weights!r} can change the base: {todo}."
        )
    defaults = LoraConfig().to_dict()
    for key, value in (config.model_extra or {}).items():
        if key not in _HARMLESS and value and value != defaults.get(key):
            todo = "load it with PEFT's PeftModel.from_pretrained"
            raise ValueError(f"{path / CONFIG} sets {key}={value!r}, which these layers do not have: {todo}.")
    try:
        return config, load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is cut or damaged ({error}): copy or save it again.") from None


def _shortest_names(model: nn.Module, layers: dict[str, LoRALinear]) -> list[str] | str:
    """What selects the adapted layers and no other: last parts, as in q_proj, else whole names, else a pattern."""
    modules = [name.replace(_COMPILED, "") for name, _ in model.named_modules()]
    for names in (sorted({name.split(".")[-1] for name in layers}), sorted(layers)):
        if {m for m in modules if any(m == name or m.endswith(f".{name}") for name in names)} == {*layers}:
            return names
    return "|".join(map(re.escape, sorted(layers)))
