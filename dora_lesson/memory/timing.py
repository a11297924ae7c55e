"""How long a training step takes: layers that take turns, and whole models of a published shape.

Time and memory of a training step depend on shapes and not on what the weights are, so that an 8B model can be timed
with no download.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dora_lesson.adapters.inject import add_adapters, matching_linears, remove_adapters
from dora_lesson.core import whole
from dora_lesson.memory.estimate import estimate
from dora_lesson.memory.shapes import llama_config
from dora_lesson.memory.tracking import free_bytes, measure_peak_memory
from dora_lesson.models.load import default_device, has_bfloat16


def benchmark_interleaved(layers: dict[str, nn.Module], x: Tensor, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a forward and backward pass of each layer, the layers taking turns.

    Taking turns lets whatever else the machine does hit all layers alike: compare ratios within one call. Gradients
    that the layers hold are dropped.

    Args:
        layers: name to layer; all map x (..., d_in) to the same shape.
        x: the input, on the layers' device.
        rounds: timed turns a layer, after one that is not counted.

    Raises:
        ValueError: `rounds` is below 1, there are no layers, or they and x do not fit together.
    """
    (rounds,) = whole(rounds=rounds)
    if not isinstance(layers, Mapping) or not layers:
        raise ValueError("There are no layers to time: pass a dict of name and layer.")
    if not x.is_floating_point():
        raise ValueError(f"x holds {x.dtype}, which has no gradient: pass floating-point numbers.")
    x = x.detach().requires_grad_()
    outputs = {}
    for name, layer in layers.items():
        try:
            with torch.no_grad():
                outputs[name] = layer(x)
        except RuntimeError as error:
            takes = f"x has shape {tuple(x.shape)} and dtype {x.dtype}, which {name} does not take"
            raise ValueError(f"{takes} ({str(error).splitlines()[0]}): pass an x that all layers take.") from None
    if len(shapes := {tuple(y.shape) for y in outputs.values()}) > 1:
        raise ValueError(f"The layers map x to the shapes {sorted(shapes)}: time layers of one shape together.")
    dy = torch.randn_like(next(iter(outputs.values())))

    def tidy(name: str) -> None:
        x.grad = None
        layers[name].zero_grad()

    return in_turns([*layers], lambda name: layers[name](x).backward(dy), range(rounds + 1), tidy)


def in_turns(
    names: list[str],
    run: Callable[[str], None],
    rounds: Iterable[Any],
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Median seconds of `run(name)`, the names taking turns; the first round and `after(name)` are not counted."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in rounds:
        for name in names:
            _wait()
            started = time.perf_counter()
            run(name)
            _wait()
            times[name].append(time.perf_counter() - started)
            after(name)
        names = names[1:] + names[:1]  # nobody always runs after the one that leaves the memory in disarray
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_shape(
    name: str, *, tokens: int = 512, r: int = 16, rounds: int = 5, device: torch.device | None = None
) -> list[dict[str, Any]]:
    """Time and peak memory of one training step of LoRA and DoRA, PEFT's and this package's, in 16 and in 4 bits.

    All linear layers are adapted; AdamW; one sequence of `tokens` tokens. Times are medians of `rounds` steps after two
    that are not counted. A method that the estimate says does not fit is left out, and says so.

    Returns:
        Rows with method, by (PEFT or dora_lesson), seconds a step and peak bytes (None where not run), expected bytes
        (None for PEFT's layers) and note.

    Raises:
        ValueError: an unknown shape, or `rounds` below 1.
    """
    config, device = llama_config(name), device or default_device()
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but at least one timed step is expected.")
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float16
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=8, desc=name, leave=False, disable=None)
    for bits, kinds in ((16, ("lora", "dora")), (4, ("qlora", "qdora"))):
        expected = {k: estimate(config, k, batch_size=1, sequence_length=tokens, r=r, dtype=dtype).total for k in kinds}
        room = free_bytes(device)
        if min(expected.values()) > room:
            note = f"does not fit: {min(expected.values()) / 1e9:.1f} GB expected, {room / 1e9:.1f} GB there"
            none = {"seconds": None, "peak": None}
            rows += [{"method": k, "by": "dora_lesson", **none, "expected": expected[k], "note": note} for k in kinds]
            continue
        model = random_llama(config, four_bit=bits == 4, dtype=dtype, device=device)
        for kind in kinds:
            for by, adapted, undo in _adapted(model, kind[-4:], r):
                row = {
                    "method": kind,
                    "by": by,
                    "expected": expected[kind] if by == "dora_lesson" else None,
                    "note": "",
                }
                rows.append(row | _steps(adapted, tokens, rounds))
                undo()
                bar.update()
        del model, adapted, undo
    bar.close()
    return rows


def _adapted(model: Any, method: str, r: int) -> Iterator[tuple[str, Any, Any]]:
    """The model with PEFT's adapters and with this package's, one after the other, and what takes them off again."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", use_dora=method == "dora")
    peft = get_peft_model(model, config).train()
    yield "PEFT", peft, peft.unload
    ours = add_adapters(model, method, r=r, lora_alpha=2 * r, target_modules="all-linear").train()
    yield "dora_lesson", ours, lambda: remove_adapters(model)


def _steps(model: Any, tokens: int, rounds: int) -> dict[str, Any]:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    peak = measure_peak_memory(step, model, optimizer).total
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "peak": peak}


def random_llama(config: Any, *, four_bit: bool, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of this configuration with random weights, made layer by layer on the device.

    In 4 bits (NF4, double quantization) no more than one layer is ever there unpacked.
    """
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    linears = matching_linears(model, "all-linear")
    for name in linears if four_bit else []:
        d_out, d_in = model.get_submodule(name).weight.shape
        layer = bnb.nn.Linear4bit(d_in, d_out, False, dtype, quant_type="nf4", device="meta")
        W = torch.randn(d_out, d_in, dtype=dtype, device=device) * 0.02
        layer.weight = bnb.nn.Params4bit(W, requires_grad=False, quant_type="nf4").to(device)
        model.set_submodule(name, layer)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.is_meta:
                value = torch.ones(p.shape) if p.dim() == 1 else torch.randn(p.shape, device=device) * 0.02
                setattr(module, name, nn.Parameter(value.to(device, dtype)))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its buffers are not weights
    model.tie_weights()
    model.is_loaded_in_4bit = four_bit  # PEFT asks for it
    return model.requires_grad_(False).train()
