"""Adapters in a model: names by PEFT's rules, in and out without a trace, parity with PEFT on disk and in logits."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.inject import (
    adapted_layers,
    add_adapters,
    insert_layers,
    matching_linears,
    merge_adapters,
    remove_adapters,
)
from dora_lesson.adapters.peft_format import CONFIG, WEIGHTS, load_adapters, save_adapters
from dora_lesson.adapters.report import adapter_report
from dora_lesson.evidence.movement import effective_weights
from dora_lesson.memory.estimate import adapter_parameters, trainable_count

SOME = ["q_proj", "v_proj", "up_proj"]
TOKENS = torch.arange(24).view(2, 12)


def small_llama(seed: int = 0, **changed) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**(settings | changed))).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def disturb(model) -> None:
    """Move every trainable parameter, so that the adapter is no longer the identity."""
    torch.manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * p.abs().mean().clamp(min=0.1) * torch.randn_like(p))


@pytest.fixture(params=["lora", "dora"])
def method(request) -> str:
    return request.param


def with_adapters(method: str, model=None, **changed):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": SOME} | changed
    return add_adapters(small_llama() if model is None else model, method, **settings)


# Names.


@pytest.mark.parametrize("target", [SOME, ["layers.0.mlp.up_proj"], r".*\.1\..*(q|k)_proj", "all-linear", ["q_proj"]])
def test_names_are_matched_as_peft_matches_them(target):
    config = LoraConfig(r=2, target_modules=target, task_type="CAUSAL_LM")
    theirs = get_peft_model(small_llama(), config)
    names = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "base_layer")}
    assert set(matching_linears(small_llama(), target)) == names


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (["q_pro"], ValueError, "did you mean q_proj"),
        (["q_proj", "xyz"], ValueError, "the model's linear layers are"),
        ([], ValueError, r"target_modules is \[\]"),
        ("query", ValueError, "matches nothing"),
        ("(", ValueError, "not a regular expression"),
        (["mlp"], TypeError, "only linear layers"),
        (["embed_tokens"], TypeError, "Embedding"),
    ],
)
def test_a_bad_name_is_refused_in_words(target, error, words):
    model = small_llama()
    with pytest.raises(error, match=words):
        with_adapters("dora", model, target_modules=target)
    assert not adapted_layers(model)


def test_a_refused_rank_leaves_the_model_as_it_was():
    model = small_llama()
    with pytest.raises(ValueError, match="rank"):
        with_adapters("dora", model, r=0)
    assert not adapted_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_adapters_cannot_be_put_on_adapters(method):
    with pytest.raises(ValueError, match="already"):
        with_adapters(method, with_adapters("lora"))
    theirs = get_peft_model(small_llama(), LoraConfig(r=2, target_modules=SOME))
    with pytest.raises(ValueError, match="already"):
        with_adapters(method, theirs)
    with pytest.raises(ValueError, match="one of lora, dora"):
        with_adapters("qdora")


# In and out.


def test_only_the_adapters_train_and_the_start_is_the_base(method):
    model = with_adapters(method)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name or "magnitude" in name for name in names)
    torch.testing.assert_close(logits(model), logits(small_llama()), rtol=0, atol=1e-6)


def test_removed_adapters_leave_the_base_bit_for_bit(method):
    model, before = small_llama(), small_llama().state_dict()
    model.model.embed_tokens.requires_grad_(False)
    with_adapters(method, model)
    disturb(model)
    remove_adapters(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match="no hand-written adapters"):
        remove_adapters(model)


def test_a_merged_model_is_plain_and_gives_the_same_logits(method):
    model = with_adapters(method)
    disturb(model)
    expected, weights = logits(model), effective_weights(model, SOME)
    merge_adapters(model)
    assert not adapted_layers(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    for name, W in weights.items():
        torch.testing.assert_close(model.get_submodule(name).weight, W)


# The report and the counts.


def test_the_report_agrees_with_the_formula(method):
    report = adapter_report(with_adapters(method))
    counts = {"q_proj": 2 * (4 * 64 + (method == "dora") * 32), "v_proj": 2 * (4 * 48 + (method == "dora") * 16)}
    assert {row[0]: row[2] for row in report.rows if row[0] in counts} == counts
    assert all(row[2] == row[3] for row in report.rows)
    assert report.is_dora == (method == "dora")


def test_the_report_reads_peft_and_sees_silent_lora():
    for use_dora in (False, True):
        theirs = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=SOME, use_dora=use_dora))
        report = adapter_report(theirs)
        assert report.is_dora == use_dora
        assert report.trainable == trainable_count(theirs)


def test_a_frozen_magnitude_is_not_dora_and_a_moved_one_is_reported():
    model = with_adapters("dora")
    assert adapter_report(model).magnitude_moved is False
    disturb(model)
    assert adapter_report(model).magnitude_moved is True
    layer = next(iter(adapted_layers(model).values()))
    layer.magnitude.requires_grad_(False)
    report = adapter_report(model)
    assert not report.is_dora
    assert "frozen" in repr(report)
    with pytest.raises(ValueError, match="no adapters"):
        adapter_report(small_llama())


LLAMA_31_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_31_8B |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_2_7B |= {"num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False}
LLAMA_32_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
LLAMA_32_1B |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("shape", "base", "target", "r", "lora", "dora"),
    [
        (LLAMA_31_8B, 8_030_261_248, "all-linear", 16, 41_943_040, 43_319_296),
        (LLAMA_31_8B, 8_030_261_248, "all-linear", 8, 20_971_520, 22_347_776),
        (LLAMA_31_8B, 8_030_261_248, ["q_proj", "v_proj"], 16, 6_815_744, 6_979_584),
        (LLAMA_31_8B, 8_030_261_248, ["q_proj", "v_proj"], 8, 3_407_872, 3_571_712),
        (LLAMA_2_7B, 6_738_415_616, "all-linear", 16, 39_976_960, 41_336_832),
        (LLAMA_32_1B, 1_235_814_400, "all-linear", 16, 11_272_192, 11_649_024),
        (SMOLLM2, 134_515_008, "all-linear", 16, 4_884_480, 5_040_000),
    ],
)
def test_counts_are_exact_without_weights(shape, base, target, r, lora, dora):
    config = LlamaConfig(**shape)
    assert adapter_parameters(config, "lora", r=r, target_modules=target) == (lora, base + lora)
    assert adapter_parameters(config, "dora", r=r, target_modules=target) == (dora, base + dora)


def test_counts_refuse_what_they_cannot_count():
    with pytest.raises(ValueError, match="r is 0"):
        adapter_parameters(AutoConfig.for_model("llama", **SMOLLM2), r=0)
    with pytest.raises(ValueError, match="one of lora, dora"):
        adapter_parameters(AutoConfig.for_model("llama", **SMOLLM2), "qlora", r=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "training"),
    [
        ("aot_eager", True),  # one graph and its gradients, without the minute that a C++ compiler takes
        pytest.param("inductor", True, marks=pytest.mark.nightly),
        pytest.param("inductor", False, marks=pytest.mark.nightly),
    ],
)
def test_a_llama_with_adapters_in_every_projection_compiles_to_one_graph(backend, training):
    torch._dynamo.reset()
    model = with_adapters("dora", target_modules="all-linear").train(training)
    disturb(model)
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(model):
        return model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss

    expected = torch.autograd.grad(loss(model), trained)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for _ in range(2):
            got = torch.autograd.grad(loss(compiled), trained)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# On disk.


def test_peft_reads_what_we_save(method, tmp_path):
    model = with_adapters(method)
    disturb(model)
    save_adapters(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(small_llama(), tmp_path / "a")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=1e-6)
    assert adapter_report(theirs).is_dora == (method == "dora")
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["target_modules"] == sorted(SOME)


def test_we_read_what_peft_saves(method, tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=SOME, use_dora=method == "dora", task_type="CAUSAL_LM")
    theirs = get_peft_model(small_llama(), config).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "a")
    ours = load_adapters(small_llama(), tmp_path / "a")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-6)
    assert adapter_report(ours).method == ("DoRA" if method == "dora" else "LoRA")


# Everything that PEFT can write with LoRA or DoRA on linear layers: equal logits, or a refusal.
WRITTEN_BY_PEFT = [
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}},
    {"alpha_pattern": {"v_proj": 3, ".*0.mlp.up_proj": 32}},
    {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    {"r": 64},
    {"target_modules": "all-linear"},
    {"target_modules": r".*layers\.0\..*(q|down)_proj"},
    {"layers_to_transform": [1]},
    {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    {"init_lora_weights": False},
    {"fan_in_fan_out": True},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("written", WRITTEN_BY_PEFT, ids=lambda written: "-".join(written))
def test_whatever_peft_writes_loads_as_peft_reloads_it_and_back(method, written, tmp_path):
    def base():
        return small_llama(tie_word_embeddings="lm_head" not in written.get("target_modules", ()))

    settings = {"r": 4, "lora_alpha": 8, "target_modules": SOME, "use_dora": method == "dora"} | written
    theirs = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "a")
    expected = logits(PeftModel.from_pretrained(base(), tmp_path / "a").eval())
    ours = load_adapters(base(), tmp_path / "a")
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-5)
    save_adapters(ours, tmp_path / "b")
    again = PeftModel.from_pretrained(base(), tmp_path / "b").eval()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_base_is_refused_unless_peft_converted_it(start, tmp_path):
    theirs = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=SOME, init_lora_weights=start))
    theirs.save_pretrained(tmp_path / "start")
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="init_lora_weights"):
        load_adapters(small_llama(), tmp_path / "a")
    theirs.peft_config["default"].init_lora_weights = True  # as PEFT asks for, before it converts
    theirs.save_pretrained(tmp_path / "b", path_initial_model_for_weight_conversion=tmp_path / "start")
    expected = logits(PeftModel.from_pretrained(small_llama(), tmp_path / "b").eval())
    torch.testing.assert_close(logits(load_adapters(small_llama(), tmp_path / "b")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "smollm2-135m-instruct",
        "/home/me/models/SmolLM2-135M-Instruct/",
        "/c/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f77366fa6b3b4b768ec3050bf629380bac",
        r"C:\Users\me\SmolLM2-135M-Instruct",
    ],
)
def test_the_bases_name_is_compared_as_people_spell_it(name, tmp_path):
    path, _ = saved(tmp_path)
    edit_config(path, base_model_name_or_path=name)
    model = small_llama()
    model.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    load_adapters(model, path)
    other = small_llama()
    other.config.name_or_path = "meta-llama/Llama-3.2-1B"
    with pytest.raises(ValueError, match="any_base=True"):
        load_adapters(other, path)
    load_adapters(other, path, any_base=True)


def test_a_layer_under_two_names_is_refused(method):
    model = small_llama()
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    with pytest.raises(ValueError, match="one layer"):
        with_adapters(method, model)
    assert not adapted_layers(model)


def test_dropout_is_refused_where_a_parent_reads_the_weight(method):
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="lora_dropout=0"):
        add_adapters(model, method, r=2, lora_alpha=4, target_modules=["out_proj"], lora_dropout=0.1)
    add_adapters(model, method, r=2, lora_alpha=4, target_modules=["out_proj"])


def saved(tmp_path, method="dora", **changed):
    model = with_adapters(method, **changed)
    disturb(model)
    return save_adapters(model, tmp_path / "a"), model


def test_a_second_save_replaces_the_first(tmp_path):
    saved(tmp_path, "lora")
    path, model = saved(tmp_path, "dora", r=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    torch.testing.assert_close(logits(load_adapters(small_llama(), path)), logits(model), rtol=0, atol=1e-6)


def test_a_killed_save_leaves_the_adapter_that_was_there(tmp_path, monkeypatch):
    import dora_lesson.adapters.peft_format as files

    path, model = saved(tmp_path)
    expected = logits(model)
    other = with_adapters("lora")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_adapters(other, path)
    monkeypatch.undo()
    torch.testing.assert_close(logits(load_adapters(small_llama(), path)), expected, rtol=0, atol=1e-6)
    save_adapters(other, path)  # and the next save goes through
    assert adapter_report(load_adapters(small_llama(), path)).method == "LoRA"


def test_other_files_in_the_folder_stay(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    model = with_adapters("dora")
    save_adapters(model, ".")
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", CONFIG, WEIGHTS}
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert torch.equal(load_adapters(small_llama(), tmp_path)(TOKENS).logits, model(TOKENS).logits)


def test_a_merge_that_is_refused_leaves_the_model_as_it_was():
    model = with_adapters("dora")
    layers = adapted_layers(model)
    name, last = [*layers.items()][-1]
    last.base.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"^{name}: The base has hooks"):
        merge_adapters(model)
    assert adapted_layers(model).keys() == layers.keys()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    save_adapters(with_adapters("dora"), tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="is a file: choose a folder"):
        save_adapters(with_adapters("lora"), tmp_path / WEIGHTS)
    assert (tmp_path / WEIGHTS).read_bytes() == before


class Nested(nn.Module):
    """Two layers whose names end alike, and one inside the other's namesake."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6))
        self.block.proj = nn.Linear(6, 6)
        self.proj = nn.Linear(6, 6)

    def forward(self, x):
        return self.proj(self.block.proj(self.block[0](x)))


