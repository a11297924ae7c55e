"""Fine-tune a model on chats with `transformers.Trainer`: loss on the assistant's tokens, resumable, reproducible."""

from __future__ import annotations

import json
import numbers
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from dora_lesson.adapters.inject import adapted_layers
from dora_lesson.adapters.linear4bit import restore_packed_bytes
from dora_lesson.core import file_in_the_way, whole
from dora_lesson.task_api.chats import encode_chat, pad_token_id
from dora_lesson.task_api.dataset import Item, require_items
from dora_lesson.training.checkpoints import RUN, TrainedOnly, describe_run, digest, last_checkpoint


@dataclass
class FineTuneResult:
    """What `finetune` did."""

    steps: int  # those done: a callback may have stopped the run
    losses: list[float]  # of each step, mean nats a token; those before a resumption too
    seconds: float  # of this call alone
    peak_memory_bytes: int  # of this call alone: of the GPU, else of the process after a step
    trained_parameters: int
    resumed_from: int = 0  # the step of the checkpoint that the run went on from


def finetune(
    model: Any,
    tokenizer: Any,
    train: Iterable[Item],
    *,
    steps: int,
    batch_size: int = 4,
    learning_rate: float,
    seed: int = 0,
    gradient_accumulation_steps: int = 1,
    bf16: bool = False,
    output_dir: str | Path | None = None,
    save_every: int | None = None,
    callbacks: Iterable[TrainerCallback] | TrainerCallback | None = (),
    max_length: int = 1024,
    label: str = "training",
) -> FineTuneResult:
    """Train what is trainable in `model`, in place, on the items' replies.

    AdamW without weight decay; the rate rises over the first steps and falls linearly to zero. Batch order and
    dropout follow from `seed`; on one machine the same call gives the same curve. The adapter's own start is drawn
    when it is added: call `torch.manual_seed` before that.

    Args:
        model, tokenizer: a causal language model, whole or with adapters, by hand or PEFT's, and its tokenizer.
        train: items with `messages`.
        steps, gradient_accumulation_steps: optimizer steps, and forward passes a step.
        batch_size: chats a device and forward pass.
        learning_rate: the highest rate, reached after a tenth of the steps.
        seed: of the batch order and of dropout.
        bf16: compute the forward passes in bfloat16, by autocast; what is trained stays in float32. It saves time where
            `has_fast_bfloat16()`.
        output_dir: folder for checkpoints. If it holds a checkpoint of this very run (base, adapter, data and settings
            alike, wherever the adapter starts), the run goes on from there.
        save_every: steps between checkpoints; only with `output_dir`, where None means a tenth of the run.
        callbacks, label: further `TrainerCallback` objects, and what the progress bar says.
        max_length: the longest chat allowed, in tokens.

    Raises:
        ValueError: nothing to train or to train on, a number out of range, or `output_dir` holds another run.
    """
    steps, batch_size, max_length = whole(steps=steps, batch_size=batch_size, max_length=max_length)
    (gradient_accumulation_steps,) = whole(gradient_accumulation_steps=gradient_accumulation_steps)
    (seed,) = whole(0, seed=seed)
    (save_every,) = [None] if save_every is None else whole(save_every=save_every)
    if not isinstance(learning_rate, numbers.Real) or not 0 < float(learning_rate) < 1:
        raise ValueError(f"learning_rate is {learning_rate!r}, but one between 0 and 1 is expected, such as 2e-4.")
    learning_rate = float(learning_rate)
    if bf16 not in (True, False):
        raise ValueError(f"bf16 is {bf16!r}, but True or False is expected.")
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    settings |= {"gradient_accumulation_steps": gradient_accumulation_steps, "bf16": bool(bf16)}
    if save_every and not output_dir:
        raise ValueError("save_every is given without output_dir: say where the checkpoints go.")
    chats = []
    for number, item in enumerate(require_items(train), start=1):
        try:
            chats.append(encode_chat(tokenizer, item["messages"], max_length))
        except ValueError as error:
            raise ValueError(f"Item {number}: {error}") from None
    if not chats:
        raise ValueError("There are no items to train on: pass a split of the set.")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("No parameter of the model is trainable: add adapters first, or unfreeze the model.")
    if coarse := next((f"{name} is in {p.dtype}" for name, p in trained.items() if p.element_size() < 4), ""):
        raise ValueError(f"{coarse}, where small training steps are rounded away: make it float32.")
    if any(getattr(module, "merged_adapters", None) for module in model.modules()):
        raise ValueError("PEFT's adapters are merged into the weights, where no gradient reaches them: unmerge them.")
    restore_packed_bytes(model)  # the model may have answered before
    device = next(model.parameters()).device
    folder = Path(output_dir).expanduser() if output_dir else None
    if folder and (file := file_in_the_way(folder)):
        raise ValueError(f"output_dir is {folder}, and {file} is a file: pass a folder.")
    settings |= describe_run(model, trained) | {"chats": digest([[c["input_ids"], c["labels"]] for c in chats])}
    checkpoint = last_checkpoint(folder, settings) if folder else None
    resumed_from = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    set_seed(seed)
    scratch = tempfile.TemporaryDirectory(prefix="dora_lesson-")  # the trainer makes its folder even to save nothing
    arguments = TrainingArguments(
        output_dir=str(folder or scratch.name),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        learning_rate=learning_rate,
        warmup_steps=round(0.1 * steps),
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if folder else "no",
        save_steps=save_every or max(1, steps // 10),
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        bf16=bf16,
        fp16=not bf16 and _needs_loss_scaling(model, device),
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,  # all that is trained takes part in every step
    )
    # Else what `accelerate launch` puts into the environment would decide.
    arguments.mixed_precision = "bf16" if bf16 else "fp16" if arguments.fp16 else "no"
    curve = _Curve(steps, resumed_from, label, shown=arguments.process_index == 0)
    packed, caches = getattr(model, "is_quantized", False), getattr(model.config, "use_cache", None)
    try:
        if packed and adapted_layers(model):
            model.is_quantized = False  # else the trainer refuses it: it knows only PEFT's as adapters
        trainer = TrainedOnly(
            model=model,
            args=arguments,
            train_dataset=chats,
            data_collator=Collator(pad_token_id(model, tokenizer, [chat["input_ids"] for chat in chats])),
            callbacks=[curve, *([callbacks] if isinstance(callbacks, TrainerCallback) else callbacks or [])],
        )
    finally:
        if packed:
            model.is_quantized = True
    trainer.remove_callback(PrinterCallback)
    trainer.accelerator.wait_for_everyone()  # all have looked into the folder before anything is written there
    if folder and trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{RUN}.part").write_text(json.dumps(settings))
        os.replace(folder / f"{RUN}.part", folder / RUN)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    try:
        if checkpoint and resumed_from == steps:
            trainer.load_finished(checkpoint)
        else:
            with torch.inference_mode(False), torch.enable_grad():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else it would go on under autocast,
        vars(model).pop("_is_accelerate_prepared", None)  # and a second training would go without
        if caches is not None:
            model.config.use_cache = caches  # the trainer turns it off, and it would be saved so
        curve.bar.close()
        scratch.cleanup()
    model.eval()
    return FineTuneResult(
        steps=trainer.state.global_step,
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        seconds=time.perf_counter() - started,
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else curve.peak,
        trained_parameters=sum(p.numel() for p in trained.values()),
        resumed_from=resumed_from,
    )


def _needs_loss_scaling(model: Any, device: torch.device) -> bool:
    """Whether gradients pass through float16, as on a GPU without bfloat16, where small ones would become zero."""
    return device.type == "cuda" and any(p.dtype == torch.float16 for p in model.parameters())


class Collator:
    """Pad on the left to the longest chat of the batch, so that all replies end together.

    The labels of padding are -100, and the attention mask says which tokens are real. The model is asked for the logits
    of the replies alone, from the token before the longest of them, and gets labels of that length. The loss is the
    same, but where positions are learned and padding moves them, as in GPT-2. The output layer, a fifth of the bundled
    Llama's work, is spared the prompts.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100}

    def __call__(self, chats: list[dict[str, list[int]]]) -> dict[str, Any]:
        width = max(len(chat["input_ids"]) for chat in chats)
        batch: dict[str, Any] = {
            key: torch.tensor([[fill] * (width - len(chat[key])) + chat[key] for chat in chats])
            for key, fill in self.fill.items()
        }
        first = int((batch["labels"] != -100).any(dim=0).nonzero()[0]) - 1  # this token predicts the reply's first
        batch["labels"] = batch["labels"][:, first:]
        return batch | {"logits_to_keep": width - first}


class _Curve(TrainerCallback):
    """Draws the progress bar, in one process alone, and watches the memory of the process."""

    def __init__(self, steps: int, done: int, label: str, shown: bool) -> None:
        # None: hidden where the output is not a terminal.
        self.bar = tqdm(total=steps, initial=done, desc=label, unit="step", leave=False, disable=not shown or None)
        self.peak = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.2f}", refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.peak = max(self.peak, psutil.Process().memory_info().rss)
        self.bar.update(state.global_step - self.bar.n)
