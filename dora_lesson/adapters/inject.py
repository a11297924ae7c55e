"""Put hand-written LoRA or DoRA layers into a model, take them out, and say what is in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dora_lesson.adapters.layers import DoRALinear, LoRALinear
from dora_lesson.adapters.linear4bit import frozen_rows, frozen_weight, is_four_bit, restore_order

METHODS = {"lora": LoRALinear, "dora": DoRALinear}


def matching_linears(model: nn.Module, target_modules: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that PEFT's rules select.

    A list selects every module whose name is an entry or ends in ".entry"; a text is a regular expression for the
    whole name; "all-linear" is every linear layer but the output embedding.

    Raises:
        ValueError: nothing matches, an entry matches nothing or stands twice; near matches are listed.
        TypeError: a match is no linear layer.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear | LoRALinear)]
    linears = [name for name in linears if not name.endswith(".base")]
    if target_modules == "all-linear":
        output = getattr(model, "get_output_embeddings", lambda: None)()
        return [name for name in linears if modules[name] is not output]
    if isinstance(target_modules, str):
        try:
            chosen = [name for name in modules if re.fullmatch(target_modules, name)]
        except re.error as error:
            raise ValueError(f"target_modules is {target_modules!r}, no regular expression ({error}).") from None
        if not chosen:
            raise ValueError(f"target_modules {target_modules!r} matches nothing; {_near([target_modules], linears)}")
    else:
        entries = list(target_modules)
        if not entries:
            raise ValueError("target_modules is empty: name the layers to adapt, such as ['q_proj', 'v_proj'].")
        if twice := sorted({entry for entry in entries if entries.count(entry) > 1}):
            raise ValueError(f"target_modules names {twice[0]!r} twice: name each layer once.")
        found = {e: [name for name in modules if name == e or name.endswith(f".{e}")] for e in entries}
        if lost := [entry for entry, names in found.items() if not names]:
            raise ValueError(f"target_modules {lost} matches nothing; {_near(lost, linears)}")
        wanted = {name for names in found.values() for name in names}
        chosen = [name for name in modules if name in wanted]
    if other := [name for name in chosen if name not in linears]:
        kind = type(modules[other[0]]).__name__
        raise TypeError(f"target_modules selects {other[0]}, a {kind}, but only linear layers can be adapted.")
    return chosen


def add_adapters(
    model: nn.Module,
    method: str = "dora",
    *,
    r: int,
    lora_alpha: float,
    target_modules: str | Sequence[str],
    lora_dropout: float = 0.0,
) -> nn.Module:
    """Freeze the model and put a `LoRALinear` or `DoRALinear` over each selected layer, in place; return the model.

    Args:
        model: any model with `nn.Linear` layers.
        method: "dora" or "lora".
        r, lora_alpha, lora_dropout: as in the layers.
        target_modules: as in `matching_linears`.

    Raises:
        ValueError: unknown method, names that do not match, or a model that has adapters already.
        TypeError: a selected module is no linear layer.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, but one of {', '.join(METHODS)} is expected.")
    if adapted_layers(model) or hasattr(model, "peft_config"):
        raise ValueError("The model has adapters already: merge or remove them first.")
    names = matching_linears(model, target_modules)
    restore_order(model)
    # All layers are made before one is put in, so that a wrong rank leaves the model as it was.
    was_trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        layers = {n: METHODS[method](model.get_submodule(n), r, lora_alpha, lora_dropout) for n in names}  # type: ignore[arg-type]
    except (TypeError, ValueError):
        for name, p in model.named_parameters():
            p.requires_grad_(name in was_trainable)
        raise
    model.requires_grad_(False)
    for name, layer in layers.items():
        layer.lora_A.requires_grad_(True)
        replace_module(model, name, layer.train(model.training))
    model._trainable_before_adapters = was_trainable  # type: ignore[assignment]
    return model


def merge_adapters(model: nn.Module, four_bit: bool = False) -> nn.Module:
    """Replace every adapted layer by one plain linear layer that computes the same, in place; return the model.

    Layers over a 4-bit base become full-size ones, or, with `four_bit`, 4-bit ones again, at the cost of rounding.

    Raises:
        ValueError: the model has no hand-written adapters, or `four_bit` for a base that is not.
    """
    layers = some_layers(model)
    if four_bit and (full := [name for name, layer in layers.items() if not is_four_bit(layer.base)]):
        raise ValueError(f"{full[0]} is not in 4 bits: merge without four_bit, and quantise the merged model.")
    for name, layer in layers.items():
        replace_module(model, name, layer.merge(four_bit))
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not any(is_four_bit(module) for module in model.modules()):
        quantizer.remove_quantization_config(model)  # nothing is packed any more: it is saved as a plain model
    return model