def test_a_container_that_is_named_like_a_layer_is_not_adapted(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))

    model = add_adapters(make(), "dora", r=2, lora_alpha=4, target_modules=["0.0"])
    disturb(model)
    save_adapters(model, tmp_path)
    x = torch.randn(2, 4)
    torch.testing.assert_close(load_adapters(make(), tmp_path)(x), model(x))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("adapted", [{"proj": 32}, {"block.proj": 4, "proj": 32}, {"block.0": 4, "proj": 4}])
def test_layers_whose_names_end_alike_are_told_apart_on_disk(method, adapted, tmp_path):
    torch.manual_seed(0)
    model, x = Nested(), torch.randn(3, 6)
    base = {name: p.clone() for name, p in model.state_dict().items()}
    insert_layers(model, method, {n: {"r": 2, "lora_alpha": a, "lora_dropout": 0.0} for n, a in adapted.items()})
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_B)
        layer.scaling *= 1.5  # changed after it was made
    save_adapters(model, tmp_path)
    for load in (load_adapters, PeftModel.from_pretrained):
        again = Nested()
        again.load_state_dict(base)
        torch.testing.assert_close(load(again, tmp_path)(x), model(x))


def edit_config(path, **changed):
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(config | changed))


def cut_weights(path):
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-100])


