"""Make the runs of a design: one JSON record a run, to be stopped and gone on with."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from dora_lesson.core import SetupError
from dora_lesson.evidence.design import Design
from dora_lesson.evidence.movement import Movement
from dora_lesson.evidence.paired_run import PairedRunConfig, make_run
from dora_lesson.evidence.records import provenance, read_runs, run_config, versions
from dora_lesson.evidence.stats import loss_to_rank
from dora_lesson.experiments.scoring import scored_replies
from dora_lesson.task_api.dataset import LEVELS, load_task_api

PER_RUN = ("learning_rate", "seed", "split")  # what the runs of one arm differ in


def experiment(design: Design, folder: str | Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Make the runs of a design that `folder` does not hold yet, and return the records of those to compare.

    Args:
        design: from `read_design`.
        folder: one JSON file a run. None is ever written over.
        jobs: runs at a time. They share the processor's cores; on one GPU leave it at 1.

    Raises:
        ValueError: the folder holds other runs, or runs of other versions; fewer chats than are held out; all rates of
            an arm diverged; or `jobs` is below 1.
        SetupError: a run was killed. Those that are done are kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, but the number of runs at a time is 1 or more.")
    folder = Path(folder)
    _require_own_runs(folder, design)
    tuned = [(arm, rate) for arm, rates in design.arms for rate in rates if len(rates) > 1]
    splits = ("validation", "test") if tuned else ("test",)
    for split in splits if design.level in LEVELS else ():  # the set of the first edition is gone; its records are not
        if (chats := len(load_task_api(split, level=design.level))) < design.held_out:
            raise ValueError(f"held_out is {design.held_out}, but the {split} split has {chats} chats: ask for fewer.")
    with tqdm(desc="runs", unit="run", smoothing=0) as bar:
        rates = _tune(design, folder, jobs, bar)
        runs = [
            _changed(arm, learning_rate=rates.get(arm, tried[0]), seed=seed)
            for seed, (arm, tried) in itertools.product(design.seeds, design.arms)
            if arm.trains or seed == design.seeds[0]
        ]
        return _make(list(dict.fromkeys(runs)), design, folder, jobs, bar)  # a fixed rate may be the tuned one as well


def _tune(design: Design, folder: Path, jobs: int, bar: Any) -> dict[PairedRunConfig, float]:
    """The rate with the lowest validation loss, for each arm with several rates.

    While that is the lowest or the highest rate tried, the next one is tried too.
    """
    losses: dict[PairedRunConfig, dict[float, float]] = {arm: {} for arm, tried in design.arms if len(tried) > 1}
    todo = [(arm, rate) for arm, tried in design.arms for rate in tried if len(tried) > 1]
    while todo:
        runs = [_changed(a, learning_rate=q, seed=design.tuning_seed, split="validation") for a, q in todo]
        for (arm, rate), record in zip(todo, _make(runs, design, folder, jobs, bar), strict=True):
            losses[arm][rate] = loss_to_rank(record)
        todo = []
        for arm, by_rate in losses.items():
            best = min(by_rate, key=by_rate.__getitem__)
            if by_rate[best] == math.inf:
                raise ValueError(f"All rates tried for {arm.method} at r = {arm.r} diverged: give it lower ones.")
            if best in (min(by_rate), max(by_rate)):
                todo.append((arm, best * 2 if best == max(by_rate) else best / 2))
    return {arm: min(by_rate, key=by_rate.__getitem__) for arm, by_rate in losses.items()}


def _make(runs: list[PairedRunConfig], design: Design, folder: Path, jobs: int, bar: Any) -> list[dict[str, Any]]:
    """The records of these runs, in their order: those that exist, and the others as they are made."""
    records = read_runs(folder)
    missing = list(dict.fromkeys(run for run in runs if run.name not in records))
    if missing and (older := next((name for name, record in records.items() if record["versions"] != versions()), "")):
        raise ValueError(
            f"{folder.name}/{older}.json was made with other versions ({records[older]['versions']}): install those, "
            "or pass another --folder and make all runs again."
        )
    bar.total = (bar.total or 0) + len(runs)
    bar.initial += len(runs) - len(missing)  # the time left is estimated from the runs that are made
    bar.update(len(runs) - len(missing))
    folder.mkdir(parents=True, exist_ok=True)
    for run, record in _run_all(missing, design.command, jobs):
        path = folder / f"{run.name}.json"
        path.with_suffix(".partial").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if path.exists():
            raise ValueError(f"{path.name} was written meanwhile: another experiment runs in {folder.name}.")
        path.with_suffix(".partial").rename(path)
        records[run.name] = record
        bar.update()
    return [records[run.name] for run in runs]


def _run_all(runs: list[PairedRunConfig], command: str, jobs: int) -> Iterator[tuple[PairedRunConfig, dict[str, Any]]]:
    """Each run in a fresh process, whose memory is its own; pairs of run and record, as they are done."""
    if not runs:
        return
    kinds = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if "forkserver" in kinds:
        context.set_forkserver_preload([__name__])  # the libraries are imported once, not once a run
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def in_a_process(run: PairedRunConfig) -> dict[str, Any]:
        with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as process:
            return process.submit(_quiet_run, run, command).result()

    with ThreadPoolExecutor(jobs) as pool:  # a thread waits for each process
        futures = {pool.submit(in_a_process, run): run for run in runs}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    raise SetupError(
                        f"The run {futures[future].name} was killed, most likely for want of memory: pass fewer "
                        "--jobs, or a smaller base. The finished runs are kept, and the same command goes on."
                    ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _quiet_run(run: PairedRunConfig, command: str) -> dict[str, Any]:
    movement = Movement(run)
    score = functools.partial(scored_replies, count=run.scored, level=run.level) if run.scored else None
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars would be some of many
        record = provenance(command, [run.seed]) | make_run(run, [movement], score)
    record["scores"] |= record.pop("reply_scores", {})
    return record | ({"movement": movement.rows} if movement.rows else {})


def _require_own_runs(folder: Path, design: Design) -> None:
    """Refuse a folder that holds a run which the design does not make, and name what differs."""
    for name, record in read_runs(folder).items():
        run = run_config(record)
        per_run = {key: getattr(run, key) for key in PER_RUN}
        arms = [_changed(arm, **per_run) for arm, _ in design.arms]
        if run in arms:
            continue
        alike = [arm for arm in arms if arm.name == run.name]
        differing = "no arm has its method, r and lora_alpha"
        if alike:
            ours, theirs = alike[0].model_dump(), run.model_dump()
            key = next(key for key in ours if ours[key] != theirs[key])
            differing = f"its {key} is {theirs[key]!r}, and the design has {ours[key]!r}"
        raise ValueError(
            f"{folder.name}/{name}.json is not a run of this design: {differing}. Nothing is written over: pass "
            "another --folder, or move the old records away."
        )


def _changed(config: PairedRunConfig, **values: Any) -> PairedRunConfig:
    return config.model_copy(update=values)
