"""What people reported against tools of this kind, each tried here on the smallest input that shows it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig

import dora_lesson
from dora_lesson import adapter_report, answer, estimate, finetune, load_base, load_task_api, recommend, score
from dora_lesson.adapters.geometry import direction_change
from dora_lesson.adapters.inject import add_adapters, merge_adapters
from dora_lesson.adapters.peft_format import load_adapters, save_adapters
from dora_lesson.environment import start_lesson
from dora_lesson.evidence.movement import effective_weights
from dora_lesson.models.load import four_bit_config
from dora_lesson.task_api.app import Assistant, TaskList
from dora_lesson.task_api.calls import find_call
from dora_lesson.task_api.chats import encode_chat
from dora_lesson.task_api.dataset import validate_item
from tests.test_adapters import SOME, disturb, small_llama

RUN = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def items():
    return list(load_task_api("train").select(range(4)))


def ours(base=None, method="dora", **changed):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": SOME} | changed
    return add_adapters(base or small_llama(vocab_size=49152), method, **settings)


def theirs(**changed):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": SOME, "use_dora": True} | changed
    return get_peft_model(small_llama(vocab_size=49152), LoraConfig(**settings))


def small_4_bit_llama(folder):
    small_llama(vocab_size=49152, hidden_size=64, intermediate_size=128).save_pretrained(folder)
    config = four_bit_config(torch.float32)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).eval()


# Runs.

OTHERS = {
    "alpha": (lambda: ours(lora_alpha=32), "scaling"),
    "rank": (lambda: ours(r=8, lora_alpha=16), "r "),
    "dropout": (lambda: ours(lora_dropout=0.1), "lora_dropout"),
    "method": (lambda: ours(method="lora"), "method"),
    "targets": (lambda: ours(target_modules=["q_proj"]), "trained"),
    "base": (lambda: ours(small_llama(seed=1, vocab_size=49152)), "base"),
    "bits": (lambda: ours(small_llama(vocab_size=49152).bfloat16()), "bits"),
    "full": (lambda: small_llama(vocab_size=49152), "trained|method"),
    "peft-alpha": (lambda: theirs(lora_alpha=32), "scaling"),
    "peft-rslora": (lambda: theirs(use_rslora=True), "scaling"),
}


@pytest.mark.parametrize(("other", "named"), OTHERS.values(), ids=OTHERS)
def test_a_folder_goes_on_with_its_own_run_alone_and_names_what_differs(other, named, tokenizer, items, tmp_path):
    finetune(ours(), tokenizer, items, **RUN, output_dir=tmp_path)
    with pytest.raises(ValueError, match=rf"holds another run \(.*{named}"):
        finetune(other(), tokenizer, items, **RUN, output_dir=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        finetune(ours(), tokenizer, items[:3], **RUN, output_dir=tmp_path)
    assert finetune(ours(), tokenizer, items, **RUN, output_dir=tmp_path).resumed_from == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [ours, theirs])
def test_adapters_in_16_bits_are_not_trained(make, dtype, tokenizer, items):
    with pytest.raises(ValueError, match="rounded away"):
        finetune(make().to(dtype), tokenizer, items, **RUN)


# The report.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_magnitudes_have_moved_only_once_they_have_in_every_precision(dtype):
    base = small_llama().to(dtype)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=SOME, use_dora=True))
    assert adapter_report(model).magnitude_moved is False
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "magnitude" in name)[0] *= 1.0003
    assert adapter_report(model).magnitude_moved is True


def test_nobody_can_know_whether_magnitudes_moved_after_a_start_at_which_b_was_not_zero():
    for start in (False, "pissa"):
        model = get_peft_model(
            small_llama(), LoraConfig(r=4, target_modules=SOME, use_dora=True, init_lora_weights=start)
        )
        assert adapter_report(model).magnitude_moved is None


def test_the_report_speaks_of_the_active_adapter():
    model = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=SOME, use_dora=True))
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["q_proj"]))
    assert adapter_report(model).method == "DoRA"
    model.set_adapter("plain")
    report = adapter_report(model)
    assert (report.method, report.magnitude_moved, report.trainable) == ("LoRA", None, 2 * 2 * 64)
    with model.disable_adapter(), pytest.raises(ValueError, match="switched on"):
        adapter_report(model)


def test_the_report_counts_layers_of_every_kind():
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    report = adapter_report(get_peft_model(small_llama(), config))
    assert {row[0]: row[2] for row in report.rows} == {"q_proj": 2 * 2 * 64, "embed_tokens": 2 * (64 + 32)}


# Answers.


def test_answers_of_pefts_qdora_are_not_spoilt_by_bytes_that_bitsandbytes_reorders(monkeypatch, tokenizer, items):
    """On processors with AVX512-BF16 a 4-bit layer in eval mode reorders its bytes, which PEFT's DoRA then misreads."""
    model = small_llama(vocab_size=49152, hidden_size=64, intermediate_size=64)
    for name in ("q_proj", "v_proj"):
        attention = model.model.layers[0].self_attn
        plain = getattr(attention, name)
        layer = bnb.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32)
        layer.load_state_dict(plain.state_dict())
        layer.support_avx512bf16_for_cpu = True
        setattr(attention, name, layer.to("cpu"))
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True))

    def reorder(*_):
        raise AssertionError("bytes were reordered under an adapter")

    monkeypatch.setattr(bnb.nn.modules, "_convert_weight_packed_for_cpu", reorder)
    assert len(answer(model, tokenizer, items, max_new_tokens=2)) == len(items)


