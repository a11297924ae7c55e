"""Time one adapted layer, forward and backward, against PEFT's LoRA, and count what it saves for the backward pass.

`python -m tools.bench` prints a table; all layers of a shape take turns in one process, so that what the machine does
meanwhile hits them alike, and ratios to PEFT's LoRA within that run are what to compare. "Saved" is the memory of
tensors that autograd keeps from forward to backward, beside the parameters and what the layer holds anyway
(the DoRA layer holds two vectors, ‖W‖ and ‖V‖).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dora_lesson import DoRALinear

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from parity import parameters_of, peft_layer
from tools.lift import lift

SHAPES = [(576, 1536), (4096, 4096), (4096, 14336)]  # (d_in, d_out)


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd saves in one forward pass, each storage once, the layer's own tensors left out."""
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    held = [*layer.parameters(), *layer.buffers(), *(t for _, t in getattr(layer, "_kept", {}).values())]
    own = {t.untyped_storage().data_ptr() for t in held}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def contestants(d_in: int, d_out: int, r: int) -> dict[str, nn.Module]:
    """One layer a method over the same frozen weight, with B ≠ 0."""
    base = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
    plain = lift("03_dora_by_hand", "imports", "plain-layer")["PlainDoRA"]
    layers = {
        "base": base,
        "LoRA (PEFT)": peft_layer(base, r, r, use_dora=False),
        "DoRA (PEFT)": peft_layer(base, r, r),
        "DoRA (plain)": plain(base, r, r),
        "DoRA (ours)": DoRALinear(base, r, r),
    }
    for name, layer in layers.items():
        if name != "base":
            B = parameters_of(layer)["lora_B"] if "plain" not in name else layer.B
            nn.init.normal_(B, std=0.01)
    return layers


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer(x).backward(dy)
        for tensor in (x, *layer.parameters()):
            tensor.grad = None

    return run


def medians(layers: dict[str, nn.Module], x: Tensor, dy: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of a forward and backward pass over `rounds` interleaved rounds, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds + 1):
        for name, layer in layers.items():
            run = step(layer, x, dy)
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a shape; the medians are printed")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, medians of {arguments.rounds}\n")
    print("| d_in → d_out | tokens | r | layer | ms | to LoRA (PEFT) | saved MB | beside LoRA's, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = [(s, r, t) for s in SHAPES for r in arguments.ranks for t in arguments.tokens]
    for (d_in, d_out), r, tokens in tqdm(cases, disable=not sys.stderr.isatty()):
        layers = contestants(d_in, d_out, r)
        x, dy = torch.randn(1, tokens, d_in, requires_grad=True), torch.randn(1, tokens, d_out)
        seconds = medians(layers, x, dy, arguments.rounds)
        saved = {name: saved_bytes(layer, x) for name, layer in layers.items()}
        for name in layers:
            ratio = seconds[name] / seconds["LoRA (PEFT)"]
            extra = saved[name] - saved["LoRA (PEFT)"]
            print(
                f"| {d_in} → {d_out} | {tokens} | {r} | {name} | {1e3 * seconds[name]:.1f} | {ratio:.2f} "
                f"| {saved[name] / 1e6:.2f} | {extra / 1e6:+.2f} |",
                flush=True,
            )
        del layers
        gc.collect()


if __name__ == "__main__":
    main()
