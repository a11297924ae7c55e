"""The check of lesson 00: a first exercise, small on purpose."""

from __future__ import annotations

from dora_lesson.checks.runner import Attempt, Wrong, call, check, expect, expect_number


def _scaling(lora_alpha: float, r: int) -> float:
    return lora_alpha / r


@check(_scaling, "lora_alpha / r, the scaling that PEFT and this course use.")
def scaling(attempt: Attempt) -> None:
    """Check `my_scaling(lora_alpha, r) -> lora_alpha / r`."""
    for lora_alpha, r in [(16, 8), (8, 32), (3.0, 4), (10, 4)]:
        value = expect_number(call(attempt, lora_alpha, r), "what you return")
        slips = [
            (r / lora_alpha, "it is upside down, r / lora_alpha; divide lora_alpha by r."),
            (lora_alpha, "it is lora_alpha itself; divide it by r."),
            (lora_alpha * r, "it multiplies; divide lora_alpha by r."),
            (lora_alpha // r, "it rounds down to a whole number; use / and not //."),
            (lora_alpha / r**0.5, "it divides by the square root of r, which is rsLoRA's scaling; divide by r."),
        ]
        if value != lora_alpha / r:
            for slip, message in slips:
                expect(value != slip, message)
            raise Wrong(
                f"for lora_alpha = {lora_alpha} and r = {r} you return {value}, but {lora_alpha / r} is right; "
                "look at the formula in the text above."
            )