def drop_a_tensor(path):
    tensors = load_file(path / WEIGHTS)
    tensors.pop(next(key for key in tensors if "magnitude" in key))
    save_file(tensors, path / WEIGHTS)


def change_tensors(path, change):
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


def not_a_number(path):
    change_tensors(path, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(float("nan")))


def with_an_embedding(path):
    key = "base_model.model.model.embed_tokens.weight"
    change_tensors(path, lambda tensors: tensors.update({key: torch.randn(64, 32)}))


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (lambda path: (path / WEIGHTS).unlink(), FileNotFoundError, WEIGHTS),
        (lambda path: (path / CONFIG).unlink(), FileNotFoundError, CONFIG),
        (lambda path: (path / CONFIG).write_text("{"), ValueError, "does not describe"),
        (cut_weights, ValueError, "cut or damaged"),
        (drop_a_tensor, ValueError, "lacks"),
        (
            lambda path: edit_config(path, init_lora_weights="pissa"),
            ValueError,
            "init_lora_weights='pissa'.*conversion",
        ),
        (lambda path: edit_config(path, init_lora_weights="PiSSA_niter_4"), ValueError, "init_lora_weights"),
        (lambda path: edit_config(path, modules_to_save=["norm"]), ValueError, "modules_to_save.*PeftModel"),
        (lambda path: edit_config(path, lora_dropout=None), ValueError, "lora_dropout is None"),
        (lambda path: (path / CONFIG).write_bytes((path / CONFIG).read_text().encode("utf-16")), ValueError, CONFIG),
        (lambda path: edit_config(path, target_modules=[*SOME, "o_proj"]), ValueError, "lacks .*o_proj"),
        (lambda path: edit_config(path, target_modules=["q_proj"]), ValueError, "lacks|also holds"),
        (not_a_number, ValueError, "not finite"),
        (with_an_embedding, ValueError, "also holds .*embed_tokens"),
        (lambda path: edit_config(path, bias="all"), ValueError, "bias"),
        (lambda path: edit_config(path, a_new_option=3), ValueError, "a_new_option"),
        (lambda path: edit_config(path, rank_pattern={"q_proj": 2}), ValueError, "q_proj.*needs"),
        (lambda path: edit_config(path, rank_pattern={"q_proj(": 2}), ValueError, "a pattern that cannot be read"),
        (lambda path: edit_config(path, target_modules="*_proj"), ValueError, "a pattern that cannot be read"),
        (lambda path: edit_config(path, exclude_modules="["), ValueError, "a pattern that cannot be read"),
        (lambda path: edit_config(path, r=8), ValueError, "shape"),
        (lambda path: edit_config(path, use_dora=False), ValueError, "also holds"),
        (lambda path: edit_config(path, peft_type="IA3"), ValueError, "peft_type is .IA3."),
    ],
)
def test_a_damaged_adapter_is_refused_and_the_model_untouched(tmp_path, harm, error, words):
    path, _ = saved(tmp_path)
    harm(path)
    model = small_llama()
    with pytest.raises(error, match=words):
        load_adapters(model, path)
    assert not adapted_layers(model)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(ValueError, match="another base"):
        load_adapters(small_llama(hidden_size=64), path)
    with pytest.raises(ValueError, match="another base"):
        load_adapters(small_llama(num_hidden_layers=1), path)
    edit_config(path, base_model_name_or_path="owner/other-model")
    model = small_llama()
    model.config.name_or_path = "/home/somebody/SmolLM2-135M-Instruct"
    with pytest.raises(ValueError, match="trained on owner/other-model"):
        load_adapters(model, path)


