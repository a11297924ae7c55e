"""Put hand-written LoRA or DoRA layers into a model, merge them, and take them out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.linear4bit import is_four_bit, restore_packed_bytes
from dora_lesson.adapters.lora import LoRALinear

LAYERS = {"lora": LoRALinear, "dora": DoRALinear}


def matching_linears(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that PEFT's rules select.

    A list selects every module whose name is an entry or ends in ".entry"; a text is a regular expression for the
    whole name; "all-linear" is every linear layer but the output embedding.

    Raises:
        ValueError: nothing matches, or an entry matches nothing; near matches are listed.
        TypeError: a match is not a linear layer.
    """
    model = unwrapped(model)
    modules = {name: module for name, module in model.named_modules() if name}
    inner = {id(layer.base) for layer in modules.values() if isinstance(layer, LoRALinear)}
    linears = [n for n, m in modules.items() if isinstance(m, nn.Linear | LoRALinear) and id(m) not in inner]
    if target_modules == "all-linear":
        output = getattr(model, "get_output_embeddings", lambda: None)()
        if not (found := [name for name in linears if modules[name] is not output]):
            raise ValueError(f"{type(model).__name__} has no linear layers that could be adapted.")
        return found
    if isinstance(target_modules, str):
        try:
            matches = {target_modules: [name for name in modules if re.fullmatch(target_modules, name)]}
        except re.error as error:
            raise ValueError(f"target_modules is not a regular expression: {target_modules!r} ({error}).") from None
    else:
        entries = [*target_modules] if isinstance(target_modules, Iterable) else []
        if not entries or not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"target_modules is {target_modules!r}: name the layers to adapt, such as ['q_proj'].")
        matches = {e: [name for name in modules if name == e or name.endswith(f".{e}")] for e in entries}
    unmatched = [entry for entry, names in matches.items() if not names]
    if unmatched == [target_modules] and any(name.endswith(f".{target_modules}") for name in linears):
        raise ValueError(f"target_modules is a pattern for the whole name: pass a list, [{target_modules!r}].")
    if unmatched:
        raise ValueError(f"target_modules {unmatched} matches nothing; {_suggestion(unmatched, linears)}")
    selected = {name for names in matches.values() for name in names}
    if other := sorted(selected - set(linears)):
        kind = type(modules[other[0]]).__name__
        raise TypeError(f"target_modules selects {other[0]}, a {kind}, but only linear layers can be adapted.")
    return [name for name in modules if name in selected]


def _suggestion(unmatched: Iterable[str], names: Iterable[str]) -> str:
    kinds = sorted({name.split(".")[-1] for name in names})
    near = [kind for entry in unmatched for kind in difflib.get_close_matches(entry, kinds, n=2, cutoff=0.5)]
    return f"did you mean {', '.join(near)}?" if near else f"the model's linear layers are {', '.join(kinds)}."


def add_adapters(
    model: nn.Module,
    method: str = "dora",
    *,
    r: int,
    lora_alpha: float,
    target_modules: str | Sequence[str],
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
) -> nn.Module:
    """Freeze the model and put a `LoRALinear` or `DoRALinear` over each selected layer, in place; return the model.

    Args:
        model: any model with `nn.Linear` layers.
        method: "dora" or "lora".
        r, lora_alpha, lora_dropout, use_rslora: as in the layers.
        target_modules: as in `matching_linears`.

    Raises:
        ValueError: unknown method, names that do not match, a layer that stands under two names, or a model that has
            adapters already.
        TypeError: a selected module is not a linear layer.
    """
    if method not in LAYERS:
        raise ValueError(f"method is {method!r}, but one of {', '.join(LAYERS)} is expected.")
    settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "use_rslora": use_rslora}
    require_none(model)
    return insert_layers(model, method, dict.fromkeys(matching_linears(model, target_modules), settings))


