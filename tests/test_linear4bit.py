"""Adapters over 4-bit layers: parity with PEFT's QLoRA and QDoRA, a dense float64 reference, and what merging costs."""

from __future__ import annotations

import copy
import itertools

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dora_lesson import (
    DoRALinear,
    LoRALinear,
    adapter_report,
    add_adapters,
    load_adapters,
    load_base,
    merge_adapters,
    remove_adapters,
    save_adapters,
)
from dora_lesson.adapters import linear4bit as q
from tests.parity import outputs_and_gradients, parameters_of, peft_layer, relative_error
from tests.test_adapters import disturb, small_llama

BOTH = pytest.mark.parametrize("make", [LoRALinear, DoRALinear])
KINDS = list(itertools.product(["nf4", "fp4"], [True, False]))


def four_bit(d_out: int = 96, d_in: int = 128, kind: tuple[str, bool] = KINDS[0], **settings) -> bnb.nn.Linear4bit:
    """A quantized layer over random weights; kind is (NF4 or FP4, double quantization or not)."""
    torch.manual_seed(1)
    settings = {"compute_dtype": torch.float32, "bias": True} | settings
    layer = bnb.nn.Linear4bit(d_in, d_out, quant_type=kind[0], compress_statistics=kind[1], **settings)
    W = torch.randn(d_out, d_in)
    layer.weight = bnb.nn.Params4bit(W, requires_grad=False, quant_type=kind[0], compress_statistics=kind[1])
    return layer.to("cpu")


def moved(layer: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in parameters_of(layer).items():
            p.copy_(torch.rand_like(p) + 0.5 if name == "magnitude" else 0.3 * torch.randn_like(p))
    return layer


def an_input(d_in: int = 128, d_out: int = 96, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(4, 9, d_in, dtype=dtype), torch.randn(4, 9, d_out, dtype=dtype)


# What rounding leaves: some eps of the compute dtype (float32 2^-23, bfloat16 2^-7, float16 2^-10).
@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 10 * 2**-23), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
)
@pytest.mark.parametrize("lora_dropout", [0.0, 0.3])
def test_agrees_with_peft_on_the_same_quantized_weights(make, kind, dtype, tolerance, lora_dropout):
    base = four_bit(kind=kind, compute_dtype=dtype)
    theirs = moved(peft_layer(copy.deepcopy(base), 8, 16, lora_dropout, use_dora=make is DoRALinear))
    ours = moved(make(base, 8, 16, lora_dropout))
    x, dy = an_input()
    got, expected = outputs_and_gradients(ours, x, dy), outputs_and_gradients(theirs, x, dy)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert relative_error(got[name], value) <= tolerance, f"{name}: {relative_error(got[name], value):.1e}"


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_a_dequantized_float64_layer(make, kind):
    base = four_bit(kind=kind)
    plain = nn.Linear(128, 96).double()
    with torch.no_grad():
        plain.weight.copy_(q.frozen_weight(base))
        plain.bias.copy_(base.bias)
    ours, reference = moved(make(base, 8, 16)), make(plain, 8, 16)
    with torch.no_grad():
        for name, p in parameters_of(reference).items():
            p.copy_(parameters_of(ours)[name])
    x, dy = an_input()
    got, expected = outputs_and_gradients(ours, x, dy), outputs_and_gradients(reference, x.double(), dy.double())
    for name, value in expected.items():
        assert relative_error(got[name], value) < 20 * 2**-23, name


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(96, 128), (1024, 64)])
def test_every_storage_type_gives_the_same_layer_and_packs_again(shape, storage):
    """Bytes kept as another type, as FSDP wants them, hold the same weights."""
    base = four_bit(*shape)
    other = bnb.nn.Linear4bit(shape[1], shape[0], compute_dtype=torch.float32, quant_type="nf4", quant_storage=storage)
    plain = torch.nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        plain.weight.copy_(q.frozen_weight(base))
    other.load_state_dict(plain.state_dict())
    other.to("cpu")
    layer, x = moved(DoRALinear(other, 8, 16)), torch.randn(3, shape[1])
    assert other.weight.dtype == storage
    with torch.no_grad():
        V = q.frozen_weight(other) + 2 * layer.lora_B @ layer.lora_A
        y = F.linear(x, (layer.magnitude / V.norm(dim=1))[:, None] * V, other.bias)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.merge()(x), y, rtol=1e-4, atol=1e-4)
    assert layer.merge(four_bit=True).weight.dtype == storage