def test_no_path_of_this_machine_is_written(tmp_path):
    model = with_adapters("dora")
    model.config.name_or_path = str(tmp_path / "cache" / "SmolLM2-135M-Instruct")
    path = save_adapters(model, tmp_path / "a")
    assert json.loads((path / CONFIG).read_text())["base_model_name_or_path"] == "SmolLM2-135M-Instruct"


# Wrapped models, names and folders.


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, torch.nn.DataParallel], ids=["compiled", "data parallel"])
def test_a_wrapped_model_is_adapted_saved_and_freed_as_itself(wrap, tmp_path):
    model = small_llama()
    wrapped = wrap(model)
    assert add_adapters(wrapped, "dora", r=2, lora_alpha=4, target_modules=["q_proj"]) is wrapped
    disturb(model)
    save_adapters(wrapped, tmp_path / "a")
    assert {key.split(".")[2] for key in load_file(tmp_path / "a" / WEIGHTS)} == {"model"}
    other = small_llama()
    assert load_adapters(wrap(other), tmp_path / "a") is not other
    torch.testing.assert_close(logits(other), logits(model))
    remove_adapters(wrapped)
    assert all(p.requires_grad for p in model.parameters()) and adapted_layers(wrapped) == {}


def test_a_linear_layer_may_be_called_base():
    model = torch.nn.ModuleDict({"base": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 4)})
    assert matching_linears(model, "all-linear") == matching_linears(model, ["base", "head"]) == ["base", "head"]
    add_adapters(model, r=2, lora_alpha=2, target_modules=["base"])
    assert matching_linears(model, ["head"]) == ["head"] and list(adapted_layers(model)) == ["base"]


