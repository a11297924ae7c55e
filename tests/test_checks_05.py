"""Lesson 05's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dora_lesson import checks

# A block in NF4.


def by_loop(w, levels):
    scale = max(abs(float(x)) for x in w)
    codes = [min(range(16), key=lambda i: abs(float(x) / scale - float(levels[i]))) for x in w]
    return torch.tensor(codes), scale


def as_a_list(w, levels):
    scale = np.abs(w.numpy()).max()
    return [torch.tensor(np.abs(w.numpy()[:, None] / scale - levels.numpy()).argmin(axis=1)), scale]


def by_thresholds(w, levels):
    scale = w.abs().amax()
    return torch.bucketize(w / scale, (levels[1:] + levels[:-1]) / 2), scale


@pytest.mark.parametrize("attempt", [
    by_loop,
    as_a_list,
    by_thresholds,
    lambda w, levels: ((w / w.abs().max()).unsqueeze(0).sub(levels.unsqueeze(1)).abs().argmin(0), w.abs().max()),
    lambda w, levels: (torch.cdist((w / w.abs().max())[:, None], levels[:, None]).argmin(1).byte(), w.abs().max()),
])  # fmt: skip
def test_a_right_block_is_accepted(attempt, capsys):
    assert checks.nf4_block(attempt) is attempt, capsys.readouterr().out


def nearest(x, levels):
    return (x[:, None] - levels).abs().argmin(dim=1)


@pytest.mark.parametrize(("attempt", "words"), [
    (lambda w, levels: (nearest(w, levels), w.abs().max()), "compare w / scale"),
    (lambda w, levels: (nearest(w / w.max(), levels), w.max()), "max |w| is"),
    (lambda w, levels: (nearest(w / w.std(), levels), w.std()), "max |w| is"),
    (lambda w, levels: (nearest(w / w.min(), levels), w.min()), "negative"),
    (lambda w, levels: (levels[nearest(w / w.abs().max(), levels)], w.abs().max()), "which level it is"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels).float(), w.abs().max()), "make them with dtype=torch.long"),
    (lambda w, levels: (((w / w.abs().max() + 1) * 7.5).round().long(), w.abs().max()), "nearest level"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels), w.abs()), "a block has one"),
    (lambda w, levels: ((w[:, None] / w.abs().max() - levels).abs().argmin(dim=0), w.abs().max()), "(64,) is expected"),
    (lambda w, levels: nearest(w / w.abs().max(), levels), "return codes, scale"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels), float("nan")), "the scale is nan, but a finite number"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels), w.abs().max()[None]), "without dims is expected"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels), "large"), "the scale is a str"),
    (lambda w, levels: (nearest(w / w.abs().max(), levels), 0.0), "the scale is 0.000000, but max |w| is"),
    (lambda w, levels: (nearest(w.div_(w.abs().max()), levels), 1.0), "in place"),
])  # fmt: skip
def test_a_wrong_block_is_named(attempt, words, capsys):
    assert checks.nf4_block(attempt) is not attempt
    assert words in capsys.readouterr().out


# The bytes of QDoRA.


@pytest.mark.parametrize("attempt", [
    lambda P, Q, N: 2 * (P - Q) + Q / 2 + Q / 64 + Q / 4096 + 12 * N,
    lambda P, Q, N: int(2 * (P - Q) + 4.127 * Q / 8 + 12 * N),
    lambda P, Q, N: np.int64(right_bytes(P, Q, N)),
    lambda P, Q, N: torch.tensor(right_bytes(P, Q, N), dtype=torch.float64),
    lambda P, Q, N: 2 * (P - Q) + Q // 2 + -(-Q // 64) + 4 * -(-Q // 16384) + 12 * N,
])  # fmt: skip
def test_right_bytes_are_accepted(attempt, capsys):
    assert checks.qdora_bytes(attempt) is attempt, capsys.readouterr().out


def right_bytes(P, Q, N):
    return 2 * (P - Q) + Q / 2 + Q / 64 + Q / 4096 + 12 * N


@pytest.mark.parametrize(("attempt", "words"), [
    (lambda P, Q, N: P / 2 + Q / 64 + Q / 4096 + 12 * N, "stay in 16 bits"),
    (lambda P, Q, N: right_bytes(P, Q, N) * 8, "in bits"),
    (lambda P, Q, N: 2 * (P - Q) + Q / 2 + 12 * N, "without the scales of the blocks"),
    (lambda P, Q, N: 2 * (P - Q) + Q / 2 + Q / 64 + 12 * N, "without the scales of the scales"),
    (lambda P, Q, N: right_bytes(P, Q, N) / 1e9, "which is GB; return bytes"),
    (lambda P, Q, N: right_bytes(P, Q, N) / 2**30, "which is GiB; return bytes"),
    (lambda P, Q, N: 2 * (P - Q) + Q / 2 + 4 * Q / 64 + 12 * N, "scales of 4 bytes"),
    (lambda P, Q, N: right_bytes(P, Q, N) - 8 * N, "optimizer's two states"),
    (lambda P, Q, N: right_bytes(P, Q, N) - 4 * N, "AdamW keeps two"),
    (lambda P, Q, N: right_bytes(P, Q, N) - 2 * N, "adapters of 2 bytes"),
    (lambda P, Q, N: right_bytes(P, Q, N) + 4 * N, "gradients"),
    (lambda P, Q, N: Q / 2 + Q / 64 + Q / 4096 + 12 * N, "not packed"),
    (lambda P, Q, N: 2 * P + 12 * N, "part by part"),
    (lambda P, Q, N: right_bytes(P, Q, N) - 12 * N, "without the adapters and their states"),
    (lambda P, Q, N: right_bytes(P, Q, N) - 3 * Q / (64 * 256), "go part by part"),
    (lambda P, Q, N: right_bytes(P, Q, N) + 4 * Q / (64 * 256), "go part by part"),
    (lambda P, Q, N: f"{P / 2}", "the number of bytes"),
    (lambda P, Q, N: float("nan"), "a finite number is expected"),
])  # fmt: skip
def test_wrong_bytes_are_named(attempt, words, capsys):
    assert checks.qdora_bytes(attempt) is not attempt
    assert words in capsys.readouterr().out


# Why a run is LoRA.


def by_identity(model, optimizer, held=lambda name: "magnitude" in name, alive=lambda group: group["lr"] != 0):
    stepped = [p for group in optimizer.param_groups if alive(group) for p in group["params"]]
    found = [p for name, p in model.named_parameters() if held(name)]
    adapted = sum("lora_A" in name for name, _ in model.named_parameters())
    if len(found) == 0 or len(found) != adapted:
        return "no magnitude"
    if any(not p.requires_grad for p in found):
        return "frozen"
    if any(all(p is not q for q in stepped) for p in found):
        return "not in the optimizer"
    return "DoRA"


def test_a_right_diagnosis_is_accepted(capsys):
    assert checks.why_not_dora(by_identity) is by_identity, capsys.readouterr().out


def by_flag(model, optimizer):
    found = [p for name, p in model.named_parameters() if "magnitude" in name]
    return "DoRA" if found and all(p.requires_grad for p in found) else "no magnitude"


def by_first_group(model, optimizer):
    stepped = {id(p) for p in optimizer.param_groups[0]["params"]}
    found = [p for name, p in model.named_parameters() if "magnitude" in name]
    if not found:
        return "no magnitude"
    if not all(p.requires_grad for p in found):
        return "frozen"
    return "DoRA" if all(id(p) in stepped for p in found) else "not in the optimizer"


def optimizer_first(model, optimizer):
    """Looks at the optimizer before the flag: a frozen magnitude is in neither."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = [p for name, p in model.named_parameters() if "magnitude" in name]
    return "DoRA" if found and all(id(p) in stepped for p in found) else "not in the optimizer"


