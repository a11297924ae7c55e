"""The capstone's checklist: what a program can see of a reader's own persona, from the chats to the served model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHATS, HELD_OUT = 30, 10  # how many are wanted, and how many of them, the last, are kept for scoring


@dataclass(frozen=True)
class Box:
    """One line of the checklist: what is asked for, whether it is there, and what was seen."""

    asked: str
    ticked: bool
    seen: str

    def __str__(self) -> str:
        return f"[{'x' if self.ticked else ' '}] {self.asked}: {self.seen}"


def capstone_boxes(chats: Sequence[dict[str, Any]], folder: Path | str) -> list[Box]:
    """The checklist for these chats and for what training left in `folder`: `scores.json`, `adapter/` and `merged/`."""
    folder = Path(folder)
    scores = _scores(folder / "scores.json")
    requests = {" ".join(chat["messages"][1]["content"].lower().split()) for chat in chats}
    ours = sum("taskmaster" in "".join(chat["messages"][0]["content"].lower().split()) for chat in chats)
    start, tuned, served = (scores.get(name) for name in ("start", "tuned", "served"))
    better = start is not None and tuned is not None and tuned > start
    kept = tuned is not None and served is not None and abs(served - tuned) <= 1 / HELD_OUT + 1e-9  # scores are rounded
    merged = (folder / "merged" / "config.json").is_file()
    return [
        Box("a persona of your own", bool(chats) and not ours, f"TaskMaster is named in {ours} chats"),
        Box(f"{CHATS} chats in the form of the set", len(chats) >= CHATS, f"{len(chats)} so far"),
        Box("no request twice", len(requests) == len(chats), f"{len(requests)} different ones"),
        Box("scored before training", start is not None, _points(start)),
        Box("trained, and the adapter saved", (folder / "adapter" / "adapter_config.json").is_file(), "in adapter/"),
        Box(f"better on the {HELD_OUT} kept aside", better, _points(tuned)),
        Box("merged, saved, and as good when loaded again", kept and merged, _points(served)),
    ]


def _scores(file: Path) -> dict[str, float]:
    """The shares of the rubric in a file of scores, where there is one that can be read."""
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
        return {name: share for name, share in scores.items() if isinstance(share, int | float) and 0 <= share <= 1}
    except (OSError, ValueError, AttributeError):
        return {}


def _points(score: float | None) -> str:
    return "no score yet" if score is None else f"{score:.0%} of the rubric"
