"""Time adapted layers and whole training steps, forward and backward, against PEFT's LoRA and QLoRA.

`python -m dora_lesson.experiments.bench` prints two tables. All layers of a row group take turns in one process, so
that what the machine does meanwhile hits them alike: compare ratios to PEFT's LoRA (QLoRA in 4 bits) of one run.
"Saved" is the memory of tensors that autograd keeps from forward to backward, beside the parameters and what the layer
holds anyway (the DoRA layer holds two vectors, ‖W‖ and ‖V‖). A whole step is one of the bundled Llama on 4 × 128
tokens.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm.auto import tqdm

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.inject import add_adapters
from dora_lesson.adapters.lora import LoRALinear
from dora_lesson.memory.timing import benchmark_interleaved
from dora_lesson.memory.tracking import saved_bytes
from dora_lesson.models.load import load_base

SHAPES = [(576, 1536), (4096, 4096), (4096, 14336)]  # (d_in, d_out)
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
    return contestants(nn.Linear(d_in, d_out, bias=False).requires_grad_(False), r)


def four_bit(d_in: int, d_out: int, r: int) -> dict[str, nn.Module]:
    """Over one NF4 layer with double quantization that multiplies in float32."""
    base: Any = bnb.nn.Linear4bit(d_in, d_out, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return contestants(base.to("cpu").requires_grad_(False), r, "Q")


def whole_steps(rounds: int) -> dict[str, float]:
    """Median seconds of a training step of the bundled Llama, the models taking turns."""
    from bitsandbytes.nn import Linear4bit

    models: dict[str, Any] = {}
    for bits, quantized in (("", False), ("Q", True)):
        for name, use_dora in (("LoRA", False), ("DoRA", True)):
            config = LoraConfig(r=16, lora_alpha=16, target_modules=MODULES, use_dora=use_dora)
            model = load_base(dtype="float32", four_bit=quantized)[0]
            assert any(isinstance(module, Linear4bit) for module in model.modules()) == quantized
            models[f"{bits}{name} (PEFT)"] = get_peft_model(model, config).train()
            model = load_base(dtype="float32", four_bit=quantized)[0]
            add_adapters(model, name.lower(), r=16, lora_alpha=16, target_modules=MODULES)
            models[f"{bits}{name} (ours)"] = model.train()
    tokens = torch.randint(1000, 20000, (4, 128))
    optimizers = {n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for n, m in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    order = [*models]
    for _ in tqdm(range(rounds + 1), desc="steps", disable=not sys.stderr.isatty()):
        for name in order:
            started = time.perf_counter()
            models[name](input_ids=tokens, labels=tokens).loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            times[name].append(time.perf_counter() - started)
        order = order[1:] + order[:1]
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a shape; the medians are printed")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--only", choices=["16", "4", "steps"], help="layers in float32, layers in 4 bits, whole steps")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, medians of {arguments.rounds}\n")
    groups = [make for name, make in [("16", full_size), ("4", four_bit)] if arguments.only in (None, name)]
    if groups:
        print("| d_in → d_out | tokens | r | layer | ms | to PEFT's (Q)LoRA | saved MB | beside its, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = [(m, s, r, t) for m in groups for s in SHAPES for r in arguments.ranks for t in arguments.tokens]
    for make, (d_in, d_out), r, tokens in tqdm(cases, disable=not sys.stderr.isatty()):
        layers = make(d_in, d_out, r)
        reference = [*layers][1]
        x = torch.randn(1, tokens, d_in, requires_grad=True)
        seconds = benchmark_interleaved(layers, x, arguments.rounds)
        saved = {name: saved_bytes(layer, x) for name, layer in layers.items()}
        for name in layers:
            ratio, extra = seconds[name] / seconds[reference], saved[name] - saved[reference]
            print(
                f"| {d_in} → {d_out} | {tokens} | {r} | {name} | {1e3 * seconds[name]:.1f} | {ratio:.2f} "
                f"| {saved[name] / 1e6:.2f} | {extra / 1e6:+.2f} |",
                flush=True,
            )
        del layers
        gc.collect()
    if arguments.only in (None, "steps"):
        steps = whole_steps(arguments.rounds)
        print("\n| a step on 4 × 128 tokens | s | to LoRA | to PEFT's |\n| --- | --- | --- | --- |")
        for name, s in steps.items():
            bits, source = ("Q" if name.startswith("Q") else ""), name.split()[1]
            to_lora, to_peft = s / steps[f"{bits}LoRA {source}"], s / steps[f"{bits}LoRA (PEFT)"]
            print(f"| {name} | {s:.2f} | {to_lora:.2f} | {to_peft:.2f} |")


if __name__ == "__main__":
    main()
