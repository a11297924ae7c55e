"""What a model will ask of this machine before it is fetched: download, memory, minutes, a token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dora_lesson.core import whole
from dora_lesson.memory.estimate import adapter_parameters, estimate
from dora_lesson.memory.shapes import llama_config
from dora_lesson.memory.tracking import free_bytes
from dora_lesson.models.load import (
    BUNDLED,
    OPEN_ALTERNATIVE,
    chosen_base,
    default_device,
    default_dtype,
    explained,
)

# Models whose shape is known without asking the hub, and whether their licence has to be accepted there first.
KNOWN = {
    BUNDLED: ("smollm2-135m", False),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama-3.2-1b", True),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama-3.1-8b", True),
    OPEN_ALTERNATIVE: ("smollm2-1.7b", False),
}


@dataclass(frozen=True)
class BasePlan:
    """What training QDoRA on a 4-bit model will take; bytes, and seconds for all steps. Print it."""

    model_id: str
    device: str
    dtype: torch.dtype
    download: int
    peak: int
    free: int
    gradient_checkpointing: bool
    seconds: float
    needs_token: bool

    @property
    def fits(self) -> bool:
        """Whether the peak, and 1 GB for the context and the allocator's gaps on a GPU, is free."""
        return self.peak + (0 if self.device == "CPU" else 10**9) <= self.free

    def __str__(self) -> str:
        name = "SmolLM2-135M-Instruct, bundled" if self.model_id == BUNDLED else self.model_id
        lines = [f"{name}, in 4 bits, {str(self.dtype).removeprefix('torch.')}, on {self.device}"]
        lines.append(f"  download  {self.download / 1e9:.1f} GB" if self.download else "  download  none, it is here")
        checkpointing = ", with gradient checkpointing" if self.gradient_checkpointing else ""
        room = "fits in" if self.fits else "does not fit in"
        lines.append(
            f"  memory    {self.peak / 1e9:.1f} GB at the peak{checkpointing}; {room} {self.free / 1e9:.1f} GB"
        )
        lines.append(f"  training  about {max(1, round(self.seconds / 60))} min, from a matrix product timed just now")
        if self.needs_token:
            lines.append(
                f"  token     needed and not found: accept the licence at https://huggingface.co/{self.model_id}, then "
                "run `hf auth login`, or in Colab add HF_TOKEN to the secrets; "
                f"{OPEN_ALTERNATIVE} needs none"
            )
        return "\n".join(lines)


def plan_base(
    model_id: str | None = None,
    *,
    steps: int = 40,
    batch_size: int = 2,
    sequence_length: int = 512,
    r: int = 16,
    target_modules: Any = "all-linear",
) -> BasePlan:
    """Say what training QDoRA on a 4-bit model takes here; nothing is fetched but the configuration of an unknown one.

    Gradient checkpointing is planned where the peak does not fit without it. The minutes count four operations a weight
    and token, six with checkpointing, at half the speed of a product timed on this device; answers are not counted.

    Args:
        model_id: as in `load_base`; None is `DORA_LESSON_BASE`, else the bundled model.
        steps, batch_size, sequence_length: of the training; sequences are taken at their full length.
        r, target_modules: as in PEFT.

    Raises:
        SetupError: the configuration of the model cannot be had.
    """
    (steps,) = whole(steps=steps)
    model_id = chosen_base(model_id)
    device = default_device()
    dtype, free = default_dtype(device), free_bytes(device)
    config = _config(model_id)
    gated = KNOWN.get(model_id, ("", False))[1]
    settings = {"batch_size": batch_size, "sequence_length": sequence_length, "r": r, "target_modules": target_modules}
    kept, checkpointed = (
        estimate(config, "qdora", **settings, dtype=dtype, gradient_checkpointing=needs_checkpointing)
        for needs_checkpointing in (False, True)
    )
    on_gpu = device.type == "cuda"
    needs_checkpointing = kept.total + 10**9 * on_gpu > free
    trainable, total = adapter_parameters(config, "dora", r=r, target_modules=target_modules)
    parameters = total - trainable
    operations = (6 if needs_checkpointing else 4) * parameters * steps * batch_size * sequence_length
    return BasePlan(
        model_id=model_id,
        device=torch.cuda.get_device_name(device) if on_gpu else "CPU",
        dtype=dtype,
        download=0 if model_id == BUNDLED or Path(model_id).is_dir() else 2 * parameters,  # 16 bits each
        peak=(checkpointed if needs_checkpointing else kept).total,
        free=free,
        gradient_checkpointing=needs_checkpointing,
        seconds=operations / (0.5 * _operations_per_second(device, dtype)),
        needs_token=gated and not _token(),
    )


def hub_config(model_id: str) -> Any:
    """The configuration of a model of the hub, or in a folder, without its weights.

    Raises:
        SetupError: it cannot be had.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise explained(model_id, error) from error


def _config(model_id: str) -> Any:
    if model_id in KNOWN:
        return llama_config(KNOWN[model_id][0])
    return hub_config(model_id)


def _token() -> str | None:
    """The hub's token from the environment, `hf auth login` or Colab's secrets, wherever it is kept."""
    from huggingface_hub import get_token

    return get_token()


def _operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second in a large matrix product."""
    a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((512, 2048), (2048, 2048)))
    times = []
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 4 * 2 * a.numel() * b.shape[1] / min(times)