def test_removing_layers_put_in_by_hand_freezes_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0] = DoRALinear(model[0], 2, 4)
    remove_adapters(model)
    assert model[1].weight.requires_grad


def test_a_layer_without_a_shape_is_refused_in_our_words():
    with pytest.raises(ValueError, match="has not seen an input yet"):
        add_adapters(torch.nn.Sequential(torch.nn.LazyLinear(4)), r=2, lora_alpha=2, target_modules=["0"])


@pytest.mark.parametrize(
    ("target", "words"), [(None, "target_modules is None"), ("q_proj", r"pass a list, \['q_proj'\]")]
)
def test_a_target_that_selects_nothing_says_what_to_pass(target, words):
    with pytest.raises(ValueError, match=words):
        matching_linears(small_llama(), target)


def test_a_second_save_keeps_the_card_and_follows_a_link(tmp_path):
    model = with_adapters("dora")
    folder, link = tmp_path / "real", tmp_path / "link"
    save_adapters(model, folder)
    (folder / "README.md").write_text("mine")
    link.symlink_to(folder)
    for _ in range(2):
        assert save_adapters(model, link) == folder
    assert (folder / "README.md").read_text() == "mine" and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} >= {"real", "link"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_home_is_found_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_adapters(with_adapters("dora"), "~/a")
    assert (tmp_path / "a" / WEIGHTS).is_file()
    load_adapters(small_llama(), "~/a")


def test_a_model_with_one_compiled_block_is_adapted_all_over_and_saved_for_every_model(tmp_path):
    model = small_llama()
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    add_adapters(model, "dora", r=2, lora_alpha=4, target_modules=SOME)
    assert len(adapted_layers(model)) == 2 * len(SOME)
    disturb(model)
    other = load_adapters(small_llama(), save_adapters(model, tmp_path / "a"))
    torch.testing.assert_close(logits(other), logits(model))


def test_an_adapter_that_diverged_does_not_replace_a_good_one(tmp_path):
    model = with_adapters("dora")
    save_adapters(model, tmp_path / "a")
    with torch.no_grad():
        next(iter(adapted_layers(model).values())).lora_B.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite: that run diverged, and nothing is written"):
        save_adapters(model, tmp_path / "a")
    load_adapters(small_llama(), tmp_path / "a")


def test_what_is_trained_beside_the_adapters_is_named_when_they_are_saved(tmp_path):
    model = with_adapters("dora")
    model.model.norm.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"model\.norm\.weight is trained too, and is not saved"):
        save_adapters(model, tmp_path / "a")


