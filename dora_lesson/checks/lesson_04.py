"""Checks of lesson 04: a configuration for a budget, what makes an adapter DoRA, and a merge that is proved."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from dora_lesson.adapters.report import adapter_report
from dora_lesson.checks.runner import Attempt, Wrong, call, check, expect, is_whole, kind, plain

BUDGET = 900_000
SHAPE: dict[str, Any] = {  # the bundled Llama's, without its weights
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


# The course's own versions.


def _config() -> Any:
    from peft import LoraConfig

    targets = ["q_proj", "v_proj"]
    return LoraConfig(r=12, lora_alpha=24, target_modules=targets, use_dora=True, task_type="CAUSAL_LM")


def _is_dora(model: nn.Module) -> bool:
    return adapter_report(model).is_dora


def _merged_copy(model: nn.Module) -> Any:
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]


@check(_config, f"DoRA on q_proj and v_proj within {BUDGET:,} parameters.")
def budget_config(attempt: Attempt) -> None:
    """Check `my_budget_config() -> LoraConfig`."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = call(attempt)
    expect(isinstance(config, LoraConfig), f"your function returns {kind(config)}; return a LoraConfig.")
    expect(config.use_dora, "use_dora is not set, so this is LoRA; pass use_dora=True.")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    expect(is_whole(config.r) and config.r > 0, f"r is {config.r!r}; a rank is a whole number from 1.")
    number = isinstance(plain(config.lora_alpha), int | float)
    expect(number, f"lora_alpha is {config.lora_alpha!r}; give a number, here twice the rank.")
    kind_of_task = config.task_type and getattr(config.task_type, "value", config.task_type)
    expect(kind_of_task in (None, "CAUSAL_LM"), f"task_type is {kind_of_task!r}; this model writes text: CAUSAL_LM.")
    expect(not config.inference_mode, "inference_mode is set, so that nothing trains; leave it out.")
    plain_start = copy.deepcopy(config)  # PEFT fills in what the configuration leaves open
    plain_start.init_lora_weights = True  # how the numbers start does not change their count
    try:
        adapted = get_peft_model(model, plain_start)
    except ValueError as error:
        if "target" not in str(error).lower():
            raise Wrong(f"PEFT refuses it: {str(error).rstrip('.')}.") from None
        targets = config.target_modules
        advice = (
            "a text is a pattern of a layer's whole name, so pass a list of names" if isinstance(targets, str) else ""
        )
        raise Wrong(
            f"PEFT finds no layers for target_modules={targets!r}; {advice or str(error).rstrip('.')}."
        ) from None
    report = adapter_report(adapted)
    parts = {row[0]: row[1] for row in report.rows}
    expect({"q_proj", "v_proj"} <= parts.keys(), f"it adapts {sorted(parts)}; the task asks for q_proj and v_proj.")
    blocks = SHAPE["num_hidden_layers"]
    for part in ("q_proj", "v_proj"):
        expect(parts[part] == blocks, f"it adapts {part} in {parts[part]} of the {blocks} blocks; adapt it in all.")
    # What the layers do, since use_rslora and alpha_pattern change it beside lora_alpha.
    for layer in (module for module in adapted.modules() if isinstance(module, LoraLayer)):
        scaling = layer.scaling["default"]
        advice = " use_rslora divides by the root of r; leave it out." if config.use_rslora else ""
        expect(abs(scaling - 2) < 1e-6, f"it scales by {scaling:.3g}; the task asks for a scaling of 2.{advice}")
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)  # modules_to_save too
    expect(
        trained <= BUDGET,
        f"it trains {trained:,}, over the budget of {BUDGET:,}; lower r or adapt fewer layers.",
    )
    expect(
        trained > BUDGET // 2,
        f"it trains {trained:,}, less than half of the budget of {BUDGET:,}; raise r.",
    )