# Data files and replies.

SEPARATORS = ["\u2028", "\u2029", "\x85"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_a_line_separator_that_json_allows_in_a_text_is_part_of_the_text(separator, items, tmp_path):
    item = copy.deepcopy(items[0])
    item["messages"][1]["content"] += f"{separator}thanks"
    item["messages"][2]["content"] = f'Noted.\n{{"action": "create", "title": "Buy{separator}milk"}}'
    line = json.dumps(item, ensure_ascii=False)
    assert validate_item(line) is None
    (tmp_path / "train.jsonl").write_text(line + "\n", encoding="utf-8", newline="\n")
    (read,) = load_task_api("train", tmp_path)
    assert read["messages"] == item["messages"]
    assert score([item["messages"][2]["content"]], [item]).task_accuracy == 1


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_named(encoding, items, tmp_path):
    line = json.dumps(items[0] | {"id": "ünïque"}, ensure_ascii=False)
    (tmp_path / "train.jsonl").write_text(line, encoding=encoding)
    with pytest.raises(ValueError, match=r"train\.jsonl is not in UTF-8"):
        load_task_api("train", tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(items, tmp_path):
    lines = [json.dumps(item) for item in items]
    (tmp_path / "train.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    assert len(load_task_api("train", tmp_path)) == len(items)


# Tokenizers.

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture
def another(tokenizer):
    return copy.deepcopy(tokenizer)


def test_a_turn_that_does_not_end_with_eos_is_learnt_to_its_own_end(another, items):
    another.chat_template = TURN + PROMPT
    another.eos_token = "<|endoftext|>"
    chat = encode_chat(another, items[0]["messages"])
    learnt = [token for token in chat["labels"] if token != -100]
    assert another.decode(learnt[-1]) == "<|im_end|>"


def test_answers_stop_where_the_template_ends_a_turn(another, items, monkeypatch):
    another.chat_template = TURN + PROMPT
    another.eos_token = "<|endoftext|>"
    model = small_llama(vocab_size=49152)
    given = {}
    monkeypatch.setattr(model, "generate", lambda **options: given.update(options) or options["input_ids"])
    answer(model, another, items[:1])
    assert another.convert_tokens_to_ids("<|im_end|>") in given["eos_token_id"]


def test_a_template_without_an_end_a_role_or_at_all_is_refused_in_a_sentence(another, items):
    another.chat_template = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    with pytest.raises(ValueError, match="no end token"):
        encode_chat(another, items[0]["messages"])
    another.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURN
    with pytest.raises(ValueError, match="no system role"):
        encode_chat(another, items[0]["messages"])
    another.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_chat(another, items[0]["messages"])


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_training_and_answering_need_no_pad_token(pad, another, items):
    another.pad_token = pad
    model = ours()
    assert len(finetune(model, another, items, **RUN).losses) == 2
    assert len(answer(model, another, items, max_new_tokens=2)) == len(items)


def test_a_pad_token_that_the_model_has_no_row_for_is_refused(another, items):
    another.add_special_tokens({"pad_token": "<|a new pad|>"})
    with pytest.raises(ValueError, match=r"pads with token 49152.*tokenizer\.pad_token"):
        finetune(ours(), another, items, **RUN)
    with pytest.raises(ValueError, match="pads with token 49152"):
        answer(ours(), another, items)


# Machines.


def test_the_first_cell_may_run_twice_where_torch_names_its_build(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", torch.__version__.split("+")[0] + "+cu130")
    start_lesson()
    assert capsys.readouterr().out == "Ready.\n"


@pytest.mark.parametrize("encoding", ["ascii"])
def test_advice_prints_under_every_code_page(encoding):
    code = "import dora_lesson as d; print(d.recommend(8, 'bundled'), d.findings(), chr(8214), chr(215))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert b"DoRA" in done.stdout


# Other configurations, other types.


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma3Config(), "multimodal"),
        (MixtralConfig(), "mixture of experts"),
        (GPT2Config(), "no linear layers"),
        ("llama-3.1-8b", "a configuration is expected"),
        (None, "a configuration is expected"),
    ],
    ids=["multimodal", "experts", "no-linear", "name", "nothing"],
)
def test_what_cannot_be_estimated_is_refused_in_a_sentence(config, words):
    with pytest.raises(ValueError, match=words):
        estimate(config, "dora", batch_size=1, sequence_length=8, r=4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vram_gb": "16"}, "vram_gb is '16'"),
        ({"vram_gb": True}, "vram_gb is True"),
        ({"priority": None}, "priority is None"),
        ({"priority": ["quality"]}, "priority is"),
        ({"model": 3}, "model is a int"),
        ({"model": MixtralConfig()}, "mixture of experts"),
        ({"model": Gemma3Config()}, "multimodal"),
        ({"sequence_length": "512"}, "sequence_length is '512'"),
        ({"sequence_length": True}, "sequence_length is True"),
        ({"bfloat16": "yes"}, "bfloat16 is 'yes'"),
    ],
    ids=str,
)
def test_wrong_types_are_refused_in_a_sentence(changed, words):
    asked = {"vram_gb": 16, "model": "llama-3.1-8b", "priority": "quality"} | changed
    with pytest.raises(ValueError, match=words):
        recommend(**asked)


