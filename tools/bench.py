"""Time one adapted layer, forward and backward, against PEFT's LoRA, and count what it saves for the backward pass.

`python -m tools.bench` prints a table; all layers of a shape take turns in one process, so that what the machine does
meanwhile hits them alike, and ratios to PEFT's LoRA within that run are what to compare. "Saved" is the memory of
tensors that autograd keeps from forward to backward, beside the parameters and what the layer holds anyway
(the DoRA layer holds two vectors, ‖W‖ and ‖V‖).
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings

import torch
from torch import nn
from tqdm.auto import tqdm

from dora_lesson import DoRALinear, saved_bytes
from dora_lesson.evidence import time_in_turns
from tests.parity import parameters_of, peft_layer
from tools.lift import lift

SHAPES = [(576, 1536), (4096, 4096), (4096, 14336)]  # (d_in, d_out)


def contestants(d_in: int, d_out: int, r: int) -> dict[str, nn.Module]:
    """One layer a method over the same frozen weight, with B ≠ 0."""
    base = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
    plain = lift("03_dora_by_hand", "plain-layer")["PlainDoRA"]
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
        x = torch.randn(1, tokens, d_in, requires_grad=True)
        seconds = time_in_turns(layers, x, arguments.rounds)
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
