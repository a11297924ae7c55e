"""Every leaf of the tree is reached, its configuration runs, and what would change the answer changes it."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import re
import shutil
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    Gemma3Config,
    GPT2Config,
    Llama4Config,
    LlamaConfig,
    NemotronConfig,
    Qwen2_5_VLConfig,
)

from dora_lesson import estimate
from dora_lesson.advisor import model as model_module
from dora_lesson.advisor.changes import CONSTRAINTS, Change, find_changes
from dora_lesson.advisor.memory_fit import usable_bytes
from dora_lesson.advisor.recommend import as_call, recommend, recommend_for
from dora_lesson.advisor.request import BASE_FORMATS, INFERENCE, PRIORITIES, SERVERS, TRAINERS, Request, parse_request
from dora_lesson.advisor.tree import NOTHING_FITS, QUESTIONS, choose
from dora_lesson.core import ADAPTERS, METHODS
from dora_lesson.memory.shapes import llama_config
from tests.test_adapters import small_llama

BIG, OWNED = "llama-3.1-8b", "meta-llama/Llama-3.1-8B"
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
    ("LoRA", {"vram_gb": 24, "inference": "unmerged", "server": "vllm"}),
    ("DoRA", {"vram_gb": 24, "server": "vllm"}),  # merged, a server sees a plain Llama
    ("DoRA", {"vram_gb": 24, "server": "ollama", "packed": "gguf"}),
    ("QDoRA", {"vram_gb": 12, "packed": "nf4"}),
    ("QDoRA", {"vram_gb": 12, "server": "vllm", "packed": "awq"}),
    ("QLoRA", {"vram_gb": 12, "inference": "4-bit", "server": "llama.cpp"}),
    ("QLoRA", {"vram_gb": 24, "inference": "4-bit"}),
    ("LoRA", {"vram_gb": 24, "inference": "4-bit", "server": "ollama"}),  # packed in another way than NF4
    ("QLoRA", {"vram_gb": 24, "priority": "memory"}),
    ("QLoRA", {"vram_gb": 24, "inference": "4-bit", "base_format": "gptq"}),
    ("QLoRA", {"vram_gb": 24, "inference": "unmerged", "base_format": "awq"}),
    (None, {"vram_gb": 24, "base_format": "torchao"}),
    ("QLoRA", {"vram_gb": 12, "trainer": "deepspeed"}),
    ("DoRA", {"vram_gb": 24, "trainer": "deepspeed"}),
    ("QDoRA", {"vram_gb": 10, "trainer": "fsdp"}),
    ("QLoRA", {"vram_gb": 24, "trainer": "fsdp", "gpus": 4, "model": "llama-3.1-70b"}),
    ("DoRA", {"vram_gb": 16, "device": "cpu", "model": "llama-3.2-1b"}),
    ("QLoRA", {"vram_gb": 16, "device": "mps", "priority": "time"}),
    ("DoRA", {"vram_gb": 8, "model": "llama-3.2-1b"}),  # under 8 GB a smaller model is not out of reach
    ("QLoRA", {"vram_gb": 9}),  # PEFT's DoRA takes more than is there
]


def request(vram_gb: float = 24, model: Any = BIG, priority: str = "quality", **other: Any) -> Request:
    return recommend(vram_gb, model, priority, **other).request


def test_every_leaf_is_reached_with_a_setup_that_fits() -> None:
    for method, constraints in LEAVES:
        found = recommend(**{"model": BIG} | constraints)
        assert found.method == method, constraints
        assert found.reasons and found.would_change
        if found.setup is None or method is None:
            assert not found.config and not found.script() and not found.cost
            assert found.r == 0 and found.memory is None
            assert found.way == ([] if "base_format" in constraints else ["fits", NOTHING_FITS])
            assert str(found).startswith("Nothing to recommend: ")
            continue
        setup = found.setup
        assert setup.peak <= usable_bytes(constraints["vram_gb"])
        assert found.config["use_dora"] == ("DoRA" in method) and found.config["r"] == found.r
        beside = f", beside {method.replace('D', 'L')}" if "DoRA" in method else ""
        assert found.cost and str(found).startswith(f"{method}, r = {found.r}{beside}: ")
        third = "dora, 4" if method.startswith("Q") else "dora, 16"
        assert found.way == ["fits", "sixteen", third, method.lower()]


def test_the_memory_is_that_of_the_estimate_at_the_recommended_setup() -> None:
    for constraints in ({"vram_gb": 24}, {"vram_gb": 12, "priority": "memory"}, {"vram_gb": 15, "bfloat16": False}):
        found = recommend(**{"model": BIG} | constraints)
        assert found.setup is not None
        assert found.memory == estimate(
            llama_config(BIG),
            found.setup.method,
            batch_size=found.setup.batch_size,
            sequence_length=512,
            r=found.r,
            dtype=torch.bfloat16 if constraints.get("bfloat16", True) else torch.float16,
            optimizer=found.setup.optimizer,
            gradient_checkpointing=found.setup.gradient_checkpointing,
            gradient_accumulation_steps=found.setup.gradient_accumulation_steps,
        )


def test_every_edge_of_the_tree_leads_to_a_question_or_a_leaf() -> None:
    ends = [end for question in QUESTIONS.values() for end in (question.yes, question.no)]
    assert sorted(ends) == sorted([*(QUESTIONS.keys() - {"fits"}), *ADAPTERS, NOTHING_FITS])


def runs() -> dict[tuple[Any, ...], dict[str, Any]]:
    """One request for each kind of script: these properties decide what is in it."""
    kinds = {}
    for _, constraints in LEAVES:
        found = recommend(**{"model": BIG} | constraints)
        if setup := found.setup:
            asked = found.request
            key = (setup.method, asked.came_packed, setup.gradient_checkpointing, asked.bfloat16, asked.packed)
            kinds.setdefault(key, constraints)
    return kinds


# Put around a script's line that lets the trained model go.
BEFORE = "epochs, held = trainer.state.epoch, [weakref.ref(p) for n, p in model.named_parameters() if 'proj' in n]\n"
AFTER = "\nheld = [weight for weight in held if weight() is not None]\n"
CHATS = [("Where is the ferry?", "At pier 3."), ("When does it leave?", "At six."), ("Long?", "Yes. " * 600)]


@pytest.fixture
def small_model(tmp_path: Path, bundled: tuple[Any, Any]) -> Path:
    """A small random Llama with a real tokenizer, in a folder."""
    tokenizer = bundled[1]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": len(tokenizer), "num_hidden_layers": 1}
    small_llama(**sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["a method", "a kind"])
def test_the_script_runs_as_it_is_from_chats_to_an_answer(
    every: bool, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small random Llama in the place of the model, and two steps: one script a method, each kind at night."""
    monkeypatch.chdir(tmp_path)
    messages = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in 5 * CHATS]
    (tmp_path / "my chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in messages))
    kinds = runs()
    assert len(kinds) >= 6 and {method for method, *_ in kinds} == {*ADAPTERS}
    first = {method: key for key in reversed(kinds) if (method := key[0])}.values()
    for key, constraints in kinds.items():
        if not every and key not in first:
            continue
        method, came_packed, checkpointing, *_ = key
        for folder in ("adapter", "merged"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        found = recommend(**{"model": BIG} | constraints)
        script = found.script(data="my chats.jsonl", base=small_model, steps=2)
        names: dict[str, Any] = {"weakref": weakref}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".gradient_checkpointing")
            watched = re.sub(r"(?m)^del trainer, model\ngc.collect.*", lambda line: BEFORE + line[0] + AFTER, script)
            exec(compile(watched, "train.py", "exec"), names)
        printed = capsys.readouterr().out
        assert "passes over 9 of 15" in printed and "trainable params" in printed
        passes = re.search(r"([\d.]+) passes", printed)
        assert passes and float(passes[1]) == pytest.approx(names["epochs"], abs=0.05)
        assert len(names["chats"]) == 9 and re.search(r"held-out loss \d+\.\d+", printed)
        # All but the reply and its end is masked.
        learned = names["tokenizer"].decode([i for i in names["chats"][0]["labels"] if i != -100])
        assert learned.startswith(CHATS[0][1]) and "ferry" not in learned
        given = {key: value for key, value in found.config.items() if key != "target_modules"}  # PEFT spells it out
        assert {key: getattr(names["config"], key) for key in given} == given
        arguments, setup = names["arguments"], found.setup
        assert setup is not None and arguments.per_device_train_batch_size == setup.batch_size
        assert arguments.gradient_accumulation_steps == setup.gradient_accumulation_steps
        flags = {getattr(arguments, f"{name}_checkpointing", None) for name in ("gradient", "activation")}
        assert (True in flags) == checkpointing
        saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert saved["use_dora"] == (METHODS[method].adapter == "dora")
        trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert trained and all(tensor.dtype == torch.float32 for tensor in trained.values())
        assert all(tensor.any() for name, tensor in trained.items() if "lora_B" in name), "B stayed at zero"
        assert any("magnitude" in name for name in trained) == saved["use_dora"]
        merged = found.request.inference == "merged"
        assert (tmp_path / "merged" / "model.safetensors").is_file() == merged
        four_bit = "Linear4bit" in {type(module).__name__ for module in names["model"].modules()}
        packed = found.request.packed == "nf4"
        beside_nf4 = METHODS[method].four_bit and not came_packed and found.request.inference == "4-bit"
        assert four_bit == (packed or beside_nf4), constraints
        assert names["held"] == [], "the trained base is still in memory beside the next"
        assert hasattr(names["model"], "peft_config") != merged


def test_a_script_fits_a_screen_and_names_what_it_was_asked_for() -> None:
    for method, constraints in LEAVES:
        found = recommend(**{"model": BIG} | constraints)
        lines = found.script(data=Path("my.jsonl"), base='odd "name"').splitlines()
        if method is None:
            assert not lines
            continue
        start, several = lines[:2], "trainer" in constraints
        assert len(lines) <= 60 and max(map(len, lines[:1] + lines[2:])) <= 120, constraints
        assert 'BASE, DATA = "odd \\"name\\"", "my.jsonl"' in lines
        assert not any("dora_lesson" in line for line in lines)
        packing = (method.startswith("Q") and "base_format" not in constraints) or constraints.get("packed") == "nf4"
        assert any(line.startswith("packing = BitsAndBytesConfig(") for line in lines) == packing
        merges = constraints.get("inference", "merged") == "merged"
        assert any("merge_and_unload" in line for line in lines) == merges
        assert ("accelerate launch" in start[1]) == several and ("python train.py" in start[0]) != several
        (loading,) = [line for line in lines if "from_pretrained(BASE, " in line][:1]
        processor = constraints.get("device") == "cpu" or constraints.get("trainer") == "fsdp"
        place = 'device_map="cpu"' if processor else "" if several else "device_map=place"
        assert place in loading and ("device_map" in loading) == bool(place)


@pytest.mark.parametrize("given", [{"data": None}, {"data": 5}, {"data": " "}, {"base": 7}])
def test_a_script_without_a_name_for_its_data_or_base_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} is .*, but the name of a file or a model is expected"):
        recommend(12, BIG).script(**given)


