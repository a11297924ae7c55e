"""Make the recorded runs of lessons 02, 04 and 05: `python -m tools.record_runs`.

Every run fine-tunes the bundled Llama on the Task API set, follows how far its weights move, and scores it on held-out
items. Runs are method × seed; a run that is there already is not made again, so the command can be stopped and started.
Each keeps when and where it was made, and one that was made with other settings or versions is refused.
With its defaults a run takes about two minutes on two CPU cores. `--steps 303` is one pass over the training chats.
`--methods qbase qlora qdora` trains over a 4-bit base; such a run is scored merged to full size, and quantized again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from dora_lesson.adapters.geometry import direction_change, magnitude_change
from dora_lesson.adapters.inject import add_adapters, effective_weights, merge_adapters
from dora_lesson.evidence.records import provenance, read_record, versions
from dora_lesson.models.load import load_base
from dora_lesson.task_api.dataset import answer, load_task_api
from dora_lesson.task_api.scoring import score
from dora_lesson.training.finetune import finetune

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "data" / "records"
COMMAND = "python -m tools.record_runs"
MODULES = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]  # the paper's choice, its Table 8
R, LORA_ALPHA, CHECKPOINTS = 16, 32, 4
RATES = {"base": 0.0, "qbase": 0.0, "full": 1e-4, "lora": 2e-3, "dora": 2e-3, "qlora": 2e-3, "qdora": 2e-3}
Setting = dict[str, Any]


def grid(methods: list[str], seeds: int, steps: int, batch_size: int) -> list[Setting]:
    """Settings of all runs, the base first; methods change fastest, so that every seed is a pair at any time."""
    untrained = [method for method in methods if RATES[method] == 0]
    runs: list[Setting] = [
        {"method": method, "learning_rate": 0.0, "seed": 0, "steps": 0, "batch_size": 0} for method in untrained
    ]
    for seed, method in itertools.product(range(seeds), [m for m in methods if m not in untrained]):
        setting = {"method": method, "learning_rate": RATES[method], "seed": seed}
        runs.append(setting | {"steps": steps, "batch_size": batch_size})
    return runs


def config(items: int) -> dict[str, Any]:
    """What decides all runs of a record alike; beside it stands the setting of each."""
    return {
        "r": R, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "target_modules": MODULES, "dtype": "float32",
        "schedule": "linear, a tenth of the steps of warm-up", "optimizer": "AdamW, no weight decay",
        "checkpoints": CHECKPOINTS, "scored on": f"the first {items} test items, adapters merged, greedy",
    }  # fmt: skip


def _path(setting: Setting, items: int, folder: Path) -> Path:
    values = (f"{value:g}" if isinstance(value, float) else str(value) for value in setting.values())
    return folder / f"{'-'.join(values)}-{items}.json"


def kept(setting: Setting, items: int, folder: Path) -> dict[str, Any] | None:
    """The run if it is there, with what it says of how it was `made`.

    Raises:
        ValueError: it is no record, or was made with another setting or other versions than there are now.
    """
    path = _path(setting, items, folder)
    if not path.is_file():
        return None
    found = read_record(path)
    for then, now in ((found.get("config", {}), setting | config(items)), (found["versions"], versions())):
        for key in now | then:
            if then.get(key) != now.get(key):
                raise ValueError(
                    f"{path.name} was made with {key} {then.get(key)!r}, but now it is {now.get(key)!r}: "
                    "move it away and it is made again, or pass another --folder."
                )
    run: dict[str, Any] = found["run"]
    return run | {"made": {key: found[key] for key in ("date", "hardware", "command")}}


def one_run(setting: Setting, items: int, folder: Path, command: str) -> dict[str, Any]:
    """Train, follow the weights, merge, score, and keep the run with what made it; or read it if it is there."""
    if run := kept(setting, items, folder):
        return run
    four_bit = setting["method"].startswith("q")
    model, tokenizer = load_base(dtype="float32", four_bit=four_bit)
    run = dict(setting)
    held_out = held_out_items(items)
    if setting["steps"]:
        run |= _train(model, tokenizer, setting)
    if setting["steps"] and four_bit:
        again = merge_adapters(copy.deepcopy(model), four_bit=True)
        run["requantised"] = _scored(again, tokenizer, held_out)["scores"]
        del again
    if setting["steps"] and setting["method"] != "full":
        merge_adapters(model)
    run |= _scored(model, tokenizer, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(setting, items, folder)
    made = {**provenance(command, [setting["seed"]]), "config": setting | config(items), "run": run}
    path.with_suffix(".partial").write_text(json.dumps(made))
    path.with_suffix(".partial").replace(path)
    return kept(setting, items, folder) or run


def _scored(model: Any, tokenizer: Any, held_out: list[Any]) -> dict[str, Any]:
    replies = answer(model, tokenizer, held_out, batch_size=34, label="scoring")
    scores = score(replies, held_out)
    found = {
        "task_accuracy": round(scores.task_accuracy, 4),
        "persona_consistency": round(scores.persona_consistency, 3),
        "right": "".join(str(int(right)) for right in scores.right),
        "persona": scores.persona,
    }
    return {"scores": found, "replies": replies}


def held_out_items(count: int) -> list[Any]:
    """The first `count` test items; the file is shuffled, so they hold every category."""
    return list(load_task_api("test"))[:count]


def _train(model: Any, tokenizer: Any, setting: Setting) -> dict[str, Any]:
    start = effective_weights(model, MODULES)
    if setting["method"] != "full":
        torch.manual_seed(setting["seed"])
        add_adapters(model, setting["method"][-4:], r=R, lora_alpha=LORA_ALPHA, target_modules=MODULES)
    movement = _Movement(start, [round(setting["steps"] * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)])
    result = finetune(
        model,
        tokenizer,
        load_task_api("train"),
        steps=setting["steps"],
        batch_size=setting["batch_size"],
        learning_rate=setting["learning_rate"],
        seed=setting["seed"],
        callbacks=[movement],
    )
    return {
        "trained_parameters": result.trained_parameters,
        "seconds": round(result.seconds, 1),
        "peak_memory_gb": round(result.peak_memory_bytes / 1e9, 2),
        "last_loss": round(statistics.fmean(result.losses[-max(1, setting["steps"] // 5) :]), 4),
        "losses": [round(loss, 3) for loss in result.losses],
        "movement": movement.points,
    }


class _Movement(TrainerCallback):
    """ΔM and ΔD (paper, Eqs. 3 and 4) of every adapted matrix, at some steps: rows of (step, layer, part, ΔM, ΔD)."""

    def __init__(self, start: dict[str, torch.Tensor], steps: list[int]) -> None:
        self.start, self.steps = start, steps
        self.points: list[tuple[int, int, str, float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step not in self.steps:
            return
        for name, W in effective_weights(model, MODULES).items():
            layer, part = int(name.split(".")[2]), name.split(".")[-1].removesuffix("_proj")
            moved = magnitude_change(self.start[name], W).item(), direction_change(self.start[name], W).item()
            self.points.append((state.global_step, layer, part, *(float(f"{value:.4g}") for value in moved)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=RATES, default=["base", "full", "lora", "dora"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--items", type=int, default=68, help="held-out items to score on, 204 at most")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the processor's cores")
    parser.add_argument("--name", default="short", help="of the record")
    parser.add_argument("--folder", type=Path, default=RECORDS / "runs", help="where single runs are kept")
    chosen = parser.parse_args()
    if not 1 <= chosen.items <= (most := len(load_task_api("test"))) or min(chosen.jobs, chosen.seeds) < 1:
        raise SystemExit(f"--items from 1 to {most}, and --jobs and --seeds from 1 on, are expected.")
    settings = grid(chosen.methods, chosen.seeds, chosen.steps, chosen.batch_size)
    methods = "" if chosen.methods == parser.get_default("methods") else f" --methods {' '.join(chosen.methods)}"
    command = f"{COMMAND}{methods} --seeds {chosen.seeds} --steps {chosen.steps} --batch-size {chosen.batch_size}"
    command += f" --items {chosen.items} --jobs {chosen.jobs} --name {chosen.name}"
    record = RECORDS / f"{chosen.name}.json"
    try:  # before hours are spent beside a run that does not belong to them, or for a record of other runs
        for setting in settings:
            kept(setting, chosen.items, chosen.folder)
        there = read_record(record)["command"] if record.is_file() else command
        if _but_jobs(there) != _but_jobs(command):
            raise ValueError(f"{record.name} is there already, made by {there}: pass another --name.")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    make = partial(one_run, items=chosen.items, folder=chosen.folder, command=command)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, fresh, torch.set_num_threads, (threads,)) as pool:
        runs = list(tqdm(pool.map(make, settings), total=len(settings), desc="runs"))
    RECORDS.mkdir(parents=True, exist_ok=True)
    text = as_text(command, list(range(chosen.seeds)), config(chosen.items), runs)
    record.write_text(text, encoding="utf-8")


def _but_jobs(command: str) -> str:
    return re.sub(r" --jobs \d+", "", command)


def as_text(command: str, seeds: list[int], common: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The record of some runs, one a line. Its date is the last run's, its hardware that of any of them."""
    record = {
        "command": command,
        "date": max(run["made"]["date"] for run in runs),
        "hardware": "; ".join(dict.fromkeys(run["made"]["hardware"] for run in runs)),
        "versions": versions(),
        "seeds": seeds,
        "config": common,
    }
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    return json.dumps(record, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
