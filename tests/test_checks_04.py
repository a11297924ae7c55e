"""Lesson 04's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from dora_lesson import checks


def config(**changed):
    settings = {"r": 12, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"], "use_dora": True} | changed
    return lambda: LoraConfig(**settings)


@pytest.mark.parametrize(
    "attempt",
    [
        config(),
        config(r=8, lora_alpha=16),
        config(target_modules=r".*\.(q|v)_proj"),
        config(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], r=7, lora_alpha=14, task_type="CAUSAL_LM"),
        config(r=9, lora_alpha=6, use_rslora=True),
        config(init_lora_weights="pissa"),
        config(r=np.int64(12), lora_alpha=np.int64(24)),
    ],
)
def test_a_right_configuration_is_accepted(attempt, capsys):
    assert checks.budget_config(attempt) is attempt, capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (config(use_dora=False), "use_dora=True"),
        (config(target_modules=["q_proj"], r=32, lora_alpha=64), "asks for q_proj and v_proj"),
        (config(lora_alpha=16), "scaling of 2"),
        (config(use_rslora=True), "use_rslora divides by the root of r"),
        (config(alpha_pattern={"v_proj": 48}), "scales by 4"),
        (config(layers_to_transform=[*range(20)], r=20, lora_alpha=40), "q_proj in 20 of the 30 blocks"),
        (config(modules_to_save=["lm_head"]), "it trains 29,"),
        (config(r=64, lora_alpha=128), "over the budget"),
        (config(r=16, lora_alpha=32), "over the budget"),  # the lesson's own, on fewer layers
        (config(target_modules="all-linear"), "over the budget"),
        (config(r=2, lora_alpha=4), "less than half"),
        (config(inference_mode=True), "inference_mode is set"),
        (config(r=12.0), "a rank is a whole number from 1"),
        (config(r=900_000 / 70_000), "a rank is a whole number from 1"),
        (config(r=0), "a rank is a whole number from 1"),
        (config(lora_alpha=None), "lora_alpha is None; give a number"),
        (config(task_type="SEQ_CLS"), "this model writes text: CAUSAL_LM"),
        (config(target_modules="q_proj|v_proj"), "pass a list of names"),
        (config(target_modules=["query"]), "PEFT finds no layers"),
        (config(lora_dropout=1.5), "PEFT refuses it: dropout probability"),
        (lambda: {"r": 16, "use_dora": True}, "return a LoraConfig"),
    ],
)
def test_a_wrong_configuration_is_named(attempt, words, capsys):
    assert checks.budget_config(attempt) is not attempt
    assert words in capsys.readouterr().out


def by_layer(model):
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return all(x.lora_magnitude_vector for x in layers) and all(
        p.requires_grad for x in layers for p in x.lora_magnitude_vector.parameters()
    )


def by_default_alone(model):
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return all("default" in x.lora_magnitude_vector for x in layers) and all(
        x.lora_magnitude_vector["default"].weight.requires_grad for x in layers
    )


def zero_equals_zero(model):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return sum("magnitude" in name for name in names) == sum("lora_A" in name for name in names)


def most_train(model):
    """As many magnitudes as there are adapted layers, and some of them train."""
    found = {name: p for name, p in model.named_parameters() if "magnitude" in name}
    some = any(p.requires_grad for p in found.values())
    return some and len(found) == sum("lora_A" in name for name, _ in model.named_parameters())


def by_names(model):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    adapted = sum("lora_A" in name for name in names)
    return adapted > 0 and sum("magnitude" in name for name in names) == adapted


def by_numpy(model):
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return np.all([[p.requires_grad for p in m.lora_magnitude_vector.parameters()] == [True] for m in layers])


def test_a_configuration_that_is_handed_out_twice_stays_as_it_was():
    kept = config(target_modules="all-linear", r=2, lora_alpha=4)()
    before = copy.deepcopy(kept)
    checks.budget_config(lambda: kept)
    assert kept == before


def by_the_names_of_llamas(model):
    names = [name for name, p in model.named_parameters() if p.requires_grad and "_proj." in name]
    adapted = sum("lora_A" in name for name in names)
    return adapted > 0 and sum("magnitude" in name for name in names) == adapted


def by_a_count_of_four(model):
    return sum("magnitude" in name and p.requires_grad for name, p in model.named_parameters()) == 4


@pytest.mark.parametrize("attempt", [by_layer, by_names, by_numpy])
def test_a_right_guard_is_accepted(attempt, capsys):
    assert checks.is_dora(attempt) is attempt, capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda model: model.peft_config["default"].use_dora, "configuration says use_dora"),
        (lambda model: any("magnitude" in name for name, _ in model.named_parameters()), "frozen"),
        (lambda model: any("magnitude" in n and p.requires_grad for n, p in model.named_parameters()), "only some"),
        (lambda model: any("lora_" in name for name, _ in model.named_parameters()), "LoRA model passes"),
        (zero_equals_zero, "0 equals 0"),
        (most_train, "one frozen magnitude passes"),
        (lambda model: hasattr(model.merge_and_unload(), "lora_A"), "in place"),
        (lambda model: False, "not recognized"),
        (by_default_alone, "not every adapter is 'default'"),
        (lambda model: "yes", "True or False"),
        (by_the_names_of_llamas, "that is no Llama is not recognized"),
        (by_a_count_of_four, "that is no Llama is not recognized"),
        (lambda model: True if by_names(model) else None, "let every branch return an answer"),
    ],
)
def test_a_wrong_guard_is_named(attempt, words, capsys):
    assert checks.is_dora(attempt) is not attempt
    assert words in capsys.readouterr().out


def twice(model):
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    for layer in merged.modules():
        if isinstance(layer, LoraLayer):
            layer.merged_adapters.clear()
    return merged.merge_and_unload()


def result_dropped(model):
    merged = copy.deepcopy(model)
    merged.merge_and_unload()
    return merged


def merged_before_the_copy(model):
    model.merge_adapter()
    return copy.deepcopy(model).merge_and_unload()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model: copy.deepcopy(model).merge_and_unload(),
        lambda model: copy.deepcopy(model).merge_and_unload(safe_merge=True),
    ],
)
def test_a_right_merge_is_accepted(attempt, capsys):
    assert checks.merged_copy(attempt) is attempt, capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda model: model.merge_and_unload(), "lost its adapter"),
        (lambda model: copy.deepcopy(model).unload(), "without the adapter"),
        (lambda model: copy.deepcopy(model), "still holds adapters"),
        (result_dropped, "return what merge_and_unload returns"),
        (twice, "are off by"),
        (lambda model: copy.deepcopy(model).half().merge_and_unload().float(), "its own precision"),
        (merged_before_the_copy, "the weights of the model that was given changed"),
        (lambda model: "merged", "return the merged model"),
    ],
)
def test_a_wrong_merge_is_named(attempt, words, capsys):
    assert checks.merged_copy(attempt) is not attempt
    assert words in capsys.readouterr().out