@pytest.mark.parametrize("steps", [0, -1, True, 1.5, "many"])
def test_steps_that_are_no_number_of_steps_are_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="a whole number from 1 is expected"):
        recommend(12, BIG).script(steps=steps)


@pytest.mark.slow
def test_the_rules_hold_for_every_combination() -> None:
    """Two hundred situations and more: no exception, the fit is real, each change is asked again and agrees."""
    situations = [*itertools.product(PRIORITIES, INFERENCE, SERVERS, TRAINERS, (6, 24), (BIG, "llama-3.2-1b"))]
    situations += [*itertools.product(PRIORITIES, INFERENCE, BASE_FORMATS, (512, 4096), (12, 80), ("llama-2-7b",))]
    assert len(situations) > 200
    for priority, inference, *others in situations:
        names = ("server", "trainer") if others[0] in SERVERS else ("base_format", "sequence_length")
        *values, vram_gb, model = others
        constraints = dict(zip(names, values, strict=True))
        found = recommend(vram_gb, model, priority, inference=inference, **constraints)
        case = f"{priority}, {inference}, {constraints}, {vram_gb} GB, {model}: {found.method}"
        assert found.method in {*(METHODS[method].label for method in ADAPTERS), None}, case
        sentences = [finding.text for finding in [*found.cost, *found.reasons]] + found.changes_in_words
        assert all(sentence.strip() and "{" not in sentence for sentence in sentences), case
        assert found.reasons and (found.cost or found.method is None), case
        came_packed = constraints.get("base_format", "16-bit") != "16-bit"
        if found.method and "DoRA" in found.method:
            assert (priority, inference) == ("quality", "merged") and not came_packed, case
        if (inference, found.request.packed) == ("4-bit", "nf4") or priority == "memory" or came_packed:
            assert found.method in ("QLoRA", "QDoRA", None), case
        if (vram_gb, model, constraints.get("trainer")) == (6, BIG, "one gpu"):
            assert found.method is None, case
        if found.setup:
            assert found.setup.peak <= usable_bytes(vram_gb), case
        for change in found.would_change:
            assert labelled(asked_again(change.request)) == change.answer, (case, change)


