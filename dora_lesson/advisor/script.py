"""The recommendation as a program: from a file of chats to an adapter, the merged model, and its first answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dora_lesson.advisor.memory_fit import TrainingSetup
from dora_lesson.advisor.request import Request
from dora_lesson.advisor.schedule import LEAST_STEPS
from dora_lesson.core import METHODS, whole

LEARNING_RATE = 2e-4  # a start, for 1B and more; lesson 06 says how to tune it


def lora_config(setup: TrainingSetup) -> dict[str, Any]:
    """The arguments of PEFT's `LoraConfig`: scaling 2, no dropout (PEFT's DoRA is faster without), all linears."""
    return {
        "r": setup.r,
        "lora_alpha": 2 * setup.r,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "use_dora": setup.is_dora,
        "task_type": "CAUSAL_LM",
    }


def script(request: Request, setup: TrainingSetup, data: str | Path, base: str | Path | None, steps: int | None) -> str:
    """A program on PEFT and transformers alone, as `Recommendation.script` describes it."""
    for name, value in (("data", data), ("base", base or request.model_id)):
        if not isinstance(value, str | Path) or not str(value).strip():
            raise ValueError(f"{name} is {value!r}, but the name of a file or a model is expected.")
    (steps,) = whole(steps=steps) if steps is not None else [None]
    dtype = str(request.dtype).removeprefix("torch.")
    several = request.gpus > 1
    packing = setup.four_bit and not request.came_packed  # a base that came packed carries its own configuration
    quantized = ", quantization_config=packing" if packing else ""
    packing = packing or request.packed == "nf4"
    place = "" if several else _PLACES.get(request.device)
    config = [*lora_config(setup).items()]
    n = setup.sequences(request.gpus)  # chats a step
    a_pass = f"-(-len(chats) // {n})"  # its steps
    autocast = _AUTOCAST.get(dtype) if dtype == "float16" or not several else None
    precision = f" {autocast}=torch.cuda.is_available()," if autocast else ""
    precision = " use_cpu=True," if request.device == "cpu" else precision
    return _PROGRAM.format(
        headline=f"{METHODS[setup.method].label} on {request.label}",
        launch=_launch(request),
        names="BitsAndBytesConfig, " if packing else "",
        packing=_packing(dtype, several) if packing else "",
        base=_quoted(base or request.model_id),
        data=_quoted(data),
        length=request.sequence_length,
        steps=steps or f"max({LEAST_STEPS}, {a_pass})  # one pass or more",
        a_pass=a_pass,
        n=n,
        dtype=dtype,
        quantized=quantized,
        where=f"place = {place}\n" if place else "",
        place=_loaded_on(request, setup),
        config=",\n    ".join(", ".join(f"{k}={_quoted(v)}" for k, v in each) for each in (config[:4], config[4:])),
        size=setup.batch_size,
        passes=setup.gradient_accumulation_steps,
        rate=f"{LEARNING_RATE:g}",
        checkpointing=_checkpointing() if setup.gradient_checkpointing else "",
        precision=precision,
        optimizer='\n    optim="adamw_bnb_8bit",' if setup.optimizer == "adamw_8bit" else "",
        modules="gc, json" + ", os" * (request.trainer == "fsdp"),
        best="" if several else _BEST,
        leave=(_LEAVE + _NOT_SHARDED * (request.trainer == "fsdp")) if several else "",
        ending=_ending(request, dtype, quantized),
        serving=_serving(request, setup),
    )


def _launch(request: Request) -> str:
    """What starts the program. With FSDP the adapter is saved whole."""
    if request.gpus == 1:
        return "python"
    launch = f"accelerate launch --num_processes {request.gpus}"
    if request.trainer == "deepspeed":
        return f"\n# {launch} --use_deepspeed --zero_stage 2"
    sharding = "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_state_dict_type FULL_STATE_DICT"
    return f"\n# {launch} --use_fsdp --fsdp_version 2 {sharding}"


def _loaded_on(request: Request, setup: TrainingSetup) -> str:
    """Where the base is trained: with FSDP it is loaded on the processor, from where each GPU takes its share."""
    if request.gpus == 1:
        return ', device_map="cpu"' if request.device == "cpu" else ", device_map=place"
    return ', device_map="cpu"' if request.trainer == "fsdp" and setup.four_bit else ""


def _ending(request: Request, dtype: str, quantized: str) -> str:
    """What is asked, from the disk: whole on the card where the card holds it, else as transformers spreads it."""
    packed = request.packed == "nf4" if request.inference == "merged" else request.inference == "4-bit"
    place = '"auto"' if request.gpus > 1 or not packed else "place"
    place = '"cpu"' if request.device == "cpu" else place
    if request.inference != "merged":
        return _BESIDE.format(dtype=dtype, place=place, quantized=quantized if packed else "")
    return _MERGED.format(dtype=dtype, place=place, packed=",\n    quantization_config=packing" if packed else "")


def _serving(request: Request, setup: TrainingSetup) -> str:
    """What packs the saved weights and serves them. These programs are not Python's, and no test runs them."""
    beside, ggml = request.inference != "merged", request.server in ("llama.cpp", "ollama")
    lines = [_AWQ] if request.packed == "awq" and not beside else []
    lines = [_GGUF_ADAPTER if beside else _GGUF + _GGUF_PACKED * (request.packed == "gguf")] if ggml else lines
    folder = {"gguf": "packed.gguf", "awq": "packed"}.get(request.packed, "merged.gguf" if ggml else "merged")
    flag = " --quantize bitsandbytes-nf4" if request.server == "tgi" else " --quantization bitsandbytes"
    packing = flag if request.packed == "nf4" else ""
    if serve := _SERVE.get(("beside" if beside else "merged", request.server)):
        packed_as_awq = request.packed == "awq" and not request.came_packed
        base = "path/to/BASE-awq" if packed_as_awq else "BASE"
        lines.append(serve.format(folder=folder, packing=packing, r=setup.r, base=base))
    return "".join(f"# {line}\n" for line in lines)