def by_any(model, optimizer, frozen=all, stepped=all):
    """Where one quantifier is the wrong one."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = [p for name, p in model.named_parameters() if "magnitude" in name]
    if not found:
        return "no magnitude"
    if not frozen(p.requires_grad for p in found):
        return "frozen"
    return "DoRA" if stepped(id(p) in held for p in found) else "not in the optimizer"


def by_count(model, optimizer):
    """Compares how many numbers train with how many the optimizer steps."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stepped = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    if not any("magnitude" in name for name, _ in model.named_parameters()):
        return "no magnitude"
    return "DoRA" if trained == stepped else "not in the optimizer"


def by_state(model, optimizer):
    found = [p for name, p in model.named_parameters() if "magnitude" in name]
    if len(found) != sum("lora_A" in name for name, _ in model.named_parameters()):
        return "no magnitude"
    if not all(p.requires_grad for p in found):
        return "frozen"
    return "DoRA" if all(p in optimizer.state for p in found) else "not in the optimizer"


@pytest.mark.parametrize(("attempt", "words"), [
    (lambda model, optimizer: by_any(model, optimizer, frozen=any), "one frozen one is enough"),
    (lambda model, optimizer: by_any(model, optimizer, stepped=any), "compare id(p) with the params"),
    (lambda model, optimizer: by_any(model, optimizer), "leave out groups of rate 0"),
    (lambda model, optimizer: by_identity(model, optimizer, alive=bool), "leave out groups of rate 0"),
    (lambda model, optimizer: by_identity(model, optimizer, lambda name: name.endswith(".magnitude")), "called DoRA"),
    (by_count, "'frozen' is right"),
    (by_state, "empty before the first step"),
    (by_flag, "frozen magnitudes are not recognized"),
    (by_first_group, "is not called DoRA"),
    (optimizer_first, "'no magnitude' is right"),
    (lambda model, optimizer: "DoRA", "LoRA layers are not recognized"),
    (lambda model, optimizer: True, "return one of DoRA"),
    (lambda model, optimizer: np.array(["DoRA", "frozen"]), "return one of DoRA"),
    (lambda model, optimizer: [p for p in model.parameters() if p in optimizer.param_groups[0]["params"]], "raised"),
])  # fmt: skip
def test_a_wrong_diagnosis_is_named(attempt, words, capsys):
    assert checks.why_not_dora(attempt) is not attempt
    assert words in capsys.readouterr().out


