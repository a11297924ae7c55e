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
    (steps,) = whole(steps=steps) if steps is not None else [None]
    dtype = str(request.dtype).removeprefix("torch.")
    several = request.gpus > 1
    packing = setup.four_bit and not request.came_packed  # a base that came packed carries its own configuration
    quantized = ", quantization_config=packing" if packing else ""
    packing = packing or request.packed == "nf4"
    config = [*lora_config(setup).items()]
    autocast = _AUTOCAST.get(dtype) if dtype == "float16" or not several else None
    return _PROGRAM.format(
        headline=f"{METHODS[setup.method].label} on {request.label}",
        launch=_launch(request),
        names="BitsAndBytesConfig, " if packing else "",
        packing=_packing(dtype, several) if packing else "",
        base=_quoted(base or request.model_id),
        data=_quoted(data),
        length=request.sequence_length,
        steps=steps or f"max({LEAST_STEPS}, -(-len(chats) // {setup.sequences(request.gpus)}))  # one pass or more",
        n=setup.sequences(request.gpus),  # chats a step
        dtype=dtype,
        quantized=quantized,
        place=_place(request, setup),
        config=",\n    ".join(", ".join(f"{k}={_quoted(v)}" for k, v in each) for each in (config[:4], config[4:])),
        size=setup.batch_size,
        passes=setup.gradient_accumulation_steps,
        rate=f"{LEARNING_RATE:g}",
        checkpointing=_checkpointing() if setup.gradient_checkpointing else "",
        autocast=f" {autocast}=torch.cuda.is_available()," if autocast else "",
        optimizer='\n    optim="adamw_bnb_8bit",' if setup.optimizer == "adamw_8bit" else "",
        modules="import json\nimport os" if several else "import json",
        best="" if several else _BEST,
        leave=_LEAVE if several else "",
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


def _place(request: Request, setup: TrainingSetup) -> str:
    """Where the base is loaded: with FSDP on the processor, from where each GPU takes its share."""
    if request.gpus == 1:
        return ', device_map="auto"'
    return ', device_map="cpu"' if request.trainer == "fsdp" and setup.four_bit else ""


def _ending(request: Request, dtype: str, quantized: str) -> str:
    if request.inference != "merged":
        return _BESIDE.format(dtype=dtype, quantized=quantized)
    packed = ",\n    quantization_config=packing" if request.packed == "nf4" else ""
    return _MERGED.format(dtype=dtype, packed=packed)


def _serving(request: Request, setup: TrainingSetup) -> str:
    """What packs the saved weights and serves them. These programs are not Python's, and no test runs them."""
    beside, ggml = request.inference != "merged", request.server in ("llama.cpp", "ollama")
    lines = [] if beside else [_PACK[request.packed]] if request.packed in _PACK else []
    lines = ([_GGUF_ADAPTER] if beside else [_GGUF, *lines]) if ggml else lines
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
_PROGRAM = """\
# {headline}: {launch} train.py
# A line of data: {{"messages": [...]}}; its last turn is the assistant's, and is learned.
{modules}
import torch
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
print(f"{{steps}} steps of {n} chats, {{steps * {n} / len(chats):.1f}} passes over {{len(chats)}} of {{len(requests)}}")
arguments = TrainingArguments(
    output_dir="checkpoints", report_to=[], max_steps=steps, warmup_steps=max(1, steps // 10), seed=0,
    per_device_train_batch_size={size}, gradient_accumulation_steps={passes},{autocast}{optimizer}{checkpointing}
    per_device_eval_batch_size=1, prediction_loss_only=True, learning_rate={rate},  # try a third, and three times{best}
)
{packing}model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype}{quantized}{place})
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
if not trainer.is_world_process_zero(): raise SystemExit  # one process does the rest, as if there were no others
os.environ.pop("ACCELERATE_USE_FSDP", None)"""
_MERGED = """\
# Merge into a base that is not packed (on the CPU, for a card may not hold it), save, and ask what was saved.
whole = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype})
PeftModel.from_pretrained(whole, "adapter").merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
del whole
model = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.{dtype}, device_map="auto"{packed})"""
_BESIDE = """\
# Put the saved adapter beside its base, and ask the two.
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.{dtype}, device_map="auto"{quantized})
model = PeftModel.from_pretrained(base, "adapter").eval()"""
_GGUF = "Convert: python convert_hf_to_gguf.py merged --outfile merged.gguf   # llama.cpp's"
_GGUF_ADAPTER = (
    "Convert: python convert_lora_to_gguf.py adapter --base path/to/BASE --outfile adapter.gguf   # llama.cpp's"
)
_PACK = {
    "gguf": "Pack: llama-quantize merged.gguf packed.gguf Q4_K_M",
    "awq": 'Pack into packed/: llm-compressor, AWQModifier(scheme="W4A16", targets=["Linear"], ignore=["lm_head"])',
}
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