def test_a_folder_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: choose a folder"):
        save_adapters(with_adapters("dora"), tmp_path / "file" / "a")


def test_an_alpha_that_is_not_finite_is_refused(tmp_path):
    path = save_adapters(with_adapters("dora"), tmp_path / "a")
    config = json.loads((path / CONFIG).read_text()) | {"lora_alpha": math.inf}
    (path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lora_alpha"):
        load_adapters(small_llama(), path)


def test_a_layer_put_in_after_a_merge_unfreezes_nothing_when_it_is_removed():
    model = with_adapters("dora")
    merge_adapters(model)
    block = model.model.layers[0].self_attn
    block.q_proj = DoRALinear(block.q_proj, 2, 4)
    remove_adapters(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_merged_in_inference_mode_can_train_again():
    model = with_adapters("dora")
    with torch.inference_mode():
        merge_adapters(model)
    model.requires_grad_(True)(TOKENS).logits.sum().backward()
    add_adapters(model, r=2, lora_alpha=2, target_modules=SOME)


@pytest.mark.parametrize("act", [merge_adapters, remove_adapters, lambda layer: save_adapters(layer, "nowhere")])
def test_a_layer_in_place_of_its_model_is_refused(act):
    with pytest.raises(ValueError, match=r"This is a layer, where the model around it is expected"):
        act(DoRALinear(torch.nn.Linear(4, 4), 2, 4))


def test_an_adapter_that_is_turned_off_is_not_saved(tmp_path):
    model = with_adapters("dora")
    next(iter(adapted_layers(model).values())).scaling = 0
    with pytest.raises(ValueError, match=r"q_proj has scaling 0, but .* set it back"):
        save_adapters(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
