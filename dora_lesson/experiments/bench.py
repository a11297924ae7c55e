"""Time adapted layers, whole training steps and answers against PEFT's LoRA and QLoRA.

`python -m dora_lesson.experiments.bench` prints three tables. All layers of a row group take turns in one process, so
that what the machine does meanwhile hits them alike: compare ratios to PEFT's LoRA (QLoRA in 4 bits) of one run.
"Saved" is the memory of tensors that autograd keeps from forward to backward, beside parameters and buffers. A whole
step is one of the bundled Llama on 4 × 128 tokens, an answer one token after 60 with a cache of keys and values.

On a CPU layers run in float32. On a GPU they run in bfloat16, at 64 to 4,096 tokens, eager and compiled, with the peak
memory of a forward and backward pass.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm.auto import tqdm

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.inject import add_adapters
from dora_lesson.adapters.linear4bit import is_four_bit
from dora_lesson.adapters.lora import LoRALinear
from dora_lesson.memory.timing import benchmark_interleaved, in_turns
from dora_lesson.memory.tracking import saved_bytes
from dora_lesson.models.load import default_device, load_base

SHAPES = [(576, 1536), (4096, 4096), (4096, 14336), (14336, 4096)]  # (d_in, d_out), the last three of an 8B Llama
DEVICE = default_device()
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class _Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.proj = layer


def peft_layer(base: nn.Module, r: int, use_dora: bool) -> Any:
    """PEFT's adapted version of `base`, as it sits in a model."""
    config = LoraConfig(r=r, lora_alpha=r, use_dora=use_dora, target_modules=["proj"])
    return get_peft_model(_Holder(base), config).base_model.model.proj  # type: ignore[arg-type]


def contestants(base: Any, r: int, bits: str = "") -> dict[str, nn.Module]:
    """One layer a method over the same frozen weight, with B ≠ 0; PEFT's LoRA is the one to compare with."""
    layers = {
        f"{bits}LoRA (PEFT)": peft_layer(base, r, use_dora=False),
        f"{bits}LoRA (ours)": LoRALinear(base, r, r),
        f"{bits}DoRA (PEFT)": peft_layer(base, r, use_dora=True),
        f"{bits}DoRA (ours)": DoRALinear(base, r, r),
    }
    for layer in layers.values():
        B = layer.lora_B if isinstance(layer, LoRALinear) else layer.lora_B["default"].weight
        nn.init.normal_(B, std=0.01)
    return {"base" + (", NF4" if bits else ""): base, **layers}


def full_size(d_in: int, d_out: int, r: int) -> dict[str, nn.Module]:
    return contestants(nn.Linear(d_in, d_out, bias=False, device=DEVICE, dtype=DTYPE).requires_grad_(False), r)


def four_bit(d_in: int, d_out: int, r: int) -> dict[str, nn.Module]:
    """Over one NF4 layer with double quantization."""
    base: Any = bnb.nn.Linear4bit(d_in, d_out, bias=False, compute_dtype=DTYPE, quant_type="nf4")
    return contestants(base.to(DEVICE).requires_grad_(False), r, "Q")


def peak_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward and backward pass takes on a GPU at its peak, beside what is there before; 0 on a CPU."""
    if not x.is_cuda:
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer(x).sum().backward()
    layer.zero_grad()
    return torch.cuda.max_memory_allocated() - before


def adapted_llamas() -> dict[str, Any]:
    """The bundled Llama with each method's adapters, this package's and PEFT's."""
    models: dict[str, Any] = {}
    for bits, quantized in (("", False), ("Q", True)):
        for name, use_dora in (("LoRA", False), ("DoRA", True)):
            config = LoraConfig(r=16, lora_alpha=16, target_modules=MODULES, use_dora=use_dora)
            base = load_base(dtype=DTYPE, four_bit=quantized)[0]
            assert any(is_four_bit(module) for module in base.modules()) == quantized
            models[f"{bits}{name} (PEFT)"] = get_peft_model(base, config)
            base = load_base(dtype=DTYPE, four_bit=quantized)[0]
            models[f"{bits}{name} (ours)"] = add_adapters(
                base, name.lower(), r=16, lora_alpha=16, target_modules=MODULES
            )
    return models


