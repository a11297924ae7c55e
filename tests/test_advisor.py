"""Every leaf of the tree is reached, its configuration runs, and what would change the answer changes it."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dora_lesson import adapter_report, estimate
from dora_lesson.advisor import recommend
from dora_lesson.constraints import INFERENCE, PACKED, PRIORITIES, STACKS
from dora_lesson.evidence import NAMES
from dora_lesson.fitting import usable_bytes
from dora_lesson.run_config import METHODS
from dora_lesson.shapes import llama_config
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
    assert found.cost and str(found).startswith(f"{method}, r = {found.r}: ")
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
    assert found.method in {*(NAMES[method] for method in METHODS), None}
    assert found.would_change, "an answer that nothing would change"
    assert all(said.strip() for said in [*found.reasons, *found.would_change, *found.cost])
    if found.method and "DoRA" in found.method:
        assert (priority, inference) == ("quality", "merged") and stack not in PACKED
    if inference == "4-bit" or priority == "memory" or stack in PACKED:
        assert found.method in ("QLoRA", "QDoRA", None)
    if vram_gb == 6:
        assert found.method is None


def test_the_cards_it_names_are_enough_and_just_enough() -> None:
    """ "from X GB on" and "a card of X GB or more" hold at X, and not half a GB below."""

    def named(found: Any, pattern: str) -> float:
        said = [match.group(1) for line in found.would_change if (match := re.search(pattern, line))]
        return float(said[0])

    packed = recommend(12, BIG)
    enough = named(packed, r"from (\S+) GB on, the base")
    assert recommend(enough, BIG).method == "DoRA" and recommend(enough - 0.5, BIG).method == "QDoRA"
    nothing = recommend(6, BIG)
    enough = named(nothing, r"a card of (\S+) GB")
    assert recommend(enough, BIG).method == "QLoRA" and recommend(enough - 0.5, BIG).method is None
    between = recommend(9.5, BIG)
    enough = named(between, r"from (\S+) GB on, QDoRA")
    assert recommend(enough, BIG).method == "QDoRA" and recommend(enough - 0.5, BIG).method == "QLoRA"


def test_what_it_says_to_do_instead_can_be_done() -> None:
    found = recommend(6, BIG)
    smaller = re.search(r"a smaller model: (\S+) fits", " ".join(found.would_change))
    assert smaller and recommend(6, smaller.group(1)).method is not None
    short = recommend(8, BIG, "memory")
    tokens = re.search(r"chats of (\d+) tokens", " ".join(short.would_change))
    assert short.method is None and tokens
    assert recommend(8, BIG, "memory", sequence_length=int(tokens.group(1))).method == "QLoRA"
    assert "LoRA fits on this card with the base in 16 bits" in str(recommend(20, BIG))
    assert recommend(20, BIG).method == "QDoRA" and recommend(20, BIG, "time").method == "LoRA"


def test_evidence_stands_with_its_kind_and_source() -> None:
    said = str(recommend(24, BIG))
    assert "[measured: data/records/sweep]" in said
    assert "[published: Liu et al." in said and "[opinion]" in said


def test_the_model_may_be_a_name_of_the_hub_a_folder_or_a_configuration(tmp_path: Path) -> None:
    assert recommend(24, "meta-llama/Llama-3.1-8B-Instruct").request == recommend(24, BIG).request
    assert 'pretrained(\n    "HuggingFaceTB/SmolLM2-135M-Instruct"' in recommend(8, "embedded").snippet
    small_llama().save_pretrained(tmp_path)
    found = recommend(8, str(tmp_path))
    assert found.method == "DoRA" and str(tmp_path) in found.snippet
    assert recommend(24, llama_config(BIG)).method == "DoRA"


@pytest.mark.parametrize(("asked", "says"), [
    ({"priority": "speed"}, "priority is 'speed', but one of quality, time, memory"),
    ({"inference": "4bit"}, "inference is '4bit', but one of merged, unmerged, 4-bit"),
    ({"stack": "tgi"}, "stack is 'tgi', but one of peft, vllm"),
    ({"vram_gb": 0}, "vram_gb is 0, but the memory"),
    ({"vram_gb": "16 GB"}, "vram_gb is '16 GB'"),
    ({"vram_gb": 16e9}, "vram_gb is 16000000000.0, but"),
    ({"model": "llama-9"}, "model is 'llama-9', but one of llama-3.1-8b"),
    ({"model": 8}, "model is a int, but a name"),
    ({"sequence_length": 0}, "sequence_length is 0"),
])  # fmt: skip
def test_bad_input_is_one_sentence(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        recommend(**{"vram_gb": 24, "model": BIG} | asked)
    assert "\n" not in str(raised.value)
