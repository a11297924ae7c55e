"""Every leaf of the tree is reached, its configuration runs, and what would change the answer changes it."""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config

from dora_lesson import adapter_report, estimate
from dora_lesson.advisor.memory_fit import usable_bytes
from dora_lesson.advisor.recommend import recommend
from dora_lesson.advisor.request import INFERENCE, PACKED, PRIORITIES, STACKS
from dora_lesson.core import METHODS as ALL
from dora_lesson.models.shapes import llama_config
from dora_lesson.multi_gpu.config import METHODS
from tests.test_adapters import small_llama

BIG = "llama-3.1-8b"
LEAVES: list[tuple[str | None, dict[str, Any]]] = [
    # the plain tree
    ("DoRA", {"vram_gb": 24}),
    ("LoRA", {"vram_gb": 24, "priority": "time"}),
    ("QDoRA", {"vram_gb": 12}),
    ("QLoRA", {"vram_gb": 12, "priority": "time"}),
    ("QLoRA", {"vram_gb": 12, "priority": "memory"}),
    (None, {"vram_gb": 6}),
    # and its corrections: what is served, and by what
    ("QDoRA", {"vram_gb": 16}),  # the weights of an 8B alone take 16 GB
    ("QDoRA", {"vram_gb": 15, "bfloat16": False}),
    ("LoRA", {"vram_gb": 24, "inference": "unmerged"}),
    ("LoRA", {"vram_gb": 24, "inference": "unmerged", "stack": "vllm"}),
    ("DoRA", {"vram_gb": 24, "stack": "vllm"}),  # merged, a server sees a plain Llama
    ("QLoRA", {"vram_gb": 24, "inference": "4-bit"}),
    ("QLoRA", {"vram_gb": 24, "priority": "memory"}),
    ("QLoRA", {"vram_gb": 24, "inference": "4-bit", "stack": "gptq"}),
    ("QLoRA", {"vram_gb": 24, "inference": "unmerged", "stack": "awq"}),
    (None, {"vram_gb": 24, "stack": "torchao"}),
    ("QLoRA", {"vram_gb": 12, "stack": "deepspeed"}),
    ("DoRA", {"vram_gb": 24, "stack": "deepspeed"}),
    ("QDoRA", {"vram_gb": 12, "stack": "fsdp"}),
    ("DoRA", {"vram_gb": 8, "model": "llama-3.2-1b"}),  # under 8 GB a smaller model is not out of reach
    ("QLoRA", {"vram_gb": 9.5}),  # PEFT's DoRA takes more than is there
]


@pytest.mark.parametrize(("method", "asked"), LEAVES, ids=[f"{m}-{a}" for m, a in LEAVES])
def test_leaf(method: str | None, asked: dict[str, Any]) -> None:
    found = recommend(**{"model": BIG} | asked)
    assert found.method == method
    assert found.reasons and found.would_change
    if method is None or found.fit is None:
        assert not found.config and not found.snippet and found.r == 0 and found.memory is None
        assert str(found).startswith("Nothing to recommend")
        return
    fit = found.fit
    assert fit.peak <= usable_bytes(asked["vram_gb"])
    dtype = torch.bfloat16 if asked.get("bfloat16", True) else torch.float16
    expected = estimate(
        llama_config(asked.get("model", BIG)),
        method.lower(),
        batch_size=fit.batch_size,
        sequence_length=512,
        r=found.r,
        dtype=dtype,
        gradient_checkpointing=fit.gradient_checkpointing,
        gradient_accumulation_steps=fit.gradient_accumulation_steps,
    )
    assert found.memory == expected
    assert found.config["use_dora"] == ("DoRA" in method) and found.config["r"] == found.r
    beside = f", beside {method.replace('D', 'L')}" if "DoRA" in method else ""
    assert found.cost and str(found).startswith(f"{method}, r = {found.r}{beside}: ")
    assert found.answers == {"fits": True, "sixteen": method[0] != "Q", "dora": "DoRA" in method}


