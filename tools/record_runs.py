"""Make the recorded runs of lessons 02, 04 and 05: `python -m tools.record_runs`.

Every run fine-tunes the embedded Llama on the Task API set, follows how far its weights move, and scores it on held-out
items. Runs are method × seed; a run that is there already is not made again, so the command can be stopped and started.
With its defaults a run takes about two minutes on two CPU cores. `--steps 303` is one pass over the training chats.
`--methods qbase qlora qdora` trains over a 4-bit base; such a run is scored merged to full size, and quantised again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from dora_lesson.adapters import add_adapters, effective_weights, merge_adapters
from dora_lesson.geometry import direction_change, magnitude_change
from dora_lesson.models import load_base
from dora_lesson.records import provenance
from dora_lesson.scoring import score
from dora_lesson.task_api import answer, load_task_api
from dora_lesson.training import finetune

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


def one_run(setting: Setting, items: int, folder: Path) -> dict[str, Any]:
    """Train, follow the weights, merge, score; or read the run if it is there."""
    path = folder / ("-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in setting.values()))
    path = path.with_name(f"{path.name}-{items}.json")
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
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
    path.with_suffix(".partial").write_text(json.dumps(run))
    path.with_suffix(".partial").replace(path)
    return run


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
    settings = grid(chosen.methods, chosen.seeds, chosen.steps, chosen.batch_size)
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    torch.set_num_threads(threads)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, fresh, torch.set_num_threads, (threads,)) as pool:
        made = pool.map(one_run, settings, itertools.repeat(chosen.items), itertools.repeat(chosen.folder))
        runs = list(tqdm(made, total=len(settings), desc="runs"))
    methods = "" if chosen.methods == parser.get_default("methods") else f" --methods {' '.join(chosen.methods)}"
    command = f"{COMMAND}{methods} --seeds {chosen.seeds} --steps {chosen.steps} --batch-size {chosen.batch_size}"
    command += f" --items {chosen.items} --jobs {chosen.jobs} --name {chosen.name}"
    record = provenance(command, seeds=list(range(chosen.seeds)))
    record["config"] = {
        "r": R, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "target_modules": MODULES, "dtype": "float32",
        "schedule": "linear, a tenth of the steps of warm-up", "optimizer": "AdamW, no weight decay",
        "runs at a time": chosen.jobs,
        "scored on": f"the first {chosen.items} test items, adapters merged, greedy",
    }  # fmt: skip
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    RECORDS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n'
    (RECORDS / f"{chosen.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