def _packing(dtype: str, several: bool) -> str:
    storage = f", bnb_4bit_quant_storage=torch.{dtype}" if several else ""  # FSDP shards what is stored in this type
    kind = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
    return f"packing = BitsAndBytesConfig({kind},\n    bnb_4bit_compute_dtype=torch.{dtype}{storage})\n"


def _checkpointing() -> str:
    """The trainer's two arguments, under the name that the installed transformers gives them (renamed in 5.23)."""
    from transformers import TrainingArguments

    known = {argument.name for argument in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    before = '  # "gradient_" before 5.23' if name.startswith("activation") else ""
    return f'\n    {name}=True, {name}_kwargs={{"use_reentrant": False}},{before}'


def _quoted(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, str | Path) else repr(value)


_AUTOCAST = {"bfloat16": "bf16", "float16": "fp16"}
_PLACES = {
    "cuda": '"cuda" if torch.cuda.is_available() else "cpu"',
    "mps": '"mps" if torch.backends.mps.is_available() else "cpu"',
}
_PROGRAM = """\
# {headline}: {launch} train.py
# A line of data: {{"messages": [...]}}; its last turn is the assistant's, and is learned.
import {modules}, torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, {names}DataCollatorForSeq2Seq
from transformers import Trainer, TrainingArguments
BASE, DATA = {base}, {data}
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
assert tokenizer.chat_template, "BASE has no chat template: take its Instruct model, or set tokenizer.chat_template"
def ids_of(chat, **options):
    return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, **options), add_special_tokens=False).input_ids
def encode(messages):
    prompt, ids = ids_of(messages[:-1], add_generation_prompt=True), ids_of(messages)
    assert ids[: len(prompt)] == prompt, "this template's prompt does not begin its chats: mask the prompt by hand"
    return {{"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}}  # -100: no loss on the prompt
requests = [json.loads(line)["messages"] for line in open(DATA, encoding="utf-8") if line.strip()]
assert requests and all(chat[-1]["role"] == "assistant" for chat in requests), "chats end with the assistant's turn"
chats = [chat for chat in map(encode, requests) if len(chat["input_ids"]) <= {length}]
assert chats, "no chat has at most {length} tokens"
every = max(10, len(chats) // 200)  # one chat in ten is kept aside to compare runs on, some 200 at most
held_out, chats = chats[every - 1 :: every], [chat for i, chat in enumerate(chats, 1) if i % every]
steps = {steps}
print(f"{{steps}} steps of <= {n} chats, {{steps / {a_pass}:.1f}} passes over {{len(chats)}} of {{len(requests)}}")
arguments = TrainingArguments(
    output_dir="checkpoints", report_to=[], max_steps=steps, warmup_steps=max(1, steps // 10), seed=0,
    per_device_train_batch_size={size}, gradient_accumulation_steps={passes},{precision}{optimizer}{checkpointing}
    per_device_eval_batch_size=1, prediction_loss_only=True, learning_rate={rate},  # try a third, and three times{best}
)
{packing}{where}model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype}{quantized}{place})
config = LoraConfig({config})
torch.manual_seed(0)
model = get_peft_model(model, config)
model.print_trainable_parameters()
trainer = Trainer(model=model, args=arguments, train_dataset=chats, eval_dataset=held_out or None,
                  data_collator=DataCollatorForSeq2Seq(tokenizer))
trainer.train()
print("held-out loss", trainer.evaluate()["eval_loss"] if held_out else "of no chats")
trainer.save_model("adapter"){leave}
del trainer, model
gc.collect()  # packed weights and their layers hold on to each other
{ending}
prompt = torch.tensor([ids_of(requests[0][:-1], add_generation_prompt=True)], device=model.device)
reply = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)
print(tokenizer.decode(reply[0, prompt.shape[1] :], skip_special_tokens=True))
{serving}"""
# Ten times on the way the chats kept aside are judged, and the adapter that is best on them is taken.
_BEST = """
    eval_strategy="steps" if held_out else "no", save_strategy="steps" if held_out else "no", save_total_limit=1,
    eval_steps=max(1, steps // 10), save_steps=max(1, steps // 10), load_best_model_at_end=bool(held_out),"""
_LEAVE = """
if not trainer.is_world_process_zero(): raise SystemExit  # one process does the rest"""
_NOT_SHARDED = """
os.environ.pop("ACCELERATE_USE_FSDP", None)  # as if there were no others"""
_MERGED = """\
# Merge into a base that is not packed (on the CPU, for a card may not hold it), save, and ask what was saved.
whole = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype})
PeftModel.from_pretrained(whole, "adapter").merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
del whole
model = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.{dtype}, device_map={place}{packed})"""
_BESIDE = """\
# Put the saved adapter beside its base, and ask the two.
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype}, device_map={place}{quantized})
model = PeftModel.from_pretrained(base, "adapter").eval()"""
_GGUF = "llama.cpp: python convert_hf_to_gguf.py merged --outfile merged.gguf"
_GGUF_PACKED = " && llama-quantize merged.gguf packed.gguf Q4_K_M"
_GGUF_ADAPTER = "llama.cpp: python convert_lora_to_gguf.py adapter --base path/to/BASE --outfile adapter.gguf"
_AWQ = 'Pack into packed/: llm-compressor, AWQModifier(scheme="W4A16", targets=["Linear"], ignore=["lm_head"])'
_SERVE = {
    ("merged", "vllm"): "Serve: vllm serve {folder}{packing}",
    (
        "merged",
        "tgi",
    ): "Serve: text-generation-launcher --model-id ./{folder}{packing}   # in maintenance; vLLM reads it too",
    ("merged", "llama.cpp"): "Serve: llama-server -m {folder}",
    (
        "merged",
        "ollama",
    ): "Serve: ollama create mine -f Modelfile   # it says FROM ./{folder}; see ollama show mine --template",
    (
        "beside",
        "vllm",
    ): "Serve: vllm serve {base} --enable-lora --max-lora-rank {r} --lora-modules mine=adapter{packing}",
    (
        "beside",
        "tgi",
    ): "Serve: text-generation-launcher --model-id {base} --lora-adapters mine=./adapter{packing}   # in maintenance",
    ("beside", "llama.cpp"): "Serve: llama-server -m path/to/base.gguf --lora adapter.gguf",
    (
        "beside",
        "ollama",
    ): "Serve: ollama create mine -f Modelfile   # it says FROM the base, and ADAPTER ./adapter.gguf",
}