def remove_adapters(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place, and return the model: its weights are what they were, to the bit."""
    for name, layer in some_layers(model).items():
        replace_module(model, name, layer.base)
    before: set[str] = getattr(model, "_trainable_before_adapters", set())  # type: ignore[assignment]
    for name, p in model.named_parameters():
        p.requires_grad_(name in before)
    return model


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name to layer of the hand-written adapters in a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@torch.no_grad()
def effective_weights(model: nn.Module, target_modules: str | Sequence[str]) -> dict[str, Tensor]:
    """Name to a copy of the weight (d_out, d_in) that each selected layer applies now, its adapter merged in."""
    layers = {name: model.get_submodule(name) for name in matching_linears(model, target_modules)}
    return {
        name: layer.merged_weight() if isinstance(layer, LoRALinear) else frozen_weight(layer).detach().clone()  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


def some_layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = adapted_layers(model)
    if not layers:
        raise ValueError("The model has no hand-written adapters: add them first, or use PEFT's own methods for its.")
    return layers


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module of this name is, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _near(lost: Iterable[str], names: Iterable[str]) -> str:
    kinds = sorted({name.split(".")[-1] for name in names})
    near = [kind for entry in lost for kind in difflib.get_close_matches(entry, kinds, n=2, cutoff=0.5)]
    return f"did you mean {', '.join(near)}?" if near else f"the model's linear layers are {', '.join(kinds)}."


# The report.


@dataclass(repr=False)
class AdapterReport:
    """What `adapter_report` found: rows of (part, layers, trainable, formula), and the answer to "is it DoRA?"."""

    rows: list[tuple[str, int, int, int]]
    method: str
    problems: list[str]
    magnitude_moved: bool | None

    @property
    def trainable(self) -> int:
        """Trainable parameters of all adapters."""
        return sum(row[2] for row in self.rows)

    @property
    def is_dora(self) -> bool:
        """Whether every adapted layer has a trainable magnitude."""
        return self.method == "DoRA" and not self.problems

    def __repr__(self) -> str:
        lines = [f"{'part':10} layers  trainable    formula"]
        total = ("all", sum(row[1] for row in self.rows), self.trainable, sum(row[3] for row in self.rows))
        for part, layers, trainable, formula in [*self.rows, total]:
            lines.append(f"{part:10} {layers:6} {trainable:10,} {formula:10,}")
        moved = {None: "", True: "; magnitudes have moved", False: "; magnitudes are where they started"}
        return "\n".join([*lines, f"method: {self.method}{moved[self.magnitude_moved]}", *self.problems])


def adapter_report(model: nn.Module) -> AdapterReport:
    """Count what the adapters in a model train, by part and against the formula, and say which method they are.

    Works for this package's layers and for PEFT's. The formula is r (d_in + d_out) a layer, and d_out more for DoRA.

    Raises:
        ValueError: the model has no adapters.
    """
    rows: dict[str, list[int]] = {}
    kinds: set[str] = set()
    problems: list[str] = []
    moved: list[bool] = []
    for name, layer in model.named_modules():
        parts = _parts(layer)
        if parts is None:
            continue
        base, A, B, m = parts
        kinds.add("LoRA" if m is None else "DoRA")
        row = rows.setdefault(name.split(".")[-1], [0, 0, 0])
        row[0] += 1
        row[1] += sum(t.numel() for t in (A, B, m) if t is not None and t.requires_grad)
        row[2] += A.shape[0] * (A.shape[1] + B.shape[0]) + (0 if m is None else B.shape[0])
        if m is not None:
            if A.requires_grad and not m.requires_grad:
                problems.append(f"{name}: A and B train, but the magnitude is frozen.")
            if not base.weight.is_meta:
                start = torch.cat([rows.detach().to(m.dtype).norm(dim=1) for _, rows in frozen_rows(base)])
                moved.append(not torch.allclose(m.detach(), start, rtol=1e-6))
    if not rows:
        raise ValueError("The model has no adapters: add them first.")
    method = kinds.pop() if len(kinds) == 1 else "a mixture of LoRA and DoRA"
    table = [(part, *row) for part, row in rows.items()]
    return AdapterReport(table, method, problems, any(moved) if moved else None)  # type: ignore[arg-type]


def _parts(layer: nn.Module) -> tuple[Any, Tensor, Tensor, Tensor | None] | None:
    """The base layer, A, B and m (None for LoRA) of an adapted layer, this package's or PEFT's; None for any other."""
    if isinstance(layer, LoRALinear):
        return layer.base, layer.lora_A, layer.lora_B, getattr(layer, "magnitude", None)
    if not hasattr(layer, "base_layer") or not getattr(layer, "lora_A", None):
        return None
    adapter = next(iter(layer.lora_A))  # type: ignore[arg-type]
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight  # type: ignore[index, operator, union-attr]
    vectors: Any = getattr(layer, "lora_magnitude_vector", {})
    m = vectors[adapter].weight if adapter in vectors else None
    return layer.base_layer, A, B, m
