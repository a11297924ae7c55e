"""Models of random weights, and the measurement that runs on them, at a shape small enough to try here."""

from __future__ import annotations

import json

import bitsandbytes as bnb
import pytest
import torch

from dora_lesson.__main__ import main
from dora_lesson.evidence.records import PROVENANCE
from dora_lesson.memory import shapes
from dora_lesson.memory.shapes import llama_config
from dora_lesson.memory.timing import measure_shape, random_llama

SMALL = {
    "vocab_size": 512, "num_key_value_heads": 2, "num_attention_heads": 4, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "rope_theta": 10000.0,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def small(request, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL | {"tie_word_embeddings": request.param})
    return "small"


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "Llama 3.1 8B", "meta-llama/Llama-3.1-8B-Instruct", "Meta-Llama-3.1-8B", "llama3.1:8b"]
)
def test_a_shape_goes_by_the_names_that_people_write(name: str) -> None:
    assert llama_config(name).hidden_size == 4096 and llama_config(name).vocab_size == 128256
    for other in ("llama-8b", "", None, 8):
        with pytest.raises(ValueError, match=r"but one of llama-3\.1-8b, .* is expected"):
            llama_config(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("four_bit", [True, False])
def test_a_random_llama_is_whole(small, four_bit) -> None:
    model = random_llama(llama_config(small), four_bit=four_bit, dtype=torch.float32, device=CPU)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    packed = [name for name, layer in model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert len(packed) == (14 if four_bit else 0) and not any("lm_head" in name for name in packed)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == llama_config(small).tie_word_embeddings
    logits = model(torch.arange(8)[None]).logits
    assert logits.isfinite().all() and logits.std() > 0
    # Rotary positions are there: the same token answers otherwise in another place.
    assert not torch.allclose(*model(torch.tensor([[3, 4, 5, 4]])).logits[0, [1, 3]])


def test_every_method_is_measured_and_lies_where_it_was_expected(small, capsys, tmp_path) -> None:
    path = tmp_path / "record.json"
    assert main(["measure", "--shape", small, "--tokens", "64", "--rounds", "1", "--record", str(path)]) == 0
    record = json.loads(path.read_text())
    assert all(record[key] for key in PROVENANCE)
    assert [(row["method"], row["by"]) for row in record["rows"]] == [
        (method, by) for method in ("lora", "dora", "qlora", "qdora") for by in ("PEFT", "dora_lesson")
    ]
    for row in record["rows"]:
        assert row["seconds"] > 0
        if row["by"] == "dora_lesson":
            assert row["expected"] == pytest.approx(row["peak"], rel=0.08), row
    by = {(row["method"], row["by"]): row["peak"] for row in record["rows"]}
    assert by["dora", "PEFT"] > by["dora", "dora_lesson"] > by["lora", "dora_lesson"]
    said = capsys.readouterr().out
    assert said.count("s a step") == 8 and "GB expected" in said


def test_what_does_not_fit_is_left_out_in_words(small, monkeypatch) -> None:
    monkeypatch.setattr("dora_lesson.memory.timing.free_bytes", lambda device: 1000)
    rows = measure_shape(small, tokens=8, rounds=1)
    assert [row["method"] for row in rows] == ["lora", "dora", "qlora", "qdora"]
    assert all(row["seconds"] is None and row["note"].startswith("does not fit: ") for row in rows)


@pytest.mark.parametrize(("arguments", "says"), [
    (["--shape", "llama-9"], "The shape is 'llama-9', but one of llama-3.1-8b"),
    (["--shape", "smollm2-135m", "--rounds", "0"], "rounds is 0"),
    (["--shape", "smollm2-135m", "--tokens", "0"], "sequence_length is 0"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_no_success(arguments, says, capsys) -> None:
    assert main(["measure", *arguments]) == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu_the_allocator_agrees_with_the_estimate() -> None:
    for row in measure_shape("llama-3.2-1b", tokens=256, rounds=1):
        if row["by"] == "dora_lesson" and row["peak"]:
            assert row["expected"] == pytest.approx(row["peak"], rel=0.1), row