def whole_steps(models: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median seconds of a training step, the models taking turns."""
    tokens = torch.randint(1000, 20000, (4, 128), device=DEVICE)
    optimizers = {
        n: torch.optim.AdamW([p for p in m.train().parameters() if p.requires_grad]) for n, m in models.items()
    }

    def step(name: str) -> None:
        models[name](input_ids=tokens, labels=tokens).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    return in_turns([*models], step, _rounds(rounds, "steps"))


def answers(models: dict[str, Any], rounds: int, tokens: int = 16) -> dict[str, float]:
    """Median seconds of one token of an unmerged answer, the models taking turns."""
    prompt = torch.randint(1000, 20000, (1, 60), device=DEVICE)
    caches = {}
    for name, model in models.items():
        with torch.no_grad():
            caches[name] = model.eval()(input_ids=prompt, use_cache=True).past_key_values

    @torch.no_grad()
    def go_on(name: str) -> None:
        for _ in range(tokens):
            models[name](input_ids=prompt[:, :1], past_key_values=caches[name], use_cache=True)

    seconds = in_turns([*models], go_on, _rounds(rounds, "answers"))
    return {name: s / tokens for name, s in seconds.items()}


def _rounds(count: int, label: str) -> Iterable[int]:
    """One round that is not counted, and `count` that are, with a bar in a terminal."""
    return tqdm(range(count + 1), desc=label, disable=not sys.stderr.isatty())


def print_ratios(title: str, seconds: dict[str, float]) -> None:
    print(f"\n| {title} | ms | to LoRA | to PEFT's |\n| --- | --- | --- | --- |")
    for name, s in seconds.items():
        bits, source = ("Q" if name.startswith("Q") else ""), name.split()[1]
        to_lora, to_peft = s / seconds[f"{bits}LoRA {source}"], s / seconds[f"{bits}LoRA (PEFT)"]
        print(f"| {name} | {1e3 * s:.0f} | {to_lora:.2f} | {to_peft:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a shape; the medians are printed")
    many = [512, 64] if DEVICE.type == "cpu" else [64, 256, 1024, 4096]
    parser.add_argument("--tokens", type=int, nargs="+", default=many)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--only", choices=["16", "4", "models"], help="layers in full size, in 4 bits, whole models")
    compiled = parser.add_mutually_exclusive_group()
    compiled.add_argument("--compiled", action="store_true", default=DEVICE.type == "cuda", help="compiled layers, too")
    compiled.add_argument("--eager", action="store_false", dest="compiled", help="no compiled layers")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)

    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {str(DTYPE)[6:]}, medians of {arguments.rounds}\n")
    groups = [make for name, make in [("16", full_size), ("4", four_bit)] if arguments.only in (None, name)]
    if groups:
        print("| d_in → d_out | tokens | r | layer | ms | to PEFT's (Q)LoRA | saved MB | beside its, MB | peak MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = [(m, s, r, t) for m in groups for s in SHAPES for r in arguments.ranks for t in arguments.tokens]
    for make, (d_in, d_out), r, tokens in tqdm(cases, disable=not sys.stderr.isatty()):
        layers = make(d_in, d_out, r)
        reference = [*layers][1]
        x = torch.randn(1, tokens, d_in, device=DEVICE, dtype=DTYPE, requires_grad=True)
        saved = {name: saved_bytes(layer, x) for name, layer in layers.items()}
        if arguments.compiled and make is full_size:
            torch.compiler.reset()
            layers |= {f"{name}, compiled": torch.compile(layer) for name, layer in layers.items()}  # type: ignore[misc]
        seconds = benchmark_interleaved(layers, x, arguments.rounds)
        for name, layer in layers.items():
            plain = name.removesuffix(", compiled")
            ratio, extra = seconds[name] / seconds[reference], saved[plain] - saved[reference]
            print(
                f"| {d_in} → {d_out} | {tokens} | {r} | {name} | {1e3 * seconds[name]:.2f} | {ratio:.2f} "
                f"| {saved[plain] / 1e6:.2f} | {extra / 1e6:+.2f} | {peak_bytes(layer, x) / 1e6:.1f} |",
                flush=True,
            )
        del layers
        gc.collect()
    if arguments.only in (None, "models"):
        models = adapted_llamas()
        print_ratios("a step on 4 × 128 tokens", whole_steps(models, arguments.rounds))
        print_ratios("a token of an answer, unmerged", answers(models, arguments.rounds))


if __name__ == "__main__":
    main()