def asked_again(request: Request) -> Request:
    """The request that the line of Python asks, which `as_call` writes."""

    def parsed(*arguments: Any, **named: Any) -> Request:
        bound = inspect.signature(recommend).bind(*arguments, **named)
        bound.apply_defaults()
        return parse_request(**bound.arguments)

    return eval(as_call(request), {"recommend": parsed})  # type: ignore[no-any-return]


@pytest.mark.parametrize("constraints", [
    {"vram_gb": 24, "model": BIG, "inference": "4-bit", "base_format": "gptq"},
    {"vram_gb": 8, "model": "llama-3.1-70b", "inference": "4-bit", "base_format": "gptq", "server": "vllm"},
    {"vram_gb": 24, "model": BIG, "inference": "4-bit", "base_format": "awq", "packed": "awq", "server": "vllm"},
    {"vram_gb": 6, "model": BIG, "optimizer": "adamw_8bit"},
    {"vram_gb": 24, "model": "llama-3.1-70b", "optimizer": "adamw_8bit", "trainer": "deepspeed"},
    {"vram_gb": 24, "model": "meta-llama/Llama-3.1-8B"},
    {"vram_gb": 24, "model": "unsloth/llama-3.1-8b", "packed": "nf4", "server": "vllm"},
])  # fmt: skip
def test_a_question_and_its_changes_are_the_same_when_asked_again(constraints: dict[str, Any]) -> None:
    found = recommend(**constraints)
    assert asked_again(found.request) == found.request
    assert found.would_change
    for change in found.would_change:
        again = asked_again(change.request)
        assert labelled(again) == change.answer and again.model_id == change.request.model_id, change


def test_a_packed_base_and_what_it_cannot_be_served_by_contradict_each_other() -> None:
    packed = {"inference": "4-bit", "base_format": "gptq"}
    for more, words in [
        ({"packed": "nf4", "server": "vllm"}, "the base came packed as gptq: leave packed out"),
        ({"packed": "awq"}, "the base came packed as gptq: leave packed out"),
        ({"server": "ollama"}, "ollama reads GGUF alone: take the 16-bit base"),
    ]:
        with pytest.raises(ValueError, match=words):
            recommend(24, BIG, **packed, **more)


def test_another_model_for_a_packed_base_is_packed_too() -> None:
    found = recommend(8, "llama-3.1-70b", inference="4-bit", base_format="gptq")
    (smaller,) = [change.request for change in found.would_change if change.constraints == ("label",)]
    assert 'BASE, DATA = "path/to/your-gptq-checkpoint"' in recommend_for(smaller).script()
    whole = recommend(24, BIG, inference="4-bit", base_format="gptq").request.over_16_bits()
    assert whole.model_id == "meta-llama/Llama-3.1-8B-Instruct" and whole.packed == "nf4"


@pytest.mark.parametrize("page", ["", "/", "/tree/main", "?library=transformers"])
def test_an_address_of_the_hub_is_the_model_on_that_page(page: str) -> None:
    found = request(24, f"https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct{page}")
    assert found.model_id == "meta-llama/Llama-3.1-8B-Instruct"


