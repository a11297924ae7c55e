"""The recommended configuration as text that runs as it is: a base, PEFT's adapters, the trainer's arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

from dora_lesson.advisor.memory_fit import TrainingSetup
from dora_lesson.advisor.request import Request

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


def snippet(request: Request, setup: TrainingSetup) -> str:
    """A script that loads the request's model, adds the adapter, prints what trains, and holds the trainer's arguments.

    A base that came packed carries its own configuration, so the script gives it none.
    """
    dtype = str(request.dtype).removeprefix("torch.")
    four_bit = setup.four_bit and not request.packed
    kwargs = "\n".join(f"    {key}={_quoted(value)}," for key, value in lora_config(setup).items())
    names = "AutoModelForCausalLM" + (", BitsAndBytesConfig" if four_bit else "") + ", TrainingArguments"
    packing = f"""
packing = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{dtype},
)"""
    quantized = "\n    quantization_config=packing," if four_bit else ""
    checkpointing = _checkpointing() if setup.gradient_checkpointing else ""
    scaled = "\n    fp16=torch.cuda.is_available(),  # scales the loss: gradients pass through float16"
    return f"""\
import torch
from peft import LoraConfig, get_peft_model
from transformers import {names}
{packing if four_bit else ""}
model = AutoModelForCausalLM.from_pretrained(
    "{request.model_id}",
    dtype=torch.{dtype},{quantized}
    device_map="auto",
)
config = LoraConfig(
{kwargs}
)
model = get_peft_model(model, config)
model.print_trainable_parameters()

arguments = TrainingArguments(
    output_dir="adapter",
    per_device_train_batch_size={setup.batch_size},
    gradient_accumulation_steps={setup.gradient_accumulation_steps},{checkpointing}
    learning_rate={LEARNING_RATE:g},  # try a third and three times as much before you judge
    warmup_steps=20,
    num_train_epochs=1,{scaled if dtype == "float16" else ""}
    report_to=[],
)
# Trainer(model=model, args=arguments, train_dataset=..., data_collator=...).train()
"""


def _checkpointing() -> str:
    """The trainer's two arguments, under the name that the installed transformers gives them (renamed in 5.23)."""
    from transformers import TrainingArguments

    known = {argument.name for argument in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return f'\n    {name}=True,\n    {name}_kwargs={{"use_reentrant": False}},'


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
