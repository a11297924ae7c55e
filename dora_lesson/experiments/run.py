"""Make the runs of a design: one line of JSON a run, to be stopped and gone on with."""

from __future__ import annotations

import contextlib
import functools
import io
import json
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
from dora_lesson.experiments.scoring import scored_replies
from dora_lesson.task_api.dataset import load_task_api

PER_RUN = ("learning_rate", "seed")  # what the runs of one arm differ in


def experiment(design: Design, file: str | Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Make the runs of a design that `file` does not hold yet, and return the records of all of them.

    Args:
        design: from `read_design`.
        file: JSON lines, one a run. None is ever written over.
        jobs: runs at a time. They share the processor's cores; on one GPU leave it at 1.

    Raises:
        ValueError: the file holds other runs, or runs of other versions; fewer chats than are held out; or `jobs` is
            below 1.
        SetupError: a run was killed. Those that are done are kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, but the number of runs at a time is 1 or more.")
    file = Path(file)
    for split in ("validation", "test"):
        if (chats := len(load_task_api(split, level=design.level))) < max(design.held_out, design.scored):
            raise ValueError(f"held_out or scored asks for more than the {chats} chats of the {split} split.")
    records = read_runs(file)
    _require_own_runs(file.name, records, design)
    runs = design.runs
    missing = [run for run in runs if run.name not in records]
    if missing and (older := next((name for name, record in records.items() if record["versions"] != versions()), "")):
        raise ValueError(
            f"{older} in {file.name} was made with other versions ({records[older]['versions']}): install those, or "
            "pass another --file and make all runs again."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(desc="runs", unit="run", smoothing=0, total=len(runs), initial=len(runs) - len(missing)) as bar:
        for run, record in _run_all(missing, design.command, jobs):
            if run.name in read_runs(file):
                raise ValueError(f"{run.name} was written meanwhile: another experiment writes {file.name}.")
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
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


def _require_own_runs(file: str, records: dict[str, dict[str, Any]], design: Design) -> None:
    """Refuse a file that holds a run which the design does not make, and name what differs."""
    for name, record in records.items():
        run = run_config(record)
        per_run = {key: getattr(run, key) for key in PER_RUN}
        arms = [arm.model_copy(update=per_run) for arm, _ in design.arms]
        if run in arms:
            continue
        alike = [arm for arm in arms if arm.name == run.name]
        differing = "no arm has its method, r and lora_alpha"
        if alike:
            ours, theirs = alike[0].model_dump(), run.model_dump()
            key = next(key for key in ours if ours[key] != theirs[key])
            differing = f"its {key} is {theirs[key]!r}, and the design has {ours[key]!r}"
        raise ValueError(
            f"{name} in {file} is not a run of this design: {differing}. Nothing is written over: pass another --file, "
            "or move the old records away."
        )
