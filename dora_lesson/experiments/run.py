"""Paired runs of several methods: a design in a YAML file, one JSON record a run, to be stopped and gone on with.

A run fine-tunes a base on the Task API set with one method, rank, rate and seed, and is judged by the loss on held-out
replies, which tells methods apart long before a score of whole replies does. `evidence` reads and compares the records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from dora_lesson.adapters.inject import adapted_layers, add_adapters
from dora_lesson.environment import SetupError
from dora_lesson.evidence.records import provenance, read_runs, versions
from dora_lesson.evidence.stats import loss_to_rank
from dora_lesson.experiments.design import PER_RUN, Design, Setting
from dora_lesson.models.load import load_base
from dora_lesson.task_api.dataset import Item, encode_chat, load_task_api
from dora_lesson.training.finetune import Collator, finetune


def one_run(setting: Setting, command: str) -> dict[str, Any]:
    """Train, judge on the held-out chats, and return the record of the run, which names the command that makes it."""
    four_bit = setting.method.startswith("q")
    model, tokenizer = load_base(setting.base or "embedded", four_bit=four_bit, dtype=setting.dtype)
    torch.manual_seed(setting.seed)
    if setting.method == "full":
        model.requires_grad_(True)
    else:
        size: dict[str, Any] = {"r": setting.r, "lora_alpha": setting.lora_alpha, "lora_dropout": setting.lora_dropout}
        add_adapters(model, setting.method[-4:], **size, target_modules=setting.target_modules)
    if setting.A_spread:
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_A, std=setting.A_spread)
    began = time.process_time()
    result = finetune(
        model, tokenizer, load_task_api("train"), steps=setting.steps, batch_size=setting.batch_size,
        learning_rate=setting.learning_rate, seed=setting.seed, label=setting.name,
    )  # fmt: skip
    spent = time.process_time() - began
    clock = {} if torch.cuda.is_available() else {"processor_seconds": round(spent, 2)}
    losses, right = reply_losses(model, tokenizer, list(load_task_api(setting.split))[: setting.held_out])
    return {
        **provenance(command, [setting.seed]),
        "config": _config(setting),
        "trained_parameters": result.trained_parameters,
        "seconds": round(result.seconds, 2),
        **clock,
        "peak_memory_bytes": result.peak_memory_bytes,
        "losses": [round(loss, 4) for loss in result.losses],
        "scores": {"loss": round(sum(losses) / len(losses), 5), "accuracy": round(sum(right) / len(right), 5)},
        "item_losses": [round(loss, 4) for loss in losses],
    }


@torch.no_grad()
def reply_losses(
    model: Any, tokenizer: Any, items: Iterable[Item], batch_size: int = 4
) -> tuple[list[float], list[float]]:
    """For each item, over its reply's tokens: the mean loss (nats a token), and the share guessed right at first."""
    chats = [encode_chat(tokenizer, item["messages"]) for item in items]
    order = sorted(range(len(chats)), key=lambda i: len(chats[i]["input_ids"]))
    collate, device = Collator(tokenizer.pad_token_id), next(model.parameters()).device
    losses, right = [0.0] * len(chats), [0.0] * len(chats)
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([chats[i] for i in chosen])
        labels = batch.pop("labels")[:, 1:].to(device)
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        logits = model(**batch).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        counts = (labels != -100).sum(dim=1)
        means = (loss.sum(dim=1) / counts).tolist()
        hits = ((logits.argmax(dim=-1) == labels).sum(dim=1) / counts).tolist()
        for i, mean, share in zip(chosen, means, hits, strict=True):
            losses[i], right[i] = mean, share
    return losses, right