def test_a_folder_that_holds_a_configuration_may_be_a_path(tmp_path):
    LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    assert "DoRA" in str(dora_lesson.recommend(16, tmp_path, "quality"))


def test_disturbed_layers_answer_alike_with_and_without_a_cache(tokenizer, items):
    model = ours()
    disturb(model)
    first = answer(model, tokenizer, items, max_new_tokens=4)
    assert answer(model, tokenizer, items, max_new_tokens=4, batch_size=1) == first


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 4},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
)
def test_answers_are_greedy_whatever_the_models_own_settings_say(setting, tokenizer, items):
    model = small_llama(vocab_size=49152, tie_word_embeddings="num_beams" not in setting)  # a tied one repeats itself
    plain = answer(model, tokenizer, items, max_new_tokens=8)
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    assert answer(model, tokenizer, items, max_new_tokens=8) == plain
    assert model.generation_config.to_dict()[name] == value


# Adapters of other kinds and dtypes.


def test_an_untrained_adapter_in_bfloat16_has_not_moved():
    assert adapter_report(ours().bfloat16()).magnitude_moved is False


def test_the_bias_of_an_update_is_counted():
    model = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=SOME, lora_bias=True))
    assert adapter_report(model).trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_an_adapter_of_another_kind_is_none_of_ours():
    model = get_peft_model(small_llama(), VeraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="no adapters that are switched on"):
        adapter_report(model)


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "int8"},
        {"dtype": "double16"},
        {"gradient_checkpointing": "no"},
        {"double_quantization": "x"},
        {"peft": "no"},
        {"reply_length": 0},
    ],
)
def test_an_estimate_of_nonsense_is_refused(changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name} is "):
        estimate(small_llama().config, "lora", batch_size=1, sequence_length=8, **changed)


def test_an_estimate_takes_a_dtype_by_name():
    size = {"batch_size": 1, "sequence_length": 8}
    by_name, by_dtype = (estimate(small_llama().config, "lora", **size, dtype=d) for d in ("float16", torch.float16))
    assert by_name.parts == by_dtype.parts


@pytest.mark.parametrize(
    "changed",
    [{"learning_rate": "1e-3"}, {"seed": 1.5}, {"seed": -1}, {"steps": True}, {"save_every": 0}, {"bf16": "no"}],
)
def test_a_run_of_nonsense_is_refused(changed, tokenizer, items, tmp_path):
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name} is "):
        finetune(ours(), tokenizer, items, **{"steps": 1, "learning_rate": 1e-3, "output_dir": tmp_path} | changed)


def test_replies_that_are_no_text_or_hold_endless_numbers_are_judged(items):
    endless = 'Done.\n{"action": "complete", "task": ' + "9" * 5000 + "}"
    assert score([endless], items[:1]).right == [False]
    assert score(['Done.\n{"action": "complete", "task": "' + "9" * 5000 + '"}'], items[:1]).right == [False]
    with pytest.raises(ValueError, match="A reply is None"):
        score([None], items[:1])