def test_the_norm_of_the_base_is_taken_once(monkeypatch):
    layer = DoRALinear(four_bit(2048, 64), 4, 8)
    calls, unpack = [], bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *a, **k: (calls.append(1), unpack(*a, **k))[1])
    torch.testing.assert_close(layer._squares().sqrt(), layer.magnitude.detach())
    assert not calls  # kept since the layer was made
    layer.refresh()
    torch.testing.assert_close(layer._squares().sqrt(), layer.magnitude.detach())
    assert calls == [1]


def test_the_norm_of_the_base_outlives_peft_which_puts_the_weight_back_at_every_pass(monkeypatch):
    base = four_bit()
    layer, theirs = DoRALinear(base, 4, 8), peft_layer(base, 4, 8)
    x, _ = an_input()
    theirs(x)
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", None)
    torch.testing.assert_close(layer._squares().sqrt(), layer.magnitude.detach())


def test_a_training_step_unpacks_once_forward_and_once_backward(monkeypatch):
    layer = moved(DoRALinear(four_bit(), 8, 16)).train()
    calls = []
    multiply, unpack = bnb.matmul_4bit, bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb, "matmul_4bit", lambda *a, **k: (calls.append("multiply"), multiply(*a, **k))[1])
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *a: (calls.append("unpack"), unpack(*a))[1])
    x, dy = an_input()
    layer(x.requires_grad_()).backward(dy)
    assert calls == ["unpack", "unpack"]


def test_in_eval_mode_the_norm_is_computed_once_until_a_parameter_changes(monkeypatch):
    layer = moved(DoRALinear(four_bit(), 8, 16)).eval()
    calls, unpack = [], bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *a, **k: (calls.append(1), unpack(*a, **k))[1])
    x, _ = an_input()
    with torch.no_grad():
        first = layer(x)
        torch.testing.assert_close(layer(x), first)
        assert len(calls) == 1
        layer.lora_B.mul_(2)
        assert not torch.allclose(layer(x), first)
        assert len(calls) == 2


