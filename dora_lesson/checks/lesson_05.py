"""Checks of lesson 05: a block in NF4, the bytes of QDoRA, a QDoRA run that is QLoRA, and a setting for a T4."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from dora_lesson.adapters.dora import DoRALinear
from dora_lesson.adapters.lora import LoRALinear
from dora_lesson.checks.runner import (
    Attempt,
    Wrong,
    call,
    check,
    expect,
    expect_number,
    expect_tensor,
    is_whole,
    kind,
    plain,
)
from dora_lesson.memory.estimate import estimate
from dora_lesson.memory.shapes import llama_config

ROOM = 14e9  # bytes of a T4's 15 GB that may be planned
TOKENS = 4096  # of a step, at least
LONGEST = 512  # tokens of the longest chat
ANSWERS = ("DoRA", "no magnitude", "frozen", "not in the optimizer")


# The course's own versions.


def _nf4_block(w: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().max()
    return (w[:, None] / scale - levels).abs().argmin(dim=1), scale


def _qdora_bytes(P: int, Q: int, N: int) -> float:
    weights = 2 * (P - Q) + Q / 2
    constants = Q / 64 + 4 * Q / (64 * 256)
    return weights + constants + 4 * N + 8 * N


def _why_not_dora(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    magnitudes = [p for name, p in model.named_parameters() if "magnitude" in name]
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    groups = [group for group in optimizer.param_groups if group.get("initial_lr", group["lr"]) > 0]
    stepped = {id(p) for group in groups for p in group["params"]}
    if len(magnitudes) < max(1, len(adapted)):
        return "no magnitude"
    if not all(p.requires_grad for p in magnitudes):
        return "frozen"
    return "DoRA" if all(id(p) in stepped for p in magnitudes) else "not in the optimizer"


def _t4_setting() -> dict[str, Any]:
    more = {"gradient_checkpointing": True, "gradient_accumulation_steps": 8}
    return {"batch_size": 1, "sequence_length": 512} | more


# How they are examined.


@check(_nf4_block, "the scale and all codes are those of bitsandbytes.")
def nf4_block(attempt: Attempt) -> None:
    """Check `my_nf4_block(w, levels) -> (codes, scale)`."""
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    levels = get_4bit_type("nf4", device="cpu")
    for seed in range(4):
        w = 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
        largest = int(w.abs().argmax())
        w[largest] = (-1) ** seed * w[largest].abs()  # its sign must not matter
        answer = call(attempt, w, levels)
        expect(
            isinstance(answer, tuple | list) and len(answer) == 2, "the task asks for two things: return codes, scale."
        )
        codes, scale = answer
        codes = expect_tensor(codes, (64,), codes.dtype if isinstance(codes, Tensor) else torch.long, "codes")
        if codes.is_floating_point():
            if torch.equal(codes, codes.round()):
                raise Wrong(f"the codes are {codes.dtype}, but they index the levels; make them with dtype=torch.long.")
            raise Wrong("codes are levels; return which level it is, a number from 0 to 15.")
        if isinstance(scale, Tensor) and scale.ndim:
            expect(scale.numel() == 1, f"the scale has {scale.numel()} values; a block has one.")
            raise Wrong(
                f"the scale has shape {tuple(scale.shape)}; a number without dims is expected, as .max() gives it."
            )
        scale, right = float(expect_number(scale, "the scale")), w.abs().max().item()
        expect(scale >= 0, "the scale is negative; take the largest absolute value.")
        expect(abs(scale - right) < 1e-5, f"the scale is {scale:.6f}, but max |w| is {right:.6f}.")
        packed, _ = quantize_4bit(w[None], quant_type="nf4", blocksize=64)
        expected = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
        wrong = int((codes.long() != expected).sum())
        expect(wrong == 0, f"{wrong} of 64 codes are not the nearest level's; compare w / scale with every level.")


@check(_qdora_bytes, "every part is there, in bytes.")
def qdora_bytes(attempt: Attempt) -> None:
    """Check `my_qdora_bytes(P, Q, N) -> bytes`."""
    sizes = [(8_030_261_248, 6_979_321_856, 43_319_296), (134_515_008, 106_168_320, 5_040_000)]
    for P, Q, N in sizes:
        answer = expect_number(call(attempt, P, Q, N), "the number of bytes")
        right = _qdora_bytes(P, Q, N)
        for name, slip in [
            ("in bits; divide by 8", 8 * right),
            ("as if all weights were packed; P − Q of them stay in 16 bits", right - 2 * (P - Q) + (P - Q) / 2),
            ("without the scales of the blocks", right - Q / 64 - 4 * Q / (64 * 256)),
            ("without the scales of the scales, 4 bytes for each 256 blocks", right - 4 * Q / (64 * 256)),
            ("with scales of 4 bytes; double quantization packs them into 1", right + 3 * Q / 64 - 4 * Q / (64 * 256)),
            ("without the optimizer's two states", right - 8 * N),
            ("short of 4 bytes a trained number: the adapter takes 4, and AdamW keeps two states of 4", right - 4 * N),
            ("without the adapters and their states", right - 12 * N),
            ("with adapters of 2 bytes; they are float32", right - 2 * N),
            ("with the gradients, which are gone between steps", right + 4 * N),
            ("without the weights that are not packed", right - 2 * (P - Q)),
        ]:
            expect(abs(answer - slip) > 1e-6 * right, f"for P={P:,} this is the sum {name}.")
        for unit, size in [("GB", 1e9), ("GiB", 2**30), ("MB", 1e6), ("MiB", 2**20)]:
            expect(abs(answer * size / right - 1) > 0.01, f"you return {answer:.4g}, which is {unit}; return bytes.")
        off = (answer - right) / right
        expect(
            abs(off) < 2e-5, f"for P={P:,} you return {answer / 1e9:.4f} GB, {100 * off:+.3f} % off; go part by part."
        )


@check(_why_not_dora, "three ways of not being DoRA, each told from the others.")
def why_not_dora(attempt: Attempt) -> None:
    """Check `my_why_not_dora(model, optimizer) -> str`."""
    messages = {
        "DoRA": "a run whose magnitudes train is not called DoRA; look for them in optimizer.param_groups "
        "(optimizer.state is empty before the first step).",
        "no magnitude": "LoRA layers are not recognized; compare the names that hold 'lora_A' with those that hold "
        "'magnitude', and one layer without is enough.",
        "frozen": "frozen magnitudes are not recognized; look at requires_grad, and one frozen one is enough.",
        "not in the optimizer": "magnitudes that no optimizer steps are not recognized; compare id(p) with the params "
        "of optimizer.param_groups, and leave out groups of rate 0.",
    }
    for right, model, optimizer in _runs():
        # Not `call` with the model: a snapshot of it is not needed, and the optimizer has none.
        answer = call(functools.update_wrapper(functools.partial(attempt, model, optimizer), attempt))
        expect(
            isinstance(answer, str) and answer in ANSWERS, f"you return {answer!r}; return one of {', '.join(ANSWERS)}."
        )
        expect(answer == right, f"you return {answer!r}, but {right!r} is right: {messages[right]}")


def _runs() -> list[tuple[str, nn.Module, torch.optim.Optimizer]]:
    runs: list[tuple[str, nn.Module, torch.optim.Optimizer]] = []
    for right in ANSWERS:
        kind: Any = LoRALinear if right == "no magnitude" else DoRALinear
        model: Any = nn.Sequential(kind(nn.Linear(8, 8), 2, 4), kind(nn.Linear(8, 8), 2, 4))
        if right == "frozen":
            for layer in model:
                layer.magnitude.requires_grad_(False)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        stepped = [p for name, p in trained if right != "not in the optimizer" or "lora_" in name]
        runs.append((right, model, torch.optim.AdamW(stepped)))
    # One magnitude of two, the second, is frozen, or is not stepped.
    for right in ("frozen", "not in the optimizer"):
        model = nn.Sequential(*(DoRALinear(nn.Linear(8, 8), 2, 4) for _ in range(2)))
        if right == "frozen":
            model[1].magnitude.requires_grad_(False)
        stepped = [
            p for p in model.parameters() if p.requires_grad and (right == "frozen" or p is not model[1].magnitude)
        ]
        runs.append((right, model, torch.optim.AdamW(stepped)))
    # Two groups, as those who give magnitudes a rate of their own have them.
    model = nn.Sequential(DoRALinear(nn.Linear(8, 8), 2, 4))
    groups: list[dict[str, Any]] = [{"params": [model[0].lora_A, model[0].lora_B]}]
    groups.append({"params": [model[0].magnitude], "lr": 1e-2})
    runs += [("DoRA", model, torch.optim.AdamW(groups))]
    still = [groups[0], groups[1] | {"lr": 0.0}]
    runs += [("not in the optimizer", model, torch.optim.AdamW(still))]
    mixture = nn.Sequential(DoRALinear(nn.Linear(8, 8), 2, 4), LoRALinear(nn.Linear(8, 8), 2, 4))
    runs += [("no magnitude", mixture, torch.optim.AdamW(p for p in mixture.parameters() if p.requires_grad))]
    for use_dora in (True, False):  # PEFT's names are others
        adapted = _by_peft(use_dora)
        stepped = [p for p in adapted.parameters() if p.requires_grad]
        runs += [("DoRA" if use_dora else "no magnitude", adapted, torch.optim.AdamW(stepped))]
    return runs


def _by_peft(use_dora: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    base: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    return get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"], use_dora=use_dora))


@check(_t4_setting, f"it fits in {ROOM / 1e9:.0f} GB with {TOKENS:,} tokens a step.")
def t4_setting(attempt: Attempt) -> None:
    """Check `my_t4_setting() -> dict`."""
    setting = call(attempt)
    expect(isinstance(setting, dict), f"your function returns {kind(setting)}; return a dict.")
    wanted = ("batch_size", "sequence_length", "gradient_checkpointing")
    more = "gradient_accumulation_steps"
    expect(
        set(setting) - {more} == set(wanted),
        f"its keys are {', '.join(map(str, setting))}; the task asks for {', '.join(wanted)}, and takes {more}.",
    )
    setting = dict(setting)
    passes = plain(setting.pop(more, 1))
    expect(is_whole(passes) and passes > 0, f"{more} is {passes!r}; it is a whole number from 1.")
    batch_size, length, checkpointing = (plain(setting[name]) for name in wanted)
    whole = all(is_whole(n) and n > 0 for n in (batch_size, length))
    expect(whole, "batch_size and sequence_length are whole numbers from 1.")
    expect(batch_size * length < 10**7, f"{batch_size} × {length} tokens are more than anybody holds; plan for less.")
    setting |= {"batch_size": batch_size, "sequence_length": length}
    expect(isinstance(checkpointing, bool), f"gradient_checkpointing is {checkpointing!r}; pass True or False.")
    expect(length >= LONGEST, f"sequence_length is {length}; the longest chat has {LONGEST} tokens and would be cut.")
    tokens = batch_size * length * passes
    counted = f"{batch_size} × {length}" + (f" × {passes}" if passes > 1 else "")
    expect(tokens >= TOKENS, f"a step has {counted} = {tokens:,} tokens; plan for at least {TOKENS:,}.")
    peak = estimate(llama_config("llama-3.1-8b"), "qdora", r=16, dtype=torch.float16, **setting).total
    advice = "take fewer tokens a pass, and more passes." if checkpointing else "what does gradient checkpointing save?"
    expect(peak <= ROOM, f"its peak is {peak / 1e9:.1f} GB, over the {ROOM / 1e9:.0f} GB that may be planned; {advice}")