def experiment(design: Design, folder: str | Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Make the runs of a design that `folder` does not hold yet, and return the records of those to compare.

    Args:
        design: from `read_design`.
        folder: one JSON file a run. None is ever written over.
        jobs: runs at a time. They share the processor's cores; on one GPU leave it at 1.

    Raises:
        ValueError: the folder holds a record that is no run of the design, or, where runs are missing, was made with
            other versions; there are fewer chats than are held out; all rates of an arm diverged; or `jobs` is no whole
            number from 1 on.
        SetupError: a run was killed. Those that are done are kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, but the number of runs at a time is 1 or more.")
    folder = Path(folder)
    _require_own_runs(folder, design)
    tuning = [(arm, rate) for arm, rates in design.arms for rate in rates if len(rates) > 1]
    for split in ["validation", "test"] if tuning else ["test"]:
        there, wanted = len(load_task_api(split)), design.arms[0][0].held_out
        if there < wanted:
            raise ValueError(f"held_out is {wanted}, but the {split} split has {there} chats: ask for fewer.")
    total = len(tuning) + len(design.arms) * len(design.seeds)
    with tqdm(total=total, desc="runs", unit="run", smoothing=0) as bar:
        best: dict[Setting, float] = {}
        losses: dict[tuple[Setting, float], float] = {}
        while tuning:
            settings = [replace(a, learning_rate=q, seed=design.tuning_seed, split="validation") for a, q in tuning]
            records = _make(settings, design.command, folder, jobs, bar)
            losses |= {pair: loss_to_rank(record) for pair, record in zip(tuning, records, strict=True)}
            arms = list(dict.fromkeys(arm for arm, _ in tuning))
            tuning = []
            for arm in arms:
                tried = {rate: loss for (a, rate), loss in losses.items() if a == arm}
                best[arm] = min(tried, key=lambda rate: tried[rate])
                if tried[best[arm]] == math.inf:
                    raise ValueError(f"All rates tried for {arm.method} at r = {arm.r} diverged: give it lower ones.")
                if best[arm] in (min(tried), max(tried)):
                    tuning.append((arm, best[arm] * 2 if best[arm] == max(tried) else best[arm] / 2))
            total += len(tuning)
            bar.total = total
        settings = [
            replace(arm, learning_rate=best[arm] if len(rates) > 1 else rates[0], seed=seed, split="test")
            for seed, (arm, rates) in itertools.product(design.seeds, design.arms)
        ]
        settings = list(dict.fromkeys(settings))  # an arm at a given rate may be the tuned one as well
        bar.total = len(losses) + len(settings)
        return _make(settings, design.command, folder, jobs, bar)


def _make(settings: Sequence[Setting], command: str, folder: Path, jobs: int, bar: Any) -> list[dict[str, Any]]:
    """The records of these settings, in their order: those that are there, then the others as they are made."""
    there = read_runs(folder)
    todo = [setting for setting in settings if setting.name not in there]
    older = next((name for name, record in there.items() if record["versions"] != versions()), None)
    if todo and older:
        raise ValueError(
            f"{folder.name}/{older}.json was made with other versions ({there[older]['versions']}) than there are now, "
            "and runs to compare should have the same: install those, or pass another --folder and make all again."
        )
    bar.initial += len(settings) - len(todo)  # the time left is estimated from runs that are made, not those read
    bar.update(len(settings) - len(todo))
    folder.mkdir(parents=True, exist_ok=True)
    for setting, record in _run_all(todo, command, jobs):
        _write(folder / f"{setting.name}.json", record)
        there[setting.name] = record
        bar.update()
    return [there[setting.name] for setting in settings]


def _run_all(settings: list[Setting], command: str, jobs: int) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Each run in a fresh process, whose memory is its own; pairs of setting and record, as they are done."""
    if not settings:
        return  # a folder that is complete starts no process
    kinds = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if "forkserver" in kinds:
        context.set_forkserver_preload([__name__])  # the libraries are imported once, not once a run
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def make(setting: Setting) -> tuple[Setting, dict[str, Any]]:
        with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as process:
            return setting, process.submit(_quiet_run, setting, command).result()

    with ThreadPoolExecutor(jobs) as turns:  # a thread waits for each process
        runs = {turns.submit(make, setting): setting for setting in settings}
        try:
            for run in as_completed(runs):
                try:
                    yield run.result()
                except BrokenProcessPool:
                    raise SetupError(
                        f"The run {runs[run].name} was killed, most likely for want of memory: pass fewer --jobs, or "
                        "a smaller base. The runs that were done are kept, and the same command goes on."
                    ) from None
        finally:
            turns.shutdown(cancel_futures=True)


def _quiet_run(setting: Setting, command: str) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar would be one of several
        return one_run(setting, command)


def _write(path: Path, record: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if path.exists():
        raise ValueError(f"{path.name} has come to be meanwhile: another experiment runs in {path.parent.name}.")
    partial.rename(path)


def _require_own_runs(folder: Path, design: Design) -> None:
    """Refuse a folder that holds a record which the design does not make, and say in what they differ."""
    for name, record in read_runs(folder).items():
        found = record["config"]
        own = {key: found.get(key) for key in PER_RUN}
        arms = [_config(arm) | own for arm, _ in design.arms]
        size = [arm for arm in arms if all(arm[key] == found.get(key) for key in ("method", "r", "lora_alpha"))]
        if found in size:
            continue
        differing = "no arm has its method, rank and lora_alpha"
        if size:
            key = next(key for key in size[0] | found if found.get(key) != size[0].get(key))
            differing = f"its {key} is {found.get(key)!r}, and {size[0].get(key)!r} is asked for"
        raise ValueError(
            f"{folder.name}/{name}.json is no run of this design: {differing}. Nothing is written over: pass another "
            "--folder, or move the old records away."
        )


def _config(setting: Setting) -> dict[str, Any]:
    return {**dataclasses.asdict(setting), "target_modules": list(setting.target_modules)}
