"""Load a Llama: the bundled one with no account and no network, or any from the hub, in 16, 32 or 4 bits."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dora_lesson.core import SetupError
from dora_lesson.models.bundled import HUB_NAME, cache_folder, prepare, quiet_transformers

BUNDLED = "bundled"
OPEN_ALTERNATIVE = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
DTYPES = ("float32", "bfloat16", "float16")


def load_base(
    model_id: str | None = None,
    *,
    four_bit: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """Return `(model, tokenizer)`, the model in eval mode.

    Args:
        model_id: a model of the hub, or a folder. None is the value of `DORA_LESSON_BASE` if that is set, else
            "bundled": SmolLM2-135M-Instruct, which is prepared first if it has to be.
        four_bit: NF4 with double quantization, through bitsandbytes; norms and embeddings stay in `dtype`.
        dtype: float32, bfloat16 or float16; None is float32 on a CPU, bfloat16 on a GPU that has it, else float16.
        device: None is the first CUDA GPU if there is one, else the CPU.

    Raises:
        SetupError: the model cannot be had (network, account, disk), or the device cannot do what is asked.
        ValueError: an unknown dtype or device.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = _device(device)
    chosen = _dtype(dtype, place)
    model_id = chosen_base(model_id)
    bundled = model_id == BUNDLED
    source = str(prepare()) if bundled else model_id
    options: dict[str, Any] = {"local_files_only": bundled, "trust_remote_code": False}
    # The bundled model loads faster than a progress bar draws; one from the hub takes minutes, and shows its own.
    silence = quiet_transformers() if bundled else contextlib.nullcontext()
    try:
        with silence:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if four_bit:
                options["quantization_config"] = four_bit_config(chosen)
            options |= {"dtype": chosen, "device_map": {"": place}, "use_safetensors": True}
            model, found = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        if not bundled or "bitsandbytes" in str(error):
            raise explained(source, error) from error
        todo = "delete that folder, then run `python -m dora_lesson prepare`"
        raise SetupError(f"The bundled model in {cache_folder()} cannot be read: {todo}.") from error
    if missing := sorted(found["missing_keys"]):  # transformers draws them at random
        todo = "if adapters were in the model when it was saved, call merge_adapters and save it again"
        raise SetupError(f"{source} has no weights for {missing[0]}: {todo}.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if bundled:
        # Adapters are saved under this name: a folder of this machine says nothing elsewhere.
        model.name_or_path = model.config.name_or_path = HUB_NAME
    return model.eval(), tokenizer


def chosen_base(model_id: str | None) -> str:
    """The model that a name stands for: itself, else that of `DORA_LESSON_BASE`, else "bundled"."""
    name = str(model_id or os.environ.get("DORA_LESSON_BASE") or BUNDLED)
    return BUNDLED if name.lower() == BUNDLED else name


def default_device() -> torch.device:
    """The first CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; on a GPU bfloat16 where the hardware has it, else float16 (a T4)."""
    on_gpu = torch.bfloat16 if has_bfloat16(device) else torch.float16
    return torch.float32 if device.type == "cpu" else on_gpu


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, not by emulation. A CPU always can."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def has_fast_bfloat16() -> bool:
    """Whether the device that `load_base` takes by default multiplies in bfloat16 itself, faster than in float32."""
    device = default_device()
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return has_bfloat16(device) if device.type == "cuda" else bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def four_bit_config(compute_dtype: torch.dtype) -> Any:
    """The 4-bit configuration of this course: NF4, double quantization, products in `compute_dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, which torch does not know: pass 'cpu', 'cuda' or 'cuda:1'.") from None
    try:
        torch.empty(0, device=place)  # it says whether the device is there
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SetupError(f"device is {device!r}, but torch sees no such device here: pass device='cpu'.") from None
    return place


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but one of {', '.join(DTYPES)} is expected.")
    if name == "bfloat16" and not has_bfloat16(device):
        raise SetupError(f"{device} has no bfloat16: pass dtype='float16', or leave dtype out and it is chosen.")
    return getattr(torch, name)  # type: ignore[no-any-return]


# Words in the errors of the hub and of transformers, and what to do about them; {0} is the model.
_REASONS = {
    r"GatedRepoError|trying to access a gated repo": "{0} is gated: accept its licence at https://huggingface.co/{0}, "
    f"run `hf auth login`, and try again, or use {OPEN_ALTERNATIVE}, which needs no account.",
    r"RepositoryNotFoundError|HFValidationError|is not a valid model identifier": "{0} is neither a folder here nor a "
    "model of the hub: check its spelling (owner/name), or log in with `hf auth login` if it is private.",
    r"SafetensorError": "The weights of {0} are cut short or damaged: get them again.",
    r"bitsandbytes": "4-bit loading does not work here: run `pip install -U bitsandbytes`, or pass four_bit=False.",
    r"safetensors": "{0} has no weights in the safetensors format, and this course loads no other: choose a model that "
    f"has, such as {OPEN_ALTERNATIVE}.",
    r"LocalEntryNotFoundError|OfflineModeIsEnabled|ConnectError|ConnectionError": "{0} is not on this machine yet and "
    'the hub cannot be reached: connect to the network once, or take "bundled", the course\'s own model.',
}


def explained(source: str, error: Exception) -> SetupError:
    """One sentence for what from_pretrained raises; the hub's own error is somewhere among its causes."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    text = " ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    page = "that folder" if Path(source).is_dir() else f"https://huggingface.co/{source}"
    other = f"{source} cannot be loaded ({type(error).__name__}): look at {page} for its files and format."
    if (Path(source) / "adapter_config.json").is_file():
        return SetupError(f"{source} holds an adapter: load its base, then add it with load_adapters.")
    sentence = next((sentence for words, sentence in _REASONS.items() if re.search(words, text)), other)
    return SetupError(sentence.format(source))
