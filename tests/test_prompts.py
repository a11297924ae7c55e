"""The prompts for an assistant carry the reader's own numbers."""

from __future__ import annotations

from typing import Any

import pytest

from dora_lesson import recommend
from dora_lesson.advisor.prompts import learning, prompts
from dora_lesson.advisor.skill import write_skill
from tests.test_interpret import ONE


def test_the_three_prompts_carry_the_readers_numbers() -> None:
    found = prompts(*ONE, recommend(12, "llama-3.1-8b"), items=204, task="a polite librarian", chats=333)
    assert [*found] == ["Understand the decomposition", "Configure for my case", "Compare my training runs"]
    assert [*learning()] == [*found] and all(each.startswith("You are learning to ") for each in learning().values())
    understand, configure, compare = found.values()
    assert "+0.40" in understand
    for part in (
        "12 GB",
        "a polite librarian",
        "333 chats",
        "says QDoRA, r = 16, beside QLoRA",
        "use_dora=True",
        "quality",
    ):
        assert part in configure
    assert "| task accuracy | 0.40 | 0.44 |" in compare and "204 held-out" in compare and "no interval" in compare
    typed = {name: [str(value) for value in values] for name, values in ONE[0].items()}
    options: dict[str, Any] = {"items": 204, "task": "a polite librarian", "chats": 333}
    assert prompts(typed, ONE[1], recommend(12, "llama-3.1-8b"), **options) == found  # type: ignore[arg-type]
    for asked, machine, chats in [
        (recommend(64, "llama-3.1-8b", device="cpu", examples=30), "a processor with 64 GB, training in float32", 30),
        (recommend(24, "llama-3.1-8b", trainer="fsdp", gpus=8), "8 GPUs with fsdp, each of 24 GB, training in", 607),
    ]:
        text = prompts(*ONE, asked, items=204)["Configure for my case"]
        assert f"- machine: {machine}" in text and f"on {chats} chats" in text
    nothing = prompts(*ONE, recommend(5, "llama-3.1-8b"), items=204)
    assert "none: nothing fits" in nothing["Configure for my case"]


def test_what_no_prompt_or_skill_can_be_written_from_is_refused_in_a_sentence() -> None:
    found = recommend(12, "llama-3.1-8b")
    for chats in (0, -5, "many"):
        with pytest.raises(ValueError, match=r"chats is .*, but a whole number from 1 is expected"):
            prompts(*ONE, found, items=204, chats=chats)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recommendation is a str, but what recommend"):
        prompts(*ONE, "QDoRA", items=204)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recommendation is a NoneType, but what recommend"):
        write_skill("skills", None, *ONE, items=204)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="folder is None, but the name of a folder"):
        write_skill(None, found, *ONE, items=204)  # type: ignore[arg-type]
