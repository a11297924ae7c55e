"""Fine-tune by hand-written adapters on one process or several, on the Task API set.

    accelerate launch --config_file dora_lesson/multi_gpu/one_machine.yaml \\
        -m dora_lesson.multi_gpu.train --config dora_lesson/multi_gpu/data_parallel.yaml
    torchrun --nproc-per-node 2 -m dora_lesson.multi_gpu.train --config dora_lesson/multi_gpu/fsdp.yaml

The launcher starts the processes, the configuration says what they do: `MultiGpuConfig` names its keys. A run that was
cut off goes on from its last checkpoint when you give the same command again. The adapter ends in `output_dir`/adapter.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dora_lesson.core import SetupError
from dora_lesson.multi_gpu.config import MultiGpuConfig, read_config

_RUN = "run.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Run what the configuration asks for and return the exit status: 0 only where the adapter is saved.

    What torch and transformers are not needed for is checked before they are imported.
    """
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dora_lesson.multi_gpu.train", description=about)
    parser.add_argument("--config", required=True, help="a YAML file such as dora_lesson/multi_gpu/data_parallel.yaml")
    try:
        config = read_config(parser.parse_args(arguments).config)
        if problem := launcher_problem(os.environ):
            raise SetupError(problem)
        state = start_processes(config)
        claim_folder(config, state)
        model, tokenizer = prepare_model(config, state)
    except (SetupError, ValueError, FileNotFoundError) as problem:
        print(problem, file=sys.stderr)
        return 1
    try:
        train_and_save(config, state, model, tokenizer)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def launcher_problem(environment: Mapping[str, str]) -> str | None:
    """Why what accelerate was configured to do cannot be done here, in a sentence; None if it can."""
    if _is_set(environment, "ACCELERATE_USE_DEEPSPEED"):
        return (
            "accelerate is configured for DeepSpeed, which this package does not train with (PEFT's documentation "
            "tells of issues with QDoRA under ZeRO-2): launch with dora_lesson/multi_gpu/one_machine.yaml, and set "
            "distributed: fsdp in the run's configuration to shard the model."
        )
    if _is_set(environment, "ACCELERATE_USE_FSDP"):
        return (
            "accelerate is configured to shard the model with its own FSDP plugin, but this package shards it itself: "
            "launch with dora_lesson/multi_gpu/one_machine.yaml, and set distributed: fsdp in the run's configuration."
        )
    return None


def start_processes(config: MultiGpuConfig) -> Any:
    """Join the other processes and return accelerate's state of them all.

    Raises:
        SetupError: what the launcher started is not what the configuration asks for.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available() or _is_set(os.environ, "ACCELERATE_USE_CPU"))
    if problem := processes_problem(config.distributed, state.distributed_type.value, state.num_processes):
        raise SetupError(problem)
    return state


def processes_problem(wanted: str, kind: str, processes: int) -> str | None:
    """Why these processes are not what `distributed` asks for, in a sentence; None if they are.

    Args:
        wanted: `distributed` of the configuration.
        kind: accelerate's type in force, such as NO or MULTI_GPU.
        processes: how many there are.
    """
    several = processes > 1 and kind in ("MULTI_CPU", "MULTI_GPU")
    if wanted == "none" and processes == 1 and kind == "NO":
        return None
    if wanted != "none" and several:
        return None
    report = f"accelerate reports the type {kind} and {processes} process{'es' if processes > 1 else ''}"
    if wanted == "none":
        return f"distributed is none, but {report}: start it with plain python, or set distributed: data_parallel."
    return (
        f"distributed is {wanted}, but {report}, so every copy would train alone: launch at least two processes, on "
        "GPUs with accelerate launch, on a CPU with torchrun --nproc-per-node 2, or set distributed: none."
    )


def claim_folder(config: MultiGpuConfig, state: Any) -> None:
    """Write down in `output_dir` which run it holds, and let every process read it.

    Raises:
        ValueError: the folder holds another run.
        SetupError: a process does not see what the first one wrote.
    """
    run = {**config.model_dump(), "processes": state.num_processes}
    file = Path(config.output_dir) / _RUN
    if state.is_main_process and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
    state.wait_for_everyone()
    if not file.is_file():
        raise SetupError(f"{file} is not seen by every machine: set output_dir to a folder that all of them share.")
    existing = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for key, value in run.items():
        if existing.get(key) != value:
            raise ValueError(
                f"{config.output_dir} holds another run ({key} {existing.get(key)!r} there, {value!r} here): choose "
                "another output_dir, or delete that folder."
            )


def prepare_model(config: MultiGpuConfig, state: Any) -> tuple[Any, Any]:
    """Load the base, add the adapters and, for fsdp, share the frozen weights out; return (model, tokenizer)."""
    import torch
    from transformers.utils import logging

    from dora_lesson.adapters.inject import add_adapters
    from dora_lesson.models.load import default_dtype, load_base
    from dora_lesson.multi_gpu.sharding import shard_frozen

    if not state.is_main_process:
        logging.disable_progress_bar()
    sharded = config.distributed == "fsdp"
    # A model to be sharded is loaded into the machine's memory: its layers go to the device one by one.
    place = torch.device("cpu") if sharded else state.device
    dtype = default_dtype(state.device)
    model, tokenizer = load_base(config.model, four_bit=config.how.four_bit, dtype=dtype, device=place)
    torch.manual_seed(config.seed)  # every process draws the same A
    settings: dict[str, Any] = {key: getattr(config, key) for key in ("r", "lora_alpha", "target_modules")}
    add_adapters(model, config.how.adapter, **settings)
    return (shard_frozen(model, state.device) if sharded else model), tokenizer


def train_and_save(config: MultiGpuConfig, state: Any, model: Any, tokenizer: Any) -> None:
    """Fine-tune on the training split; the first process saves the adapter and prints the closing sentence."""
    from accelerate.utils import gather_object

    from dora_lesson.adapters.peft_format import save_adapters
    from dora_lesson.task_api.dataset import load_task_api
    from dora_lesson.training.finetune import finetune

    result = finetune(model, tokenizer, load_task_api("train"), **config.for_finetune(), label=config.method)
    peak = max(gather_object([result.peak_memory_bytes]))
    if state.is_main_process:
        save_adapters(model, config.adapter_dir)
        print(summary(config, result, state, peak))


def summary(config: MultiGpuConfig, result: Any, state: Any, peak: int) -> str:
    """The sentence that a finished run ends with, from `finetune`'s result and the largest process's peak in bytes."""
    resumed = f", resumed after step {result.resumed_from}" if result.resumed_from else ""
    several = f"es with {config.distributed}" if state.num_processes > 1 else ""
    on = f"{state.num_processes} {state.device.type.upper().replace('CUDA', 'GPU')} process{several}"
    return (
        f"The {config.method} adapter is in {config.adapter_dir}: {result.steps} steps on {on}{resumed}, loss "
        f"{result.losses[0]:.3f} at the first step and {result.losses[-1]:.3f} at the last, {result.seconds:.0f} "
        f"seconds, at most {peak / 1e9:.2f} GB in a process."
    )


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "on")


if __name__ == "__main__":
    status = main()
    if status == 0:
        from accelerate import PartialState

        PartialState().destroy_process_group()  # torch complains of a process that ends without
    sys.exit(status)