@BOTH
def test_an_untrained_layer_is_the_base(make):
    base = four_bit().train()
    x, _ = an_input()
    torch.testing.assert_close(make(base, 8, 16)(x), base(x), rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_merging_offers_the_full_dtype_and_four_bits_again(make, kind):
    base = four_bit(kind=kind)
    layer = moved(make(base, 8, 16)).eval()
    x, _ = an_input()
    with torch.no_grad():
        expected, W = layer(x), q.frozen_weight(base).clone()
        whole, again = layer.merge(), layer.merge(four_bit=True)
        assert type(whole) is nn.Linear
        assert relative_error(whole(x), expected) < 10 * 2**-23
        assert isinstance(again, bnb.nn.Linear4bit)
        assert again.weight.quant_state.quant_type == kind[0]
        assert again.weight.quant_state.nested == kind[1]
        assert 0.01 < relative_error(again.train()(x), expected) < 0.2  # 4 bits round as coarsely as the base's did
        assert torch.equal(q.frozen_weight(base), W)
    assert not any(p.requires_grad for merged in (whole, again) for p in merged.parameters())


@BOTH
def test_bytes_that_bitsandbytes_reordered_for_answering_are_put_back(make):
    base, untouched = four_bit(compute_dtype=torch.bfloat16), four_bit(compute_dtype=torch.bfloat16)
    x, dy = an_input()
    with torch.no_grad():
        base.eval()(x)  # reorders on a CPU with bfloat16 instructions, does nothing elsewhere
    got, expected = (outputs_and_gradients(moved(make(b, 8, 16)), x, dy) for b in (base, untouched))
    # It also rounds the blocks' scales to bfloat16, for good.
    assert relative_error(q.frozen_weight(base), q.frozen_weight(untouched)) < 2**-8
    for name, value in expected.items():
        assert relative_error(got[name], value) < 2**-7, name


def test_bases_that_cannot_be_read_in_4_bits_are_refused():
    with pytest.raises(ValueError, match="not in 4 bits"):
        LoRALinear(nn.Linear(8, 8), 2, 4).merge(four_bit=True)
    with pytest.raises(ValueError, match="d_in=96, not a multiple of its block size 64"):
        DoRALinear(four_bit(64, 96), 2, 4)
    packed = bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    packed.weight.data = packed.weight.data.to(torch.int8)
    with pytest.raises(TypeError, match="4-bit one"):
        LoRALinear(packed, 2, 4)


# In a model.

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # rows of whole blocks


def quantized_llama() -> nn.Module:
    model = small_llama(**WIDE)
    for path, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            layer = bnb.nn.Linear4bit(module.in_features, module.out_features, False, torch.float32, quant_type="nf4")
            layer.weight = bnb.nn.Params4bit(module.weight.detach().clone(), requires_grad=False, quant_type="nf4")
            setattr(model.model.get_submodule(parent), name, layer.to("cpu"))
    return model.train()  # in eval mode some CPUs round the scales


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12)).logits


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_go_into_a_four_bit_model_out_again_and_to_peft(method, tmp_path):
    model, before = quantized_llama(), answers(quantized_llama())
    add_adapters(model, method, r=4, lora_alpha=8, target_modules="all-linear")
    torch.testing.assert_close(answers(model), before, rtol=1e-4, atol=1e-5)
    report = adapter_report(model)
    assert report.is_dora == (method == "dora")
    assert report.magnitude_moved is (False if method == "dora" else None)
    disturb(model)
    assert adapter_report(model).magnitude_moved is (True if method == "dora" else None)
    expected = answers(model)
    save_adapters(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(quantized_llama(), tmp_path / "a", is_trainable=True)
    torch.testing.assert_close(answers(theirs), expected, rtol=1e-4, atol=1e-5)
    assert adapter_report(theirs).is_dora == (method == "dora")
    torch.testing.assert_close(answers(load_adapters(quantized_llama(), tmp_path / "a")), expected)
    remove_adapters(model)
    assert torch.equal(answers(model), before)


def test_merging_a_model_keeps_full_size_or_packs_again():
    errors = {}
    for again in (False, True):
        model = add_adapters(quantized_llama(), "dora", r=4, lora_alpha=8, target_modules="all-linear")
        disturb(model)
        expected = answers(model)
        merge_adapters(model, four_bit=again)
        assert {q.is_four_bit(m) for m in model.model.modules() if isinstance(m, nn.Linear)} == {again}
        errors[again] = relative_error(answers(model.train()), expected)
    assert errors[False] < 1e-5 < 1e-2 < errors[True]
    with pytest.raises(ValueError, match="not in 4 bits"):
        merge_adapters(add_adapters(small_llama(), "lora", r=2, lora_alpha=4, target_modules=["q_proj"]), four_bit=True)


@pytest.mark.slow
def test_a_merged_four_bit_llama_is_saved_as_a_plain_model(tmp_path):
    model, tokenizer = load_base(four_bit=True, dtype="float32")
    add_adapters(model.train(), "dora", r=4, lora_alpha=8, target_modules="all-linear")
    merge_adapters(model).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = tokenizer("Move the bank to Friday", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**tokens).logits, model(**tokens).logits)


@BOTH
def test_no_tokens_are_no_outputs(make):
    layer = moved(make(four_bit(), 8, 16))
    for shape in ((0, 128), (2, 0, 128)):
        assert layer(torch.empty(shape)).shape == (*shape[:-1], 96)


@BOTH
def test_a_merged_layer_has_one_dtype_after_an_answer_has_changed_the_bias(make):
    """bitsandbytes leaves the bias in the dtype of the input."""
    layer = moved(make(four_bit(compute_dtype=torch.bfloat16), 8, 16)).eval()
    x = an_input()[0]
    with torch.no_grad():
        layer(x.bfloat16())
        for packed in (False, True):
            assert layer.merge(packed)(x).shape == (4, 9, 96)