CARDS = (4, 6, 7, 8, 9, 10, 12, 16, 18.5, 19.5, 24, 80)


@functools.cache
def grid() -> list[tuple[Request, list[Change]]]:
    """Requests of every kind, each with its changes."""
    asked = []
    kinds = [{}, {"server": "vllm"}, {"trainer": "deepspeed"}, {"trainer": "fsdp"}, {"base_format": "gptq"}]
    for model, kind in itertools.product([BIG, "llama-3.2-1b"], kinds):
        first = request(model=model, **kind)
        for vram_gb, priority, inference in itertools.product(CARDS, PRIORITIES, INFERENCE):
            asked.append(replace(first, vram_gb=vram_gb, priority=priority).served(inference))
    return [(each, find_changes(each)) for each in asked]


def labelled(asked: Request) -> str | None:
    method = choose(asked)
    return METHODS[method].label if method else None


def test_each_changed_request_gets_the_answer_that_is_given_for_it() -> None:
    for asked, changes in grid():
        assert changes, f"{asked}: nothing would change the answer"
        for change in changes:
            assert labelled(change.request) == change.answer, (asked, change)
            differing = {name for name in CONSTRAINTS if getattr(change.request, name) != getattr(asked, name)}
            assert differing == {*change.constraints}, (asked, change)
            assert change.answer != labelled(asked) or "vram_gb" in differing, (asked, change)


def test_a_larger_card_is_the_smallest_on_which_its_method_is_the_answer() -> None:
    for asked, changes in grid():
        cards = [change for change in changes if "vram_gb" in change.constraints]
        for change in cards:
            smaller = replace(change.request, vram_gb=change.request.vram_gb - 0.11)
            assert labelled(smaller) != change.answer, (asked, change)
        if cards:
            largest = max(cards, key=lambda change: change.request.vram_gb)
            assert labelled(replace(largest.request, vram_gb=500)) == largest.answer, (asked, largest)
        if labelled(asked) == "QDoRA" or (labelled(asked) is None and not asked.came_packed):
            assert changes[0].constraints == ("vram_gb",), asked


def test_every_single_choice_that_changes_the_answer_is_among_the_changes() -> None:
    for asked, changes in grid():
        changed = {change.request for change in changes}
        others = [replace(asked, priority=priority) for priority in PRIORITIES]
        others += [asked.served(inference) for inference in INFERENCE if inference != asked.inference]
        for other in others:
            if labelled(other) not in (None, labelled(asked)):
                assert other in changed, (asked, other)


def test_where_nothing_fits_shorter_chats_and_smaller_models_are_proposed() -> None:
    short = {change.constraints: change for change in find_changes(request(7, "llama-3.2-1b", sequence_length=4096))}
    assert short["sequence_length",].request.sequence_length == 2048
    smaller = short["label",].request
    assert smaller.label == "smollm2-135m"  # smollm2-1.7b is larger
    assert smaller.model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {change.request.label for change in find_changes(request(8))} == {BIG, "llama-3.2-3b"}
    packed = find_changes(request(4, base_format="gptq"))
    assert packed and all("inference" in change.constraints for change in packed)


def test_changes_of_one_kind_share_a_sentence() -> None:
    def words(asked: Request) -> list[str]:
        return recommend_for(asked).changes_in_words

    assert words(request(12)) == [
        "on a larger card, bought or rented: LoRA from 18.9 GB, DoRA from 20.9 GB",
        "time first, memory first, served unmerged or served beside a packed base: then QLoRA",
    ]
    assert words(request(24, base_format="gptq")) == [
        "served unmerged or served beside a packed base: then QLoRA",
        "training over the 16-bit checkpoint: then DoRA, beside LoRA",
    ]
    assert words(request(4, base_format="gptq")) == [
        "served beside a packed base and on a larger card, bought or rented: QLoRA from 8.2 GB",
        "served beside a packed base and a smaller model, such as smollm2-1.7b, together: then QLoRA",
    ]
    assert "quality first and merged into weights that are not packed, together: then QDoRA, beside QLoRA" in words(
        request(12, priority="time", inference="4-bit")
    )
    assert words(request(12, trainer="deepspeed"))[-1] == "2 such GPUs, sharded by FSDP: then QDoRA, beside QLoRA"


def test_the_base_stays_in_16_bits_where_lora_fits_so() -> None:
    found = recommend(20, BIG)
    assert found.method == "LoRA" and "dora, 16" in found.way
    names = [reason.name for reason in found.reasons]
    assert names == ["fits in 16 bits", "dora does not fit", "cost of 4 bits", "tuned rates"]
    assert recommend(20, BIG, trainer="deepspeed").method == "LoRA"


def test_dora_is_named_as_a_candidate_beside_lora() -> None:
    for vram_gb, name, plain, base, evidence in [
        (24, "DoRA", "LoRA", "fits in 16 bits", "control"),
        (16, "QDoRA", "QLoRA", "fits in 4 bits", "QDoRA"),
    ]:
        found = recommend(vram_gb, BIG)
        assert found.headline == f"{name}, r = 16, beside {plain}" and found.method == name
        assert [reason.name for reason in found.reasons] == [
            base,
            "candidate",
            evidence,
            "published gains",
            "tuned rates",
            "run both",
        ]
        assert [reason.name for reason in found.against] == ["tuned rates"] and "  against it\n" in str(found)
        assert f"{name} is a candidate, to be run beside {plain}" in found.reasons[1].text
    assert "beside" not in recommend(24, BIG, "time").headline


