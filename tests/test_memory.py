"""The memory of fine-tuning, computed from a configuration, against what a step of the real model takes."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from dora_lesson import add_adapters, benchmark_interleaved, estimate, held_bytes, load_base, measure_peak_memory
from dora_lesson.memory.estimate import METHODS, OPTIMIZERS, adapter_parameters
from dora_lesson.memory.shapes import llama_config
from tests.test_adapters import SOME, small_llama

# Of the peak; what the docstring of `estimate` promises.
STATED_ERROR = 0.01
SMALL_VOCABULARY = 0.05  # work inside one block, which is left out, then weighs more than the loss


def prepared(model, method: str, r: int, target_modules="all-linear"):
    if method == "full":
        model.requires_grad_(True)
    else:
        add_adapters(model, method[-4:], r=r, lora_alpha=8, target_modules=target_modules)
    return model.train()


def one_step(model, optimizer, batch_size: int, sequence_length: int, passes: int = 1):
    tokens = torch.arange(batch_size * sequence_length).view(batch_size, sequence_length) % 50
    padded = torch.ones_like(tokens)
    padded[0, -1] = 0

    def step() -> None:
        for _ in range(passes):
            model(input_ids=tokens, attention_mask=padded, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(model, size: dict[str, int], optimizer_class=torch.optim.AdamW, passes: int = 1):
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    step = one_step(model, optimizer, **size, passes=passes)
    step()  # which makes the optimizer's states
    return measure_peak_memory(step, model, optimizer), optimizer


@pytest.mark.slow
@pytest.mark.parametrize(("method", "size"), [*((method, (2, 48)) for method in METHODS), ("full", (1, 11))])
def test_the_estimate_is_what_a_step_of_the_bundled_model_takes(method: str, size: tuple[int, int]) -> None:
    sizes = {"batch_size": size[0], "sequence_length": size[1]}
    model = prepared(load_base(four_bit=method.startswith("q"))[0], method, r=16)
    measured, optimizer = compare(model, sizes)
    expected = estimate(model.config, method, **sizes, r=16, dtype=torch.float32)
    assert expected.total == pytest.approx(measured.total, rel=STATED_ERROR)
    assert expected.held == pytest.approx(measured.held, rel=1e-5)
    for part, held in held_bytes(model, optimizer).items():
        if part != "gradients":
            assert expected.parts[part] == pytest.approx(held, rel=1e-5), part
    assert measured.rose > 0.05 * measured.total, "the step must weigh something for the comparison to mean anything"


WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 512}


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "whole"])
@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_other_shapes_and_gradient_checkpointing(method: str, checkpointing: bool, tied: bool) -> None:
    model = prepared(small_llama(**WIDE, tie_word_embeddings=tied), method, r=4, target_modules=SOME)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sizes = {"batch_size": 4, "sequence_length": 64}
    measured, _ = compare(model, sizes)
    settings = {"r": 4, "target_modules": SOME, "dtype": torch.float32, "gradient_checkpointing": checkpointing}
    expected = estimate(model.config, method, **sizes, **settings)
    # The work inside the one block that is run again is left out: a large share of so small a model.
    assert expected.total == pytest.approx(measured.total, rel=0.12 if checkpointing else SMALL_VOCABULARY)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_bfloat16_activations(method: str) -> None:
    model = prepared(small_llama(**WIDE).to(torch.bfloat16), method, r=4)
    sizes = {"batch_size": 4, "sequence_length": 64}
    measured, _ = compare(model, sizes, torch.optim.SGD)
    expected = estimate(model.config, method, **sizes, r=4, dtype=torch.bfloat16, optimizer="sgd")
    copies = 4 * sum(p.numel() for p in model.parameters()) if method == "full" else 0  # this step made none
    assert expected.total - copies == pytest.approx(measured.total, rel=SMALL_VOCABULARY)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qdora", "lora"])
def test_logits_of_the_replies_alone(method: str) -> None:
    model = prepared(load_base(four_bit=method.startswith("q"))[0], method, r=16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.arange(96).view(2, 48)
    padded = torch.ones_like(tokens).index_fill(1, torch.tensor([47]), 0)

    def step() -> None:
        model(input_ids=tokens, attention_mask=padded, labels=tokens[:, -16:], logits_to_keep=16).loss.backward()
        optimizer.zero_grad()

    measured = measure_peak_memory(step, model, optimizer)
    settings = {"batch_size": 2, "sequence_length": 48, "r": 16, "dtype": torch.float32, "optimizer": "sgd"}
    some, every = (estimate(model.config, method, **settings, reply_length=n) for n in (16, None))
    assert some.total == pytest.approx(measured.total, rel=STATED_ERROR)
    assert every.total > 1.02 * measured.total


def test_accumulated_passes_hold_gradients_and_activations_at_once() -> None:
    model = prepared(small_llama(**WIDE, tie_word_embeddings=False), "full", r=1)
    sizes = {"batch_size": 4, "sequence_length": 64}
    measured, _ = compare(model, sizes, passes=2)
    once, twice = (
        estimate(model.config, "full", **sizes, dtype=torch.float32, gradient_accumulation_steps=n) for n in (1, 2)
    )
    assert twice.total == pytest.approx(measured.total, rel=SMALL_VOCABULARY)
    assert once.total < 0.9 * measured.total


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd"])
def test_optimizer_states(name: str) -> None:
    model = prepared(small_llama(hidden_size=512, intermediate_size=1024), "full", r=1)
    chosen = {"adamw": torch.optim.AdamW, "adamw_8bit": bnb.optim.AdamW8bit, "sgd": torch.optim.SGD}
    _, optimizer = compare(model, {"batch_size": 1, "sequence_length": 8}, chosen[name])
    large = sum(p.numel() for p in model.parameters() if p.numel() >= 4096)  # smaller tensors stay in 32 bits
    states = held_bytes(model, optimizer)["optimizer states"]
    assert states == pytest.approx(OPTIMIZERS[name] * large, rel=0.05)
    assert set(chosen) == set(OPTIMIZERS)


def test_known_sizes_of_an_8b_llama() -> None:
    config = llama_config("llama-3.1-8b")
    full = estimate(config, "full", batch_size=1, sequence_length=512)
    lora, qlora, dora = (estimate(config, m, batch_size=1, sequence_length=512) for m in ("lora", "qlora", "dora"))
    assert sum(full.parts[part] for part in ("weights", "gradients", "optimizer states")) == 16 * 8_030_261_248
    assert lora.parts["weights"] == 2 * 8_030_261_248  # 16.06 GB: a 16 GB card cannot hold it
    assert qlora.parts["weights"] == 2 * (8_030_261_248 - 6_979_321_856) + 6_979_321_856 // 2
    assert dora.parts["gradients"] - lora.parts["gradients"] == 4 * 1_376_256
    assert dora.parts["activations"] - lora.parts["activations"] == 2 * 512 * 1_376_256


@pytest.mark.parametrize(("name", "parameters"), [
    ("llama-3.1-8b", 8_030_261_248), ("llama-3.2-1b", 1_235_814_400),
    ("llama-2-7b", 6_738_415_616), ("smollm2-135m", 134_515_008),
])  # fmt: skip
def test_shapes_have_their_models_parameters(name: str, parameters: int) -> None:
    trainable, total = adapter_parameters(llama_config(name), "lora", r=1)
    assert total - trainable == parameters


def test_the_quantization_constants_without_double_quantization() -> None:
    model = small_llama(**WIDE)
    linear = model.model.layers[0].mlp.up_proj
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compress_statistics=False)
    layer.load_state_dict({"weight": linear.weight})
    layer.to("cpu")
    one, many = (
        estimate(
            LlamaConfig(**(model.config.to_dict() | {"num_hidden_layers": n})), "qlora",
            batch_size=1, sequence_length=8, double_quantization=False,
        ).parts["quantization constants"]
        for n in (1, 6)
    )  # fmt: skip
    assert many == 6 * one
    share = linear.weight.numel() / sum(
        module.weight.numel() for module in model.model.layers[0].modules() if isinstance(module, torch.nn.Linear)
    )
    assert held_bytes(layer)["quantization constants"] == pytest.approx(share * one, rel=0.05)


def test_the_printed_estimate_names_every_part_and_the_peak() -> None:
    said = repr(estimate(small_llama().config, "qdora", batch_size=1, sequence_length=8, r=2))
    for part in ("weights", "quantization constants", "adapters", "optimizer states", "activations", "peak"):
        assert part in said


@pytest.mark.parametrize(("wrong", "says"), [
    ({"method": "adora"}, "method is 'adora'"),
    ({"optimizer": "lion"}, "optimizer is 'lion'"),
    ({"r": 0}, "r is 0"),
    ({"batch_size": 1.5}, "batch_size is 1.5"),
    ({"sequence_length": 0}, "sequence_length is 0"),
    ({"reply_length": -1}, "reply_length is -1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
    ({"target_modules": ["q_porj"]}, "did you mean q_proj"),
])  # fmt: skip
def test_bad_input_is_named(wrong: dict, says: str) -> None:
    settings = {"method": "dora", "batch_size": 1, "sequence_length": 8, "r": 2} | wrong
    with pytest.raises(ValueError, match=says):
        estimate(small_llama().config, **settings)


def test_layers_of_some_blocks_alone_are_taken_by_their_full_names() -> None:
    config = small_llama(num_hidden_layers=4).config
    one, all_four = (
        estimate(config, "dora", batch_size=1, sequence_length=16, r=4, target_modules=names)
        for names in (["model.layers.3.self_attn.q_proj"], ["q_proj"])
    )
    assert 4 * one.parts["adapters"] == all_four.parts["adapters"]
    assert estimate(config, "dora", batch_size=1, sequence_length=16, r=4, target_modules=r".*\.[12]\..*q_proj").total


def test_a_model_without_linear_layers_can_be_fine_tuned_whole() -> None:
    assert estimate(GPT2Config(n_layer=2), "full", batch_size=1, sequence_length=16).parts["optimizer states"]


def test_adapters_over_float64_are_float64() -> None:
    config = small_llama().config
    single, double = (
        estimate(config, "dora", batch_size=1, sequence_length=16, r=4, dtype=d) for d in ("float32", "float64")
    )
    assert double.parts["adapters"] == 2 * single.parts["adapters"]


def test_an_estimate_draws_no_random_numbers_and_leaves_the_configuration_alone() -> None:
    config = small_llama().config
    before = config.to_dict()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    estimate(config, "lora", batch_size=1, sequence_length=8, r=2)
    assert torch.equal(torch.rand(3), expected)
    assert config.to_dict() == before


def test_measure_sees_what_is_made_and_freed_in_between() -> None:
    model = torch.nn.Linear(10, 10, bias=False)

    def step() -> None:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1  # a view takes nothing
        del a, b
        torch.zeros(500)

    measured = measure_peak_memory(step, model)
    assert measured.held == 400
    assert measured.rose == pytest.approx(8000, abs=32)


@pytest.mark.parametrize("gradients_go", ["before", "after"])
def test_the_gradients_of_the_last_step_are_counted_until_they_go(gradients_go: str) -> None:
    model, x = torch.nn.Linear(1000, 1000, bias=False), torch.randn(4, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        if gradients_go == "before":
            optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        if gradients_go == "after":
            optimizer.zero_grad()

    step()
    assert measure_peak_memory(step, model, optimizer).total == pytest.approx(8e6, rel=0.01)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_estimate_is_the_same_whether_the_caller_records_gradients_or_not(mode, monkeypatch) -> None:
    monkeypatch.setattr("dora_lesson.memory.estimate._remembered", {})
    with mode():
        without = estimate(llama_config("smollm2-135m"), "lora", batch_size=1, sequence_length=64)
    monkeypatch.setattr("dora_lesson.memory.estimate._remembered", {})
    assert estimate(llama_config("smollm2-135m"), "lora", batch_size=1, sequence_length=64) == without
    assert without.parts["activations"] > 0


def test_each_attention_has_an_estimate_of_its_own() -> None:
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 1000,
    }
    sdpa, eager = (
        estimate(LlamaConfig(**size, attn_implementation=name), "lora", batch_size=1, sequence_length=512)
        for name in ("sdpa", "eager")
    )
    assert eager.parts["activations"] > 2 * sdpa.parts["activations"]  # it keeps the scores of all pairs of tokens


def test_held_bytes_count_tied_weights_once() -> None:
    tied, untied = (held_bytes(small_llama(tie_word_embeddings=t))["weights"] for t in (True, False))
    assert untied - tied == 64 * 32 * 4


def test_layers_are_timed_by_name_and_what_cannot_be_timed_is_refused() -> None:
    layers = {"one": torch.nn.Linear(4, 3), "two": torch.nn.Linear(4, 3)}
    x = torch.randn(2, 4)
    assert benchmark_interleaved(layers, x, rounds=1).keys() == layers.keys()
    assert all(p.grad is None for layer in layers.values() for p in layer.parameters())
    for rounds in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"rounds is .*, but a whole number from 1"):
            benchmark_interleaved(layers, x, rounds=rounds)
    for none in ({}, [*layers.values()]):
        with pytest.raises(ValueError, match=r"pass a dict of name and layer"):
            benchmark_interleaved(none, x)
    with pytest.raises(ValueError, match=r"torch\.int64, which has no gradient"):
        benchmark_interleaved(layers, x.long())
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\) and dtype torch.float32, which one does not take"):
        benchmark_interleaved(layers, x[:, :3])
    with pytest.raises(ValueError, match=r"dtype torch.float64, which one does not take"):
        benchmark_interleaved(layers, x.double())
    with pytest.raises(ValueError, match=r"the shapes \[\(2, 3\), \(2, 5\)\]"):
        benchmark_interleaved(layers | {"wide": torch.nn.Linear(4, 5)}, x)
