"""Paired runs of several methods: a design in a YAML file, one JSON record a run, to be stopped and gone on with.

A run fine-tunes a base on the Task API set with one method, rank, rate and seed, and is judged by the loss on held-out
replies, which tells methods apart long before a score of whole replies does. `evidence` reads and compares the records.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from dora_lesson.core import SetupError
from dora_lesson.evidence.records import provenance, read_runs, versions
from dora_lesson.evidence.stats import loss_to_rank
from dora_lesson.experiments.design import PER_RUN, Design
from dora_lesson.task_api.dataset import load_task_api
from dora_lesson.training.paired_run import Setting, as_config, one_run


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
        return provenance(command, [setting.seed]) | one_run(setting)


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
        arms = [as_config(arm) | own for arm, _ in design.arms]
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