def test_steps_and_warm_up_follow_from_the_number_of_examples() -> None:
    # The trainer ends a step where a pass ends: 4 chats of 16 to a step, 45 in three steps.
    for examples, steps, epochs, warmup in [
        (4, 100, 100.0, 10),
        (50, 100, 33.3, 10),
        (607, 100, 2.9, 10),
        (16_201, 1001, 1.0, 100),
    ]:
        (sentence,) = [each.text for each in recommend(24, BIG, examples=examples).cost if each.name == "schedule"]
        assert sentence == (
            f"{steps} steps of up to 16 sequences, {warmup} of them warm-up: {epochs} passes over "
            f"{examples - examples // max(10, examples // 200):,} examples"
        )
    few = [[each.name for each in recommend(24, BIG, examples=n).cost] for n in (50, 607)]
    assert ["few examples" in names for names in few] == [True, False]


def test_what_is_said_of_the_chats_kept_aside_is_what_the_script_does() -> None:
    for examples, trainer, name in [
        (3, "one gpu", "few examples, last step"),
        (30, "one gpu", "few examples"),
        (30, "fsdp", "few examples, last step"),
        (607, "one gpu", "kept aside, best step"),
        (607, "fsdp", "kept aside"),
    ]:
        found = recommend(24, BIG, examples=examples, trainer=trainer)
        told = {cost.name: cost.text for cost in found.cost}
        assert name in told, (examples, trainer)
        chats = list(range(examples))
        aside = re.search(r"every = .*\nheld_out, chats = .*\n", found.script())
        assert aside
        exec(aside[0], names := {"chats": chats})  # what the script itself computes
        assert len(names["held_out"]) + len(names["chats"]) == examples
        assert f"{len(names['chats'])} examples" in told["schedule"]
        assert ("kept aside" in str(told)) == bool(names["held_out"])
        assert ("load_best_model_at_end" in found.script()) == (trainer == "one gpu")
    assert len(range(0, 10**6, 10**6 // 200)) == 200  # of a million, not a tenth


def test_without_a_gpu_nothing_speaks_of_cards_or_16_bits() -> None:
    for vram_gb, model in [(4, BIG), (16, "llama-3.2-1b"), (40, BIG), (64, BIG)]:
        printed = str(recommend(vram_gb, model, device="cpu"))
        for words in ("larger card", "in 16 bits", "16-bit", "this card", "in place of a CUDA device"):
            assert words not in printed, (words, printed)
    assert "with more memory: QLoRA from" in str(recommend(4, BIG, device="cpu"))
    assert recommend(16, "llama-3.2-1b", device="mps", bfloat16=False).request.dtype == torch.float32


def test_tgi_packs_on_load_when_it_is_asked_to() -> None:
    beside = recommend(12, BIG, inference="4-bit", server="tgi")
    merged = recommend(24, BIG, packed="nf4", server="tgi")
    for found in (beside, merged):
        assert "--quantize bitsandbytes-nf4" in found.script().splitlines()[-1]
    assert "--quantize" not in recommend(24, BIG, server="tgi").script()


def test_a_base_packed_in_buffers_is_not_sharded() -> None:
    for base_format in ("gptq", "awq"):
        with pytest.raises(ValueError, match="packed weights FSDP does not shard"):
            request(24, "llama-3.1-70b", trainer="fsdp", gpus=8, base_format=base_format, inference="4-bit")
        found = recommend(24, "llama-3.1-70b", base_format=base_format, inference="4-bit")
        assert found.method is None and all(c.request.trainer != "fsdp" or c.request.base_format == "16-bit"
                                            for c in found.would_change)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "asked", "words"),
    [
        ("bitsandbytes", "16-bit", "packed by bitsandbytes: take the 16-bit model"),
        ("bitsandbytes", "awq", "packed by bitsandbytes: take the 16-bit model"),
        ("fp8", "gptq", "packed by fp8: take the 16-bit model"),
        ("gptq", "16-bit", "pass base_format='gptq'"),
        ("gptq", "awq", "pass base_format='gptq'"),
    ],
)
def test_a_packed_checkpoint_is_taken_for_what_it_is(method: str, asked: str, words: str) -> None:
    config = llama_config(BIG)
    config.quantization_config = {"quant_method": method}
    with pytest.raises(ValueError, match=words):
        request(24, config, base_format=asked, inference="4-bit")
    if method == "gptq":
        assert request(24, config, base_format="gptq", inference="4-bit").came_packed


@pytest.mark.parametrize(
    ("name", "chats"),
    [("Qwen/Qwen3-8B", True), ("Qwen/Qwen3-8B-Base", False), ("microsoft/phi-4", True), ("meta-llama/X-8B", False),
     ("NousResearch/Hermes-3-Llama-3.1-8B", True), ("HuggingFaceH4/zephyr-7b-beta", True)],
)  # fmt: skip
def test_a_chat_model_is_known_by_its_name(name: str, chats: bool) -> None:
    config = llama_config(BIG)
    config._name_or_path = name
    assert request(24, config).may_lack_a_chat_template != chats