# A setting for a T4.


def setting(batch_size, sequence_length, gradient_checkpointing=True, **more):
    chosen = {"batch_size": batch_size, "sequence_length": sequence_length}
    return lambda: chosen | {"gradient_checkpointing": gradient_checkpointing} | more


@pytest.mark.parametrize(
    "attempt",
    [
        setting(8, 512),
        setting(4, 1024),
        setting(2, 2048),
        setting(7, 600),
        setting(8, 512, np.True_),
        setting(1, 512, gradient_accumulation_steps=8),
        setting(np.int64(8), np.int64(512)),
    ],
)
def test_a_right_setting_is_accepted(attempt, capsys):
    assert checks.t4_setting(attempt) is attempt, capsys.readouterr().out


@pytest.mark.parametrize(("attempt", "words"), [
    (setting(8, 512, False), "gradient checkpointing save"),
    (setting(16, 512), "over the 14 GB that may be planned; take fewer"),
    (setting(16, 256), "would be cut"),
    (setting(1, 512, False), "at least 4,096"),
    (setting(0, 512), "whole numbers"),
    (setting(True, 4096), "whole numbers"),
    (setting(8, 512.5), "whole numbers"),
    (setting(8, 512, "no"), "gradient_checkpointing is 'no'; pass True or False"),
    (lambda: {0: 1, "batch_size": 2}, "its keys are 0, batch_size"),
    (setting(8, 512, r=16), "its keys are"),
    (setting(1, 512, gradient_accumulation_steps=4), "1 × 512 × 4 = 2,048 tokens"),
    (setting(1, 512, gradient_accumulation_steps=0), "a whole number from 1"),
    (lambda: (8, 512, True), "return a dict"),
])  # fmt: skip
def test_a_wrong_setting_is_named(attempt, words, capsys):
    assert checks.t4_setting(attempt) is not attempt
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nf4_block", "qdora_bytes", "why_not_dora", "t4_setting"])
def test_the_courses_own_version_passes_its_own_check(name, capsys):
    from dora_lesson.checks import lesson_05

    reference = getattr(lesson_05, f"_{name}")
    assert getattr(checks, name)(reference) is reference, capsys.readouterr().out
    assert capsys.readouterr().out.startswith("correct: ")