def insert_layers(model: nn.Module, method: str, settings: dict[str, dict[str, Any]]) -> nn.Module:
    """`add_adapters` with settings for each layer, by name, into a model that has no adapters."""
    wrapped, model = model, unwrapped(model)
    _require_one_name_each(model, settings)
    restore_packed_bytes(model)
    # All layers are made before one is put in, so that a wrong rank leaves the model as it was.
    was_trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        layers = {name: LAYERS[method](model.get_submodule(name), **given) for name, given in settings.items()}  # type: ignore[arg-type]
    except (TypeError, ValueError):
        _train_only(model, was_trainable)
        raise
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer.train(model.training))
    model._trainable_before_adapters = was_trainable  # type: ignore[assignment]
    return wrapped


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, out of what `torch.compile` or data parallelism put around it."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = model.module if parallel else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def require_none(model: nn.Module) -> None:
    """Refuse a model that has adapters, by hand or PEFT's."""
    if adapted_layers(model) or hasattr(unwrapped(model), "peft_config"):
        raise ValueError("The model has adapters already: merge or remove them first.")


def _require_one_name_each(model: nn.Module, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse a layer that its model calls under a second name, or reads without calling, where that matters."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, given in settings.items():
        if twins := [other for other, module in modules.items() if module is modules[name] and other != name]:
            raise ValueError(f"{name} and {twins[0]} are one layer: leave it out of target_modules, or make them two.")
        if given["lora_dropout"] and isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention):
            raise ValueError(f"{name} is read by an nn.MultiheadAttention, and not called: use lora_dropout=0 there.")


def merge_adapters(model: nn.Module, four_bit: bool = False) -> nn.Module:
    """Replace every adapted layer by one plain linear layer that computes the same, in place; return the model.

    Layers over a 4-bit base become full-size ones, or, with `four_bit`, 4-bit ones again, at the cost of rounding.

    Raises:
        ValueError: the model has no hand-written adapters, or `four_bit` for a base that is not in 4 bits.
    """
    layers, wrapped, model = require_adapters(model), model, unwrapped(model)
    for name, layer in layers.items():  # all before one is merged, so that a refusal leaves the model as it was
        try:
            layer.require_mergeable(four_bit)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, layer in layers.items():
        model.set_submodule(name, layer.merge(four_bit))
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not any(is_four_bit(module) for module in model.modules()):
        quantizer.remove_quantization_config(model)  # nothing is packed any more: it is saved as a plain model
    elif quantizer is not None and not four_bit:  # a model that is loaded from there packs the others alone
        whole = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not is_four_bit(m)]
        model.config.quantization_config.llm_int8_skip_modules = whole  # type: ignore[union-attr]
    model.__dict__.pop("_trainable_before_adapters", None)
    return wrapped


def remove_adapters(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place, and return the model: its weights are what they were, to the bit.

    Those in 4 bits are so as far as no answer came in between, after which bitsandbytes rounds their scales.
    """
    layers, wrapped, model = require_adapters(model), model, unwrapped(model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.base.train(layer.training))
    names = model.__dict__.pop("_trainable_before_adapters", None)
    if names is not None:  # else the layers were put in by hand
        _train_only(model, names)
    return wrapped


def _train_only(model: nn.Module, names: set[str]) -> None:
    for name, p in model.named_parameters():
        if p.requires_grad != (name in names):
            p.requires_grad_(name in names)


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name to layer of the hand-written adapters in a model."""
    return {name: module for name, module in unwrapped(model).named_modules() if isinstance(module, LoRALinear)}


def require_adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """`adapted_layers`, of which there must be some."""
    if not (layers := adapted_layers(model)):
        raise ValueError("The model has no hand-written adapters: add them first, or use PEFT's methods for PEFT's.")
    if "" in layers:
        raise ValueError("This is a layer, where the model around it is expected: pass that, or call layer.merge().")
    return layers


def base_name(model: nn.Module) -> str:
    """The base's name on the hub, or the last part of its folder's, so that no path of a machine is written down."""
    name = hub_name(str(getattr(getattr(model, "config", None), "name_or_path", "") or ""))
    return Path(name).name if Path(name).is_absolute() else name


def hub_name(name: str) -> str:
    """A base's name, or for a snapshot in the hub's cache the name that it has on the hub."""
    return re.sub(r".*models--([^/\\]+?)--([^/\\]+).*", r"\1/\2", name)
