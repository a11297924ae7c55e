"""What a GPU does: the same checks here and there, so that their code is known to run where no GPU is."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig

from dora_lesson import (
    DoRALinear,
    LoRALinear,
    add_adapters,
    estimate,
    finetune,
    load_task_api,
    measure_peak_memory,
)
from dora_lesson.memory.timing import random_llama
from tests.parity import outputs_and_gradients, peft_layer, relative_error
from tests.test_linear4bit import an_input, four_bit, moved

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
    ),
]
ON_BOTH = pytest.mark.parametrize("device", DEVICES)
METHODS = ["lora", "dora", "qlora", "qdora"]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}


def needs(dtype: torch.dtype, device: str) -> None:
    if dtype == torch.bfloat16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")


def a_llama(method: str, dtype: torch.dtype, device: str, vocab_size: int = 49152):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab_size, num_hidden_layers=3, tie_word_embeddings=True, **SHAPE)
    model = random_llama(config, four_bit=method.startswith("q"), dtype=dtype, device=torch.device(device))
    return add_adapters(model, method[-4:], r=8, lora_alpha=16, target_modules="all-linear").train()


@ON_BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
@pytest.mark.parametrize("make", [LoRALinear, DoRALinear])
def test_4_bit_layers_agree_with_pefts(make, dtype, tolerance, device):
    needs(dtype, device)
    base = four_bit(compute_dtype=dtype).to(device)
    theirs = moved(peft_layer(copy.deepcopy(base), 8, 16, use_dora=make is DoRALinear))
    ours = moved(make(base, 8, 16))
    x, dy = (t.to(device) for t in an_input())
    got, expected = outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy)
    for name, value in expected.items():
        assert relative_error(got[name], value) <= tolerance, f"{name}: {relative_error(got[name], value):.1e}"


@ON_BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_trains_every_method(method, dtype, device, bundled):
    needs(dtype, device)
    model, tokenizer = a_llama(method, dtype, device), bundled[1]
    magnitudes = [p.detach().clone() for name, p in model.named_parameters() if "magnitude" in name]
    items = list(load_task_api("train").select(range(4)))
    result = finetune(model, tokenizer, items, steps=4, batch_size=1, learning_rate=1e-2)
    assert result.losses[-1] < result.losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters() if p.requires_grad)
    after = [p for name, p in model.named_parameters() if "magnitude" in name]
    assert all(not torch.equal(a, b) for a, b in zip(magnitudes, after, strict=True))
    assert bool(after) == method.endswith("dora")


@ON_BOTH
@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_holds_in_half_precision(method, device):
    dtype = (
        torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )
    model = a_llama(method, dtype, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.arange(128, device=device).view(2, 64)
    padded = torch.ones_like(tokens)
    padded[0, -1] = 0

    def step() -> None:
        model(input_ids=tokens, attention_mask=padded, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    expected = estimate(model.config, method, batch_size=2, sequence_length=64, r=8, dtype=dtype)
    # A GPU's allocator hands out memory in pieces of 512 bytes and more.
    assert expected.total == pytest.approx(
        measure_peak_memory(step, model, optimizer).total, rel=0.01 if device == "cpu" else 0.05
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_training_pass_never_waits_for_the_gpu(method):
    model = a_llama(method, torch.bfloat16, "cuda", vocab_size=64)
    tokens = torch.arange(64, device="cuda").view(2, 32)
    hidden = model.model.embed_tokens(tokens).detach().requires_grad_()
    layer = model.model.layers[0].mlp.up_proj
    layer(hidden).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(hidden).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
