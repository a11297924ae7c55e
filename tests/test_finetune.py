"""`finetune`: the loss sees the reply alone, same seed same curve, a killed run goes on to the same weights."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, TrainerCallback

from dora_lesson import load_base
from dora_lesson.adapters.inject import add_adapters
from dora_lesson.memory.timing import random_llama
from dora_lesson.task_api.chats import encode_chat
from dora_lesson.task_api.dataset import load_task_api
from dora_lesson.training.finetune import Collator, finetune
from tests.conftest import ROOT
from tests.test_adapters import SOME, small_llama


@pytest.fixture(scope="module")
def items():
    return list(load_task_api("train").select(range(12)))


def a_model(method: str = "dora", dropout: float = 0.1):
    model = small_llama(vocab_size=49152)
    torch.manual_seed(3)
    return add_adapters(model, method, r=4, lora_alpha=8, target_modules=SOME, lora_dropout=dropout)


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


SETTINGS = {"steps": 8, "batch_size": 2, "learning_rate": 1e-2, "seed": 5}

# The loss.


def test_labels_are_the_reply_and_its_end_token(tokenizer, items):
    for item in items:
        chat = encode_chat(tokenizer, item["messages"])
        labelled = [token for token in chat["labels"] if token != -100]
        assert tokenizer.decode(labelled) == item["messages"][2]["content"] + tokenizer.eos_token
        first = chat["labels"].index(labelled[0])
        assert tokenizer.decode(chat["input_ids"][:first]).endswith("<|im_start|>assistant\n")
        assert chat["labels"][first : first + len(labelled)] == chat["input_ids"][first : first + len(labelled)]


def test_the_loss_is_that_of_the_reply_tokens_alone(tokenizer, items):
    model = a_model(dropout=0.0)
    batch = Collator(tokenizer.pad_token_id)([encode_chat(tokenizer, item["messages"]) for item in items[:3]])
    total, count = 0.0, 0
    with torch.no_grad():
        loss = model(**batch).loss
        for item in items[:3]:  # one by one, without padding
            chat = encode_chat(tokenizer, item["messages"])
            scores = model(torch.tensor([chat["input_ids"]])).logits[0].log_softmax(-1)
            for i, label in enumerate(chat["labels"]):
                if label != -100:
                    total, count = total - scores[i - 1, label].item(), count + 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_what_stands_before_the_reply_does_not_train(tokenizer, items):
    system, user, reply = items[0]["messages"]
    chat = encode_chat(tokenizer, [system, user, reply])
    other = encode_chat(tokenizer, [system, {"role": "user", "content": "something else"}, reply])
    kept = [[token for token in c["labels"] if token != -100] for c in (chat, other)]
    assert kept[0] == kept[1]


def test_a_chat_that_cannot_be_encoded_is_refused(tokenizer, items):
    with pytest.raises(ValueError, match="raise max_length, which is 20"):
        encode_chat(tokenizer, items[0]["messages"], max_length=20)
    with pytest.raises(ValueError, match="the user's"):
        encode_chat(tokenizer, items[0]["messages"][:2])
    for reply in ("", " ", "\n\nDone."):
        with pytest.raises(ValueError, match="does not begin with spaces or line breaks"):
            encode_chat(tokenizer, [*items[0]["messages"][:2], {"role": "assistant", "content": reply}])


def test_an_item_that_cannot_be_trained_on_is_named_by_its_number(tokenizer, items):
    bad = {"messages": items[0]["messages"][:2]}
    with pytest.raises(ValueError, match=r"^Item 3: The last message is the user's"):
        finetune(a_model(), tokenizer, [items[0], items[1], bad], **SETTINGS)
    with pytest.raises(ValueError, match="A list of items is expected"):
        finetune(a_model(), tokenizer, items[0], **SETTINGS)


# The run.


def test_same_seed_same_curve_and_another_seed_another(tokenizer, items):
    curves = [finetune(a_model(), tokenizer, items, **(SETTINGS | {"seed": seed})).losses for seed in (5, 5, 6)]
    assert curves[0] == curves[1] != curves[2]
    assert len(curves[0]) == 8


def test_it_learns_and_leaves_the_base_alone(tokenizer, items):
    model = a_model()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_log(self, *_, logs, **__):
            rates.extend([logs["learning_rate"]] if "learning_rate" in logs else [])

    result = finetune(model, tokenizer, items, **(SETTINGS | {"steps": 30}), callbacks=[Watch()])
    assert sum(result.losses[-5:]) < sum(result.losses[:5])
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)
    assert not model.training
    assert result.peak_memory_bytes > 0
    assert max(rates) == pytest.approx(1e-2) and len(rates) == 30


def test_a_run_without_a_folder_leaves_nothing_behind(tokenizer, items, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune(a_model(), tokenizer, items, **(SETTINGS | {"steps": 1}))
    assert not list(tmp_path.iterdir())


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def peft_model():
    torch.manual_seed(4)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=SOME, use_dora=True, lora_dropout=0.1)
    return get_peft_model(small_llama(vocab_size=49152), config)


@pytest.mark.parametrize("make", [a_model, peft_model, lambda: small_llama(vocab_size=49152)])
def test_a_killed_run_resumes_to_the_same_weights(make, tokenizer, items, tmp_path):
    whole = make()
    unbroken = finetune(whole, tokenizer, items, **SETTINGS)
    step = random.randrange(2, 8)
    with pytest.raises(KeyboardInterrupt):
        finetune(make(), tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2, callbacks=[Kill(step)])
    last = max(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    if step >= 4:  # as if the kill had come in the middle of writing the newest checkpoint
        (last / random.choice(["trainer_state.json", "trained.safetensors"])).write_text("{")
    model = make()
    resumed = finetune(model, tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2)
    assert resumed.resumed_from > 0, f"killed at step {step}"
    assert resumed.losses == unbroken.losses, f"killed at step {step}"
    expected = trained(whole)
    assert all(torch.equal(p, expected[name]) for name, p in trained(model).items()), f"killed at step {step}"


def test_a_finished_run_is_found_again(tokenizer, items, tmp_path):
    first = a_model()
    whole = finetune(first, tokenizer, items, **SETTINGS, output_dir=tmp_path)
    again = a_model()
    result = finetune(again, tokenizer, items, **SETTINGS, output_dir=tmp_path)
    assert result.resumed_from == 8
    assert result.losses == whole.losses  # and no step more
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}
    assert all(torch.equal(p, trained(first)[name]) for name, p in trained(again).items())


def test_a_file_in_place_of_the_folder_is_refused(tokenizer, items, tmp_path):
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "run"):
        with pytest.raises(ValueError, match="is a file: pass a folder"):
            finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=folder)


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_checkpoint_that_lacks_a_part_is_passed_over(part, harm, tokenizer, items, tmp_path):
    unbroken = finetune(a_model(), tokenizer, items, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2, callbacks=[Kill(5)])
    file = tmp_path / "checkpoint-4" / part
    file.write_bytes(file.read_bytes()[:100]) if harm == "cut" else file.unlink()
    resumed = finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2)
    assert resumed.resumed_from == 2 and resumed.losses == unbroken.losses


def test_what_is_asked_decides_the_precision_and_not_the_environment(tokenizer, items, monkeypatch):
    short = SETTINGS | {"steps": 2}
    expected = finetune(a_model(), tokenizer, items, **short).losses
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert finetune(a_model(), tokenizer, items, **short).losses == expected


def test_a_run_started_without_gradients_trains_and_a_merged_adapter_is_refused(tokenizer, items):
    short = SETTINGS | {"steps": 2}
    expected = finetune(a_model(), tokenizer, items, **short).losses
    with torch.no_grad():
        assert finetune(a_model(), tokenizer, items, **short).losses == expected
    merged = peft_model()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged into the weights, where no gradient reaches them"):
        finetune(merged, tokenizer, items, **short)


def test_callbacks_may_be_one_or_none(tokenizer, items):
    assert finetune(a_model(), tokenizer, items, **(SETTINGS | {"steps": 1}), callbacks=None).steps == 1
    with pytest.raises(KeyboardInterrupt):
        finetune(a_model(), tokenizer, items, **SETTINGS, callbacks=Kill(1))


def test_a_base_that_trained_itself_is_to_be_loaded_again_to_go_on(tokenizer, items, tmp_path):
    model = small_llama(vocab_size=49152)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2, callbacks=[Kill(5)])
    with pytest.raises(ValueError, match="load the base again, as it was then"):
        finetune(model, tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2)
    base = small_llama(vocab_size=49152)
    assert finetune(base, tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=2).resumed_from == 4


def test_another_run_in_the_folder_is_refused(tokenizer, items, tmp_path):
    finetune(a_model(), tokenizer, items, **(SETTINGS | {"steps": 1}), output_dir=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        finetune(a_model(), tokenizer, items, **(SETTINGS | {"steps": 2}), output_dir=tmp_path)


@pytest.mark.parametrize("written", ["", '{"steps": 1', "[1]", "null"])
def test_a_folder_that_no_longer_says_which_run_it_holds_is_refused(written, tokenizer, items, tmp_path):
    settings = SETTINGS | {"steps": 1}
    finetune(a_model(), tokenizer, items, **settings, output_dir=tmp_path)
    (tmp_path / "run.json").write_text(written)
    with pytest.raises(ValueError, match=r"run.json is damaged: choose another output_dir, or delete that folder"):
        finetune(a_model(), tokenizer, items, **settings, output_dir=tmp_path)


def test_a_run_that_a_callback_stopped_says_how_far_it_came(tokenizer, items):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    result = finetune(a_model(), tokenizer, items, **SETTINGS, callbacks=[Stop()])
    assert result.steps == len(result.losses) == 2


def test_checkpoints_of_another_program_are_left_alone(tokenizer, items, tmp_path):
    for step in (100, 200, 300):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(ValueError, match="holds checkpoints, but not of `finetune`"):
        finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_a_checkpoint_that_was_renamed_is_not_gone_on_from(tokenizer, items, tmp_path):
    finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=4)
    (tmp_path / "checkpoint-8").rename(tmp_path / "checkpoint-best")
    assert finetune(a_model(), tokenizer, items, **SETTINGS, output_dir=tmp_path, save_every=4).resumed_from == 4


def test_full_fine_tuning_of_another_base_is_another_run(tokenizer, items, tmp_path):
    settings = SETTINGS | {"steps": 1}
    finetune(small_llama(vocab_size=49152), tokenizer, items, **settings, output_dir=tmp_path)
    other = small_llama(vocab_size=49152)
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    with pytest.raises(ValueError, match=r"holds another run \(base"):
        finetune(other, tokenizer, items, **settings, output_dir=tmp_path)


def test_a_compiled_model_trains_as_the_plain_one_and_keeps_its_cache(tokenizer, items):
    plain, compiled = a_model(), a_model()
    settings = SETTINGS | {"steps": 2}
    curve = finetune(plain, tokenizer, items, **settings).losses
    assert finetune(torch.compile(compiled, backend="eager"), tokenizer, items, **settings).losses == pytest.approx(
        curve
    )
    assert plain.config.use_cache


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"learning_rate": 2}, "learning_rate is 2"),
        ({"save_every": 2}, "without output_dir"),
        ({"train": []}, "no items"),
    ],
)
def test_bad_settings_are_refused_in_words(changed, words, tokenizer, items):
    settings = {"train": items, **SETTINGS} | changed
    with pytest.raises(ValueError, match=words):
        finetune(a_model(), tokenizer, settings.pop("train"), **settings)


def test_a_model_with_nothing_to_train_is_refused(tokenizer, items):
    with pytest.raises(ValueError, match="add adapters first"):
        finetune(a_model().requires_grad_(False), tokenizer, items, **SETTINGS)
    with pytest.raises(ValueError, match="rounded away"):
        finetune(small_llama().half(), tokenizer, items, **SETTINGS)


LAUNCHED = """
import torch, sys
from accelerate import PartialState
from tests.test_finetune import SETTINGS, a_model
from dora_lesson import load_base
from dora_lesson.task_api.dataset import load_task_api
from dora_lesson.training.finetune import finetune
model, items = a_model(), list(load_task_api("train").select(range(12)))
result = finetune(model, load_base()[1], items, **SETTINGS, output_dir=sys.argv[1])
state = PartialState()
total = sum(p.double().sum().item() for p in model.parameters() if p.requires_grad)
print(f"process {state.process_index} of {state.num_processes}: {len(result.losses)} losses, sum {total:.12f}")
"""


ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # what accelerate calls for several


@pytest.mark.nightly
@pytest.mark.parametrize(("launcher", "processes"), [(ACCELERATE, 1), (TORCHRUN, 2)])
def test_it_runs_unchanged_under_a_launcher(launcher, processes, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", *launcher, str(script), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    # Not line by line: processes that print at once can share a line.
    said = sorted(re.findall(r"process (\d) of (\d): 8 losses, sum (-?\d+\.\d{12})", done.stdout))
    assert [(index, of) for index, of, _ in said] == [(str(i), str(processes)) for i in range(processes)]
    assert len({total for _, _, total in said}) == 1  # all hold the same weights


# A 4-bit base.


def test_adapters_by_hand_train_over_a_4_bit_base(tokenizer, items):
    model = load_base(four_bit=True)[0]
    packed = model.model.layers[3].mlp.up_proj.weight.clone()
    torch.manual_seed(0)
    add_adapters(model, "dora", r=4, lora_alpha=8, target_modules=["up_proj"])
    before = trained(model)
    result = finetune(model, tokenizer, items, steps=2, batch_size=1, learning_rate=1e-3)
    assert len(result.losses) == 2 and all(0 < loss < 10 for loss in result.losses)
    assert all(not torch.equal(before[name], p) for name, p in trained(model).items() if "lora_A" not in name)
    assert torch.equal(model.model.layers[3].mlp.up_proj.base.weight, packed)
    assert model.is_quantized


def test_a_4_bit_base_without_adapters_is_refused(tokenizer, items):
    model = load_base(four_bit=True)[0]
    with pytest.raises(ValueError, match="purely quantized"):
        finetune(model, tokenizer, items, steps=1, batch_size=1, learning_rate=1e-3)


@pytest.mark.filterwarnings("error:.*autograd kernel was not registered")
@pytest.mark.parametrize("adapted_before", [True, False], ids=["adapters-first", "answers-first"])
def test_a_4_bit_model_that_has_answered_still_trains_through_every_layer(adapted_before, tokenizer, items):
    """On CPUs with bfloat16 instructions, bitsandbytes reorders what has answered, and then gives no gradient."""

    def trained_b(answers: bool):
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, **shape)
        model = random_llama(config, four_bit=True, dtype=torch.float32, device=torch.device("cpu"))
        tokens = torch.arange(8)[None]
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        for step in (add_adapters, None) if adapted_before else (None, add_adapters):
            torch.manual_seed(0)
            if step is not None:
                step(model, "dora", **settings)
            elif answers:
                with torch.no_grad():
                    model.eval()(tokens)
        finetune(model, tokenizer, items, steps=1, batch_size=1, learning_rate=1e-3)
        return model.model.layers[0].self_attn.q_proj.lora_B.detach()

    fresh, after = trained_b(False), trained_b(True)
    assert torch.sign(fresh).eq(torch.sign(after)).float().mean() > 0.9  # Adam's first step is the gradient's sign


# 16 bits.


def test_bf16_computes_in_bfloat16_and_trains_in_float32(tokenizer, items, tmp_path):
    full = finetune(a_model(dropout=0.0), tokenizer, items, **SETTINGS)
    model, seen = a_model(dropout=0.0), set()
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    half = finetune(model, tokenizer, items, **SETTINGS, bf16=True, output_dir=tmp_path)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    seen.clear()
    with torch.no_grad():
        model(torch.arange(8)[None])
    assert seen == {torch.float32}  # afterwards the model answers as it did before
    seen.clear()
    finetune(model, tokenizer, items, **SETTINGS, bf16=True)
    assert seen == {torch.bfloat16}  # a second training is as the first
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.02)
    with pytest.raises(ValueError, match="bf16 True there, False here"):
        finetune(a_model(dropout=0.0), tokenizer, items, **SETTINGS, output_dir=tmp_path)


def test_float16_on_a_gpu_scales_its_loss_and_nothing_else_does():
    from dora_lesson.training.finetune import _needs_loss_scaling

    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    half, brain, full = (a_model().to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    assert _needs_loss_scaling(half, gpu)
    assert not any(_needs_loss_scaling(model, gpu) for model in (brain, full))
    assert not _needs_loss_scaling(half, cpu)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("four_bit", [True, False])
def test_the_layers_train_under_autocast_as_they_do_without(method, four_bit):
    """What the trainer does beside scaling the loss: on a CPU, as no test can count on a GPU."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape)
    torch.manual_seed(0)
    model = random_llama(config, four_bit=four_bit, dtype=torch.float16, device=torch.device("cpu"))
    add_adapters(model, method, r=4, lora_alpha=8, target_modules=SOME).train()
    tokens = torch.arange(24).view(2, 12)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            loss = model(input_ids=tokens, labels=tokens).loss
        (loss * 1024).backward()
        found = {name: p.grad / 1024 for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        gradients.append(found)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) >= 12
    for name, expected in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32 and gradients[1][name].isfinite().all()
        assert (gradients[1][name] - expected).norm() <= 0.05 * expected.norm() + 1e-6, name