@pytest.mark.parametrize(
    ("name", "words"),
    [("Qwen2.5-7B-Instruct", "with its owner"), ("lama-3.1-8b", "Do you mean llama-3.1-8b"), ("", "with its owner"),
     ("mixtral", "with its owner"), ("/no/such/folder", "a folder")],
)  # fmt: skip
def test_a_name_that_is_none_says_what_is_missing(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        request(24, name)


@pytest.mark.parametrize("server", ["vllm", "tgi", "llama.cpp", "ollama"])
def test_a_server_that_takes_no_dora_adapter_is_named_as_the_reason(server: str) -> None:
    beside = recommend(24, BIG, inference="unmerged", server=server)
    assert beside.method == "LoRA" and server in [reason.name for reason in beside.reasons]
    assert recommend(24, BIG, server=server).method == "DoRA"


def test_what_does_not_fit_one_gpu_is_sharded_over_several() -> None:
    alone = recommend(24, "llama-3.1-70b")
    (sharded,) = [change.request for change in alone.would_change if "gpus" in change.constraints]
    assert (alone.method, sharded.gpus, sharded.trainer) == (None, 4, "fsdp")
    found = recommend_for(sharded)
    assert found.setup is not None and found.memory is not None and found.setup.peak < found.memory.total
    assert found.setup.batch_size * found.setup.gradient_accumulation_steps * 4 == 16
    loaded = found.script().split("packing =")[1][:400]
    assert "bnb_4bit_quant_storage" in loaded and 'device_map="cpu"' in loaded


def test_eight_bit_adamw_is_taken_where_nothing_fits_without() -> None:
    found = recommend(8.3, BIG)
    assert found.setup is not None and found.setup.optimizer == "adamw_8bit"
    assert "8-bit AdamW" in [reason.name for reason in found.reasons] and 'optim="adamw_bnb_8bit"' in found.script()
    assert recommend(8.3, BIG, device="mps").method is None  # which has none
    assert "optim=" not in recommend(24, BIG).script()


@pytest.mark.parametrize(
    "name", ["Llama 3.1 8B Instruct", "llama3.1:8b", "meta-llama/Meta-Llama-3.1-8B", "LLAMA_3.1_8B", "Llama-3.1-8B-hf"]
)
def test_a_model_is_known_by_its_name_as_people_write_it(name: str) -> None:
    assert request(24, name).label == BIG
    assert request(24, server="vLLM") == request(24, server="vllm")


def test_a_smaller_model_that_is_proposed_reads_chats_of_that_length() -> None:
    """SmolLM2 reads 8,192 tokens."""
    short, long = (find_changes(request(7, "llama-3.2-1b", sequence_length=tokens)) for tokens in (4096, 10_000))
    assert "smollm2-135m" in {change.request.label for change in short}
    assert "smollm2-135m" not in {change.request.label for change in long}


def test_memory_first_says_what_the_weights_take() -> None:
    first = recommend(8, "llama-3.2-1b", "memory").reasons[0]
    assert first.text == "memory is first, and in 4 bits the weights take 1.0 GB in place of 2.5"


def test_a_packed_base_is_loaded_from_a_packed_checkpoint(tmp_path: Path) -> None:
    """The checkpoint that belongs to a known shape holds 16-bit weights, and would be loaded as they are."""
    for model in (BIG, "meta-llama/Llama-3.1-8B-Instruct"):
        found = recommend(12, model, inference="4-bit", base_format="gptq")
        assert 'BASE, DATA = "path/to/your-gptq-checkpoint", ' in found.script()
        assert "meta-llama" not in found.script() and "BitsAndBytes" not in found.script()
    small_llama().save_pretrained(tmp_path)
    assert str(tmp_path) in recommend(8, str(tmp_path), inference="4-bit", base_format="awq").script()


def test_evidence_is_printed_with_its_kind_and_source() -> None:
    printed = str(recommend(24, BIG))
    assert "[measured: data/records/control.jsonl]" in printed
    assert "[published: Liu et al." in printed and "[opinion]" in printed and "[rule" not in printed


def test_the_model_may_be_a_name_of_the_hub_a_folder_or_a_configuration(tmp_path: Path) -> None:
    assert request(24, "meta-llama/Llama-3.1-8B-Instruct") == request(24, BIG)
    assert request(8, "bundled").model_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    small_llama().save_pretrained(tmp_path)
    assert request(8, str(tmp_path)).model_id == str(tmp_path)
    assert request(24, llama_config(BIG)).shape == request(24, BIG).shape


@pytest.mark.parametrize("config", [GPT2Config(), BertConfig()])
def test_a_folder_of_another_model_is_refused(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config.save_pretrained("mine")  # without a slash
    with pytest.raises(ValueError, match="but a Llama, or a model built like one"):
        recommend(24, "mine")


@pytest.mark.parametrize(("constraints", "message"), [
    ({"priority": "speed"}, "priority is 'speed', but one of quality, time, memory"),
    ({"inference": "4bit"}, "inference is '4bit', but one of merged, unmerged, 4-bit"),
    ({"server": "sglang"}, "server is 'sglang', but one of transformers, vllm"),
    ({"server": ["vllm"]}, "server is ['vllm'], but one of transformers, vllm"),
    ({"trainer": "ddp"}, "trainer is 'ddp', but one of one gpu, fsdp, deepspeed"),
    ({"gpus": 2}, "trainer is 'one gpu' and gpus 2: several GPUs need 'fsdp' or 'deepspeed'"),
    ({"trainer": "fsdp", "gpus": 1}, "trainer is 'fsdp' and gpus 1"),
    ({"trainer": "fsdp", "device": "mps"}, "device is 'mps' and trainer 'fsdp'"),
    ({"device": "mps", "optimizer": "adamw_8bit"}, "bitsandbytes does not have for mps"),
    ({"server": "ollama", "packed": "awq"}, "packed is 'awq', but ollama reads one of no, gguf"),
    ({"inference": "unmerged", "packed": "nf4"}, "for an adapter beside a packed base, pass inference='4-bit'"),
    ({"examples": 0}, "examples is 0, but a whole number from 1 is expected"),
    ({"sequence_length": True}, "sequence_length is True"),
    ({"sequence_length": 200_000}, "sequence_length is 200000, but llama-3.1-8b reads at most 131072 tokens"),
    ({"bfloat16": "no"}, "bfloat16 is 'no', but True or False"),
    ({"vram_gb": 0}, "vram_gb is 0, but the memory"),
    ({"vram_gb": "16 GB"}, "vram_gb is '16 GB'"),
    ({"model": GPT2Config()}, "model is a GPT2Config, but a Llama"),
    ({"model": BertConfig()}, "model is a BertConfig, but a Llama"),
    ({"vram_gb": 16e9}, "vram_gb is 16000000000.0, but"),
    ({"model": "llama-9"}, "model is 'llama-9', but a folder, a model of the hub with its owner"),
    ({"model": 8}, "model is a int, but a name"),
    ({"model": "x" * 300}, "but a folder, a model of the hub with its owner"),
    ({"model": "llama 70b"}, "Do you mean llama-3.1-70b?"),
    ({"model": Qwen2_5_VLConfig()}, "multimodal model, which is not counted here: take a language model alone"),
    ({"model": Gemma3Config()}, "multimodal model, which is not counted here: pass its text_config"),
    ({"model": Llama4Config()}, "multimodal model, which is not counted here: take a language model alone"),
    ({"model": NemotronConfig()}, "model is a NemotronConfig, but a Llama"),
    ({"model": LlamaConfig(hidden_act="none")}, "LlamaConfig makes no model"),
    ({"examples": 10**400}, "examples is larger than any there is"),
    ({"sequence_length": 0}, "sequence_length is 0"),
    ({"trainer": "fsdp", "optimizer": "adamw_8bit"}, "optimizer is 'adamw_8bit', which stops at the tensors"),
])  # fmt: skip
def test_bad_input_is_one_sentence(constraints: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        recommend(**{"vram_gb": 24, "model": BIG} | constraints)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Llama-2-13b", "llama-3.1-405b", "smollm2-360m", "https://huggingface.co/meta-llama"])
def test_no_model_of_another_size_is_suggested(name: str) -> None:
    with pytest.raises(ValueError, match="but a folder") as raised:
        recommend(24, name)
    assert "Do you mean" not in str(raised.value)


@pytest.mark.parametrize("name", [
    f" {OWNED}\n", f"huggingface.co/{OWNED}", f"hf.co/{OWNED}/tree/main", f"https://huggingface.co/{OWNED}?library=peft",
])  # fmt: skip
def test_a_name_is_read_as_it_was_copied(name: str) -> None:
    assert request(24, name).model_id == OWNED


def test_a_question_asked_again_is_the_same_question() -> None:
    for vram_gb in (24, 18.87654321, np.float32(11.9)):
        asked = request(vram_gb, BIG, bfloat16=np.False_)
        assert eval(as_call(asked), {"recommend": recommend}).request == asked


def test_what_is_packed_after_the_merge_is_not_said_to_be_too_large_for_the_card() -> None:
    costs = [
        {cost.name for cost in recommend(12, BIG, server="ollama", packed=packed).cost} for packed in ("no", "gguf")
    ]
    assert "merged elsewhere" in costs[0] and "merged, then packed" not in costs[0]
    assert "merged, then packed" in costs[1] and not {"merged", "merged elsewhere"} & costs[1]


@pytest.mark.parametrize(("priority", "why"), [("memory", "memory is first"), ("quality", "leaves more room")])
def test_8_bit_states_are_told_with_their_own_reason(priority: str, why: str) -> None:
    (reason,) = [each for each in recommend(12, BIG, priority).reasons if each.name == "8-bit AdamW"]
    assert why in reason.text


def test_a_mac_is_told_to_leave_memory_to_its_system() -> None:
    found = recommend(16, "llama-3.2-3b", device="mps")
    assert "two thirds" in next(each.text for each in found.reasons if each.name == "shared memory")


def test_several_gpus_are_started_and_bought_as_several() -> None:
    found = recommend(24, "llama-3.1-70b", gpus=2, trainer="fsdp")
    assert "GB each" in found.changes_in_words[0] and "larger cards" in found.changes_in_words[0]
    start = recommend(24, "llama-3.1-70b", gpus=4, trainer="fsdp").script().splitlines()[1]
    assert "--num_processes 4 --use_fsdp" in start and start.endswith("FULL_STATE_DICT train.py")
    assert "--use_deepspeed --zero_stage 2" in recommend(24, BIG, gpus=2, trainer="deepspeed").script().splitlines()[1]


def test_each_process_knows_its_gpu_before_it_loads_the_base() -> None:
    """A packed base is loaded onto the current GPU, which the arguments choose."""
    script = recommend(12, BIG, trainer="deepspeed").script()
    assert script.index("TrainingArguments(\n") < script.index("from_pretrained(BASE, ")


@pytest.mark.parametrize(("gpus", "asked", "size"), [(8, 4, 8), (64, 16, 64), (3, 16, 15), (4, 16, 16)])
def test_a_step_has_the_sequences_that_are_told(gpus: int, asked: int, size: int) -> None:
    found = recommend(24, "llama-3.2-1b", trainer="fsdp", gpus=gpus, effective_batch_size=asked, examples=100 * size)
    assert found.setup is not None and found.setup.sequences(gpus) == size
    assert any(each.text.startswith(f"100 steps of up to {size} sequences") for each in found.cost)
    assert f"-(-len(chats) // {size})" in found.script()


def test_fsdp_keeps_states_that_it_can_shard() -> None:
    for priority in PRIORITIES:
        assert "adamw_bnb_8bit" not in recommend(12, BIG, priority, trainer="fsdp").script()


def test_a_processor_trains_in_float32_and_is_told_the_hours() -> None:
    found = recommend(16, "llama-3.2-1b", device="cpu")
    assert "dtype=torch.float32" in found.script() and "bfloat16" not in str(found)
    assert re.search(r"about [\d.]+ minutes, and [\d.]+ hours for 100 steps", str(found))


def test_a_script_for_a_processor_stays_there_whatever_the_machine_has() -> None:
    for changed in ({}, {"inference": "4-bit"}, {"inference": "unmerged"}, {"packed": "nf4"}):
        script = recommend(16, "llama-3.2-1b", device="cpu", **changed).script()
        assert "use_cpu=True" in script and {*re.findall(r"device_map=[^,)\n]+", script)} == {'device_map="cpu"'}


def test_what_is_served_over_16_bits_is_asked_over_16_bits() -> None:
    found = recommend(12, BIG, inference="unmerged", server="vllm")
    assert found.method == "QLoRA" and "served unpacked" in [reason.name for reason in found.reasons]
    training, asking = found.script().split("del trainer")
    assert "quantization_config=packing" in training and "quantization_config" not in asking
    beside = recommend(12, BIG, inference="4-bit").script().split("del trainer")[1]
    assert "device_map=place, quantization_config=packing" in beside


def test_a_base_that_came_packed_as_awq_is_trained_in_float16() -> None:
    script = recommend(24, BIG, base_format="awq", inference="4-bit").script()
    assert "dtype=torch.float16" in script and "fp16=" in script and "bf16" not in script


def test_a_base_checkpoint_is_told_from_an_instruct_one() -> None:
    names = {"meta-llama/Llama-3.1-8B": True, "meta-llama/Llama-3.1-8B-Instruct": False, BIG: False}
    for name, told in names.items():
        assert ("base checkpoint" in [each.name for each in recommend(24, name).cost]) == told


@pytest.mark.parametrize(("constraints", "command"), [
    ({"server": "vllm"}, "vllm serve merged"),
    ({"server": "vllm", "packed": "awq"}, "vllm serve packed"),
    ({"server": "vllm", "packed": "nf4"}, "vllm serve merged --quantization bitsandbytes"),
    ({"server": "vllm", "inference": "unmerged"}, "vllm serve BASE --enable-lora --max-lora-rank 16"),
    ({"server": "vllm", "inference": "4-bit"}, "vllm serve BASE --enable-lora"),
    ({"server": "vllm", "inference": "4-bit", "packed": "awq"}, "vllm serve path/to/BASE-awq --enable-lora"),
    ({"server": "tgi"}, "text-generation-launcher --model-id ./merged"),
    ({"server": "llama.cpp"}, "convert_hf_to_gguf.py merged --outfile merged.gguf"),
    ({"server": "llama.cpp", "packed": "gguf"}, "llama-server -m packed.gguf"),
    ({"server": "llama.cpp", "inference": "unmerged"}, "convert_lora_to_gguf.py adapter"),
    ({"server": "ollama", "packed": "gguf"}, "it says FROM ./packed.gguf"),
    ({"server": "ollama", "inference": "4-bit"}, "ADAPTER ./adapter.gguf"),
])  # fmt: skip
def test_the_script_ends_with_what_serves_the_model(constraints: dict[str, str], command: str) -> None:
    last = recommend(24, BIG, **constraints).script().splitlines()[-3:]
    assert any(command in line for line in last), last


def test_the_script_refuses_data_that_nothing_can_be_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled: tuple[Any, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundled[1].save_pretrained(tmp_path / "model")
    script = recommend(24, BIG).script(data="chats.jsonl", base="model")
    ask, reply = {"role": "user", "content": "When?"}, {"role": "assistant", "content": "At six. " * 300}
    for chats, message in [
        ([], "chats end with"),
        ([[ask]], "chats end with"),
        ([[ask, reply]], "no chat has at most"),
    ]:
        lines = "\n".join(json.dumps({"messages": chat}) for chat in chats)
        (tmp_path / "chats.jsonl").write_text(lines, encoding="utf-8")
        with pytest.raises(AssertionError, match=message):
            exec(compile(script, "train.py", "exec"), {})


def test_a_configuration_that_came_packed_is_asked_for_its_format() -> None:
    config = llama_config(BIG)
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    with pytest.raises(ValueError, match="comes packed by awq: pass base_format="):
        recommend(24, config)
    assert recommend(24, config, base_format="awq", inference="4-bit").method == "QLoRA"


def test_a_mixture_of_experts_is_refused_whatever_its_experts_are_called() -> None:
    for name in ("num_local_experts", "moe_num_experts", "n_routed_experts"):
        config = llama_config(BIG)
        setattr(config, name, 8)
        with pytest.raises(ValueError, match=f"mixture of experts \\({name}\\)"):
            recommend(24, config)


def test_numbers_of_numpy_are_numbers() -> None:
    found = recommend(np.float64(24), BIG, sequence_length=np.int64(512), examples=np.int32(500))
    assert found.method == "DoRA" and "max_steps" in found.script(steps=np.int64(5))


def test_an_18b_is_no_8b(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model_module, "hub_config", lambda name: asked.append(name) or llama_config(BIG))
    recommend(24, "somebody/Llama-3-18B")
    assert asked == ["somebody/Llama-3-18B"]