@pytest.mark.parametrize(("method", "asked"), [leaf for leaf in LEAVES if leaf[0]], ids=str)
def test_the_configuration_runs_as_it_is(
    method: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With a small random Llama in the place of the model, and nothing else changed; then one step is taken."""
    small_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    found = recommend(**{"model": BIG} | asked)
    text = found.snippet.replace(f'"{found.request.model_id}"', repr(str(tmp_path / "model")))
    assert text != found.snippet
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".gradient_checkpointing")
        exec(compile(text, "snippet", "exec"), names)
    assert "trainable params" in capsys.readouterr().out
    report = adapter_report(names["model"])
    assert report.method == method.removeprefix("Q")
    four_bit = any("4bit" in type(module).__name__ for module in names["model"].modules())
    # A packed checkpoint carries its own configuration, which a small Llama in its place does not.
    assert four_bit == (method.startswith("Q") and asked.get("stack") not in PACKED)
    config, arguments = names["config"], names["arguments"]
    given = {key: value for key, value in found.config.items() if key != "target_modules"}  # PEFT spells it out
    assert {key: getattr(config, key) for key in given} == given
    assert found.fit is not None
    assert arguments.per_device_train_batch_size == found.fit.batch_size
    assert arguments.gradient_accumulation_steps == found.fit.gradient_accumulation_steps
    checkpointing = {getattr(arguments, f"{name}_checkpointing", None) for name in ("gradient", "activation")}
    assert (True in checkpointing) == found.fit.gradient_checkpointing
    ids = torch.arange(8)[None]
    names["model"](input_ids=ids, labels=ids).loss.backward()
    trained = [p for p in names["model"].parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 and p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("priority", "inference", "stack", "vram_gb"), [*itertools.product(PRIORITIES, INFERENCE, STACKS, (6, 12, 24))]
)
def test_every_combination_is_answered_and_the_rules_hold(
    priority: str, inference: str, stack: str, vram_gb: float
) -> None:
    found = recommend(vram_gb, BIG, priority, inference=inference, stack=stack)
    assert found.method in {*(ALL[method].label for method in METHODS), None}
    assert all(said.strip() for said in [*found.reasons, *found.would_change, *found.cost])
    if found.method and "DoRA" in found.method:
        assert (priority, inference) == ("quality", "merged") and stack not in PACKED
    if inference == "4-bit" or priority == "memory" or stack in PACKED:
        assert found.method in ("QLoRA", "QDoRA", None)
    if vram_gb == 6:
        assert found.method is None


CARDS = (4, 6, 7, 8, 9.5, 10, 12, 16, 19, 20, 24, 80)
WORDS: dict[str, dict[str, Any]] = {
    **{f"{priority} first": {"priority": priority} for priority in PRIORITIES},
    "merged into 16-bit weights": {"inference": "merged"},
    "served unmerged": {"inference": "unmerged"},
    "served beside a packed base": {"inference": "4-bit"},
    "without DeepSpeed": {"stack": "peft"},
    "training over the 16-bit checkpoint": {"stack": "peft"},
}


advised = functools.cache(recommend)  # a grid's answers are each other's changes


def in_words(condition: str) -> dict[str, Any]:
    """The change of constraints that one condition names; a KeyError where it says what nothing here can read."""
    if found := re.fullmatch(r"chats of (\d+) tokens", condition):
        return {"sequence_length": int(found.group(1))}
    if found := re.fullmatch(r"a smaller model, such as (\S+)", condition):
        return {"model": found.group(1)}
    return WORDS[condition]


def asked_again(line: str, asked: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """What a line of `would_change` says, as pairs of changed constraints and the method that they lead to."""
    cards = re.fullmatch(r"(?:(.*) and )?on a larger card, bought or rented: (.*)", line)
    if cards:
        also = {k: v for part in (cards.group(1) or "").split(" and ") if part for k, v in in_words(part).items()}
        told = []
        now = advised(**asked | also).method
        for step in cards.group(2).split(", "):
            method, gb = step.removesuffix(" GB").split(" from ")
            told += [(also | {"vram_gb": float(gb) - 0.11}, str(now)), (also | {"vram_gb": float(gb)}, method)]
            now = method
        return [*told, (also | {"vram_gb": 500}, str(now))]
    conditions, method = line.split(": then ")
    method, _, plain = method.partition(", beside ")
    assert plain == (method.replace("D", "L") if "DoRA" in method else "")
    told = []
    for either in re.split(r", (?!such as |together)| or ", conditions.removesuffix(", together")):
        changed = {k: v for part in either.split(" and ") for k, v in in_words(part).items()}
        told.append((changed, method))
    return told


def wrong_lines(**asked: Any) -> list[str]:
    found = advised(**asked)
    wrong = []
    for line in found.would_change:
        for changed, method in asked_again(line, asked):
            again = advised(**asked | changed).method
            beyond = changed.keys() & {"vram_gb"}
            if str(again) != method or (again == found.method and not beyond):
                wrong.append(f"{asked}: {line!r}, but with {changed} it is {again}")
    return wrong


@pytest.mark.parametrize("stack", ["peft", "vllm", "deepspeed", "fsdp", "gptq"])
@pytest.mark.parametrize("model", [BIG, "llama-2-7b", "llama-3.2-1b"])
def test_what_would_change_the_answer_changes_it(model: str, stack: str) -> None:
    """Every line of every answer is held to the advisor itself, asked under the constraints that the line names."""
    for vram_gb, priority, inference in itertools.product(CARDS, PRIORITIES, INFERENCE):
        asked = {"vram_gb": vram_gb, "model": model, "priority": priority, "inference": inference, "stack": stack}
        assert not wrong_lines(**asked)
        found = advised(**asked)
        assert found.would_change, f"{asked}: an answer that nothing would change"
        if found.method == "QDoRA" or (found.method is None and stack != "gptq"):
            assert found.would_change[0].startswith("on a larger card")


def test_where_nothing_fits_shorter_chats_and_smaller_models_are_named() -> None:
    short = recommend(7, "llama-3.2-1b", "memory", sequence_length=4096)
    assert short.method is None and not wrong_lines(
        vram_gb=7, model="llama-3.2-1b", priority="memory", sequence_length=4096
    )
    said = " ".join(short.would_change)
    assert "chats of 2048 tokens: then QLoRA" in said and "smollm2-1.7b" not in said  # which is larger
    assert any("a smaller model, such as llama-2-7b" in line for line in recommend(8, BIG).would_change)
    packed = recommend(4, BIG, stack="gptq").would_change
    assert packed and all(line.startswith("served beside a packed base and ") for line in packed)


def test_the_base_stays_in_16_bits_where_lora_fits_so() -> None:
    found = recommend(20, BIG)
    assert found.method == "LoRA" and found.answers["sixteen"]
    assert any("no setting of DoRA in 16 bits fits" in reason for reason in found.reasons)
    assert any("What 4 bits cost" in reason for reason in found.reasons)
    assert recommend(20, BIG, stack="deepspeed").method == "LoRA"


def test_dora_is_named_as_a_candidate_beside_lora() -> None:
    for vram_gb, name, plain, record in [
        (24, "DoRA", "LoRA", "DoRA minus LoRA"),
        (12, "QDoRA", "QLoRA", "QDoRA minus"),
    ]:
        found = recommend(vram_gb, BIG)
        assert str(found).startswith(f"{name}, r = 16, beside {plain}: ") and found.method == name
        assert any(f"{name} is a candidate, to be run beside {plain}" in reason for reason in found.reasons)
        evidence = [reason for reason in found.reasons if reason.endswith("]")]
        assert evidence[0].startswith(record) and "[measured: data/records/sweep]" in evidence[0]
    assert "beside" not in recommend(24, BIG, "time").headline


def test_memory_first_says_what_the_weights_take() -> None:
    said = recommend(8, "llama-3.2-1b", "memory").reasons[0]
    assert said == "memory is first, and in 4 bits the weights take 1.0 GB in place of 2.5"


def test_a_packed_base_is_loaded_from_a_packed_checkpoint(tmp_path: Path) -> None:
    """The checkpoint that belongs to a known shape holds 16-bit weights, and would be loaded as they are."""
    for model in (BIG, "meta-llama/Llama-3.1-8B-Instruct"):
        found = recommend(12, model, inference="4-bit", stack="gptq")
        assert 'pretrained(\n    "path/to/your-gptq-checkpoint"' in found.snippet
        assert "meta-llama" not in found.snippet and "BitsAndBytes" not in found.snippet
    small_llama().save_pretrained(tmp_path)
    assert str(tmp_path) in recommend(8, str(tmp_path), inference="4-bit", stack="awq").snippet


def test_evidence_stands_with_its_kind_and_source() -> None:
    said = str(recommend(24, BIG))
    assert "[measured: data/records/sweep]" in said
    assert "[published: Liu et al." in said and "[opinion]" in said


def test_the_model_may_be_a_name_of_the_hub_a_folder_or_a_configuration(tmp_path: Path) -> None:
    assert recommend(24, "meta-llama/Llama-3.1-8B-Instruct").request == recommend(24, BIG).request
    assert 'pretrained(\n    "HuggingFaceTB/SmolLM2-135M-Instruct"' in recommend(8, "bundled").snippet
    small_llama().save_pretrained(tmp_path)
    found = recommend(8, str(tmp_path))
    assert found.method == "DoRA" and str(tmp_path) in found.snippet
    assert recommend(24, llama_config(BIG)).method == "DoRA"


@pytest.mark.parametrize("config", [GPT2Config(), BertConfig()])
def test_a_folder_of_another_model_is_refused(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config.save_pretrained("mine")  # without a slash
    with pytest.raises(ValueError, match="but a Llama, or a model built like one"):
        recommend(24, "mine")


@pytest.mark.parametrize(("asked", "says"), [
    ({"priority": "speed"}, "priority is 'speed', but one of quality, time, memory"),
    ({"inference": "4bit"}, "inference is '4bit', but one of merged, unmerged, 4-bit"),
    ({"stack": "tgi"}, "stack is 'tgi', but one of peft, vllm"),
    ({"vram_gb": 0}, "vram_gb is 0, but the memory"),
    ({"vram_gb": "16 GB"}, "vram_gb is '16 GB'"),
    ({"model": GPT2Config()}, "model is a GPT2Config, but a Llama"),
    ({"model": BertConfig()}, "model is a BertConfig, but a Llama"),
    ({"vram_gb": 16e9}, "vram_gb is 16000000000.0, but"),
    ({"model": "llama-9"}, "model is 'llama-9', but one of llama-3.1-8b"),
    ({"model": 8}, "model is a int, but a name"),
    ({"sequence_length": 0}, "sequence_length is 0"),
])  # fmt: skip
def test_bad_input_is_one_sentence(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        recommend(**{"vram_gb": 24, "model": BIG} | asked)
    assert "\n" not in str(raised.value)