def test_numbers_of_numpy_train_and_are_written_down(tokenizer, items, tmp_path):
    numbers = {"steps": np.int64(1), "batch_size": np.int32(1), "seed": np.int64(3), "learning_rate": np.float32(1e-3)}
    model = ours(r=np.int64(4), lora_alpha=np.float32(8), lora_dropout=np.float32(0), use_rslora=np.True_)
    finetune(model, tokenizer, items, output_dir=tmp_path / "run", **numbers)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 3
    saved = json.loads((save_adapters(model, tmp_path / "adapter") / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["use_rslora"]) == (4, 8, True)


def test_a_4_bit_layer_that_has_answered_is_read_in_the_right_order(tmp_path):
    model = small_4_bit_llama(tmp_path / "base")
    before = effective_weights(model, ["q_proj"])
    ids = torch.arange(6)[None]
    model(ids)
    after = effective_weights(model, ["q_proj"])
    assert all(direction_change(before[name], after[name]) < 1e-3 for name in before)
    adapted = get_peft_model(
        small_4_bit_llama(tmp_path / "base"), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    ).eval()
    adapted(ids)
    assert adapter_report(adapted).magnitude_moved is False


def test_a_partly_adapted_4_bit_model_is_merged_saved_and_loaded(tokenizer, tmp_path):
    model = ours(small_4_bit_llama(tmp_path / "base"), target_modules=["q_proj"])
    disturb(model)
    ids = torch.arange(6)[None]
    expected = merge_adapters(model)(ids).logits
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    found = load_base(str(tmp_path), dtype="float32")[0]
    assert {type(layer).__name__ for layer in found.modules()} >= {"Linear", "Linear4bit"}
    assert (found(ids).logits - expected).norm() < 0.02 * expected.norm()


def test_an_adapter_of_a_base_in_the_hubs_cache_names_it_as_on_the_hub(tmp_path):
    snapshot = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "12fd25f7"
    small_llama().save_pretrained(snapshot)
    model = type(small_llama()).from_pretrained(snapshot)
    folder = save_adapters(ours(model), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M"
    for name in (str(snapshot), "HuggingFaceTB/SmolLM2-135M"):
        base = type(small_llama()).from_pretrained(snapshot)
        base.config.name_or_path = base.name_or_path = name
        load_adapters(base, folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_an_adapter_in_an_unusual_dtype_is_refused_and_the_model_untouched(dtype, tmp_path):
    folder = save_adapters(ours(), tmp_path)
    file = folder / "adapter_model.safetensors"
    save_file({key: t.to(dtype) for key, t in load_file(file).items()}, file, {"format": "pt"})
    model = small_llama(vocab_size=49152)
    with pytest.raises(ValueError, match="save the adapter in 16 or 32 bits"):
        load_adapters(model, folder)
    assert all(p.requires_grad for p in model.parameters())


def test_a_cut_configuration_is_refused_in_a_short_sentence(tmp_path):
    folder = save_adapters(ours(), tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="Invalid JSON") as raised:
        load_adapters(small_llama(), folder)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_a_model_whose_embedding_is_adapted_answers_and_trains(tokenizer, items):
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    model = get_peft_model(small_llama(vocab_size=49152), config)
    finetune(model, tokenizer, items, steps=1, batch_size=2, learning_rate=1e-3)
    assert len(answer(model, tokenizer, items[:1], max_new_tokens=2)) == 1


def test_the_tokenizer_of_another_model_is_named(tokenizer, items):
    model = ours(small_llama(vocab_size=2000))
    tokenizer = copy.copy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    for call in (lambda: answer(model, tokenizer, items), lambda: finetune(model, tokenizer, items, **RUN)):
        with pytest.raises(ValueError, match="has 2000 rows: load the model's own tokenizer"):
            call()


@pytest.mark.parametrize("content", [[{"type": "text", "text": "hello"}], 5, None])
def test_a_message_that_is_no_text_is_refused_in_a_sentence(content, tokenizer, items):
    asked = [{"role": "user", "content": content}, {"role": "assistant", "content": "hello"}]
    with pytest.raises(ValueError, match="each with a `role` and a text"):
        encode_chat(tokenizer, asked)
    with pytest.raises(ValueError, match="A list of items is expected"):
        answer(ours(), tokenizer, [{"messages": asked}])


def test_a_text_in_place_of_replies_or_of_a_request_is_told(tokenizer, items):
    with pytest.raises(ValueError, match="pass a list, one reply an item"):
        score("x", items[:1])
    assert find_call(None) is None
    turn = Assistant(ours(), tokenizer, TaskList()).ask(None)
    assert "Type a request" in turn.text and turn.call is None


def test_names_that_are_no_text_match_nothing():
    for names in (["q_proj", 5], [None], b"q_proj"):
        with pytest.raises(ValueError, match="name the layers to adapt"):
            ours(target_modules=names)


def test_a_folder_of_chats_may_lie_at_home(items, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(items[0]))
    assert len(load_task_api("train", "~/set")) == 1