@check(_is_dora, "your function finds every layer whose magnitude does not train.")
def is_dora(attempt: Attempt) -> None:
    """Check `my_is_dora(model) -> bool`."""
    cases = [
        (_small(True), True, "a DoRA model is not recognized; look for lora_magnitude_vector in the layers."),
        (
            _small(False),
            False,
            "a LoRA model passes for DoRA; ask the layers: lora_ is in the names of both.",
        ),
        (_lying(), False, "a model whose configuration says use_dora but whose layers have no magnitude passes."),
        (_frozen(), False, "a model whose magnitudes are frozen passes; look at requires_grad."),
        (
            _small(False).requires_grad_(False),
            False,
            "an adapter that trains nothing passes; 0 equals 0, so ask for one.",
        ),
        (_mixed(), False, "a model with a magnitude in only some layers passes; every adapted layer needs one."),
        (_small(True, "mine"), True, "a DoRA adapter named 'mine' is not recognized; not every adapter is 'default'."),
        (_small(False, "mine"), False, "a LoRA adapter named 'mine' passes; not every adapter is 'default'."),
        (_frozen(1), False, "a model with one frozen magnitude passes; look at requires_grad in every layer."),
        (
            _of_three(True),
            True,
            "a DoRA model that is no Llama is not recognized; count its adapted layers, by lora_A.",
        ),
        (_of_three(False), False, "a LoRA model that is no Llama passes; ask its layers, whatever they are called."),
    ]
    for model, right, message in cases:
        answer = plain(call(attempt, model))
        expect(isinstance(answer, bool), f"your function returns {kind(answer)}; return True or False.")
        expect(answer == right, message)


@check(_merged_copy, "a plain model, the same logits, and the adapter untouched.")
def merged_copy(attempt: Attempt) -> None:
    """Check `my_merged_copy(model) -> model`."""
    model = _small(True).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.rand_like(p))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        with model.disable_adapter():
            plain = model(tokens).logits
    # Not `call` with the model: merging in place replaces modules, which is what is to be named here.
    given = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    merged = call(functools.update_wrapper(lambda: attempt(given), attempt))
    expect(isinstance(merged, nn.Module), f"your function returns {kind(merged)}; return the merged model.")
    left = any(hasattr(module, "lora_A") for module in merged.modules())
    expect(not left, "the model that you return still holds adapters; merge_and_unload leaves none.")
    wrapped = hasattr(merged, "peft_config")
    expect(not wrapped, "the model that you return is PEFT's wrapper still; return what merge_and_unload returns.")
    with torch.no_grad():
        logits = merged(tokens).logits
    expect(not torch.allclose(logits, plain, atol=1e-6), "this is the base without the adapter; merge, do not unload.")
    off = (logits - expected).abs().max().item()
    expect(
        off < 5e-6,
        f"the merged logits are off by up to {off:.2g}; merge once, from the model as given, and in its own precision.",
    )
    adapted = any(hasattr(module, "lora_A") for module in given.modules())
    expect(adapted, "the model that was given lost its adapter; merging works in place, so merge a copy.deepcopy.")
    after = given.state_dict()
    same = before.keys() == after.keys() and all(
        torch.allclose(after[name], before[name], atol=1e-6) for name in before
    )
    expect(same, "the weights of the model that was given changed; merge a copy.deepcopy, and nothing else.")


def _small(use_dora: bool, name: str = "default") -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | shape | {"num_key_value_heads": 1, "vocab_size": 32})))
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], use_dora=use_dora)
    return get_peft_model(model, config, adapter_name=name)


def _of_three(use_dora: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    base: Any = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    return get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1", "2"], use_dora=use_dora))


def _lying() -> Any:
    model = _small(False)
    model.peft_config["default"].use_dora = True
    return model


def _frozen(count: int | None = None) -> Any:
    """With the first `count` magnitudes frozen, or all."""
    model = _small(True)
    for p in [p for name, p in model.named_parameters() if "magnitude" in name][:count]:
        p.requires_grad_(False)
    return model


def _mixed() -> Any:
    model, other = _small(True), _small(False)
    model.base_model.model.model.layers[1].mlp.up_proj = other.base_model.model.model.layers[1].mlp.up_proj
    return model
