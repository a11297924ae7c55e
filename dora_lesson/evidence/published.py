"""Published figures, each with its source: what a lesson quotes, it reads from here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dora_lesson.core import DATA

# "abstract": of that paper only the abstract was read. "thread": somebody reported it in public.
STATUSES = ("paper", "abstract", "thread", "repository", "documentation", "record", "computed", "measured")
_OURS = ("computed", "measured")  # by this course, so without an address


def load_published(path: str) -> Any:
    """The published figures of one subject, or what stands at a path in them, such as "commonsense/LLaMA-7B/LoRA".

    A subject is a file of `data/published`: a dict of entries, nested as in the source's table. `about` says what the
    figures are, with their unit. A `source` (`where`, `url`, `status`) holds for all beside and below it, up to an
    entry with a source of its own.

    Raises:
        ValueError: no such subject or entry (the message names those that there are), a broken file, or a figure
            without a full source.
    """
    name, *steps = str(path).split("/")
    entry = _load(name)
    for step in steps:
        entries = dict(enumerate(entry)) if isinstance(entry, list) else entry if isinstance(entry, dict) else {}
        by_name = {str(key): value for key, value in entries.items()}
        if step not in by_name:
            names = ", ".join(by_name) or "none"
            raise ValueError(f"{path!r} has no entry {step!r}; the entries there are: {names}.")
        entry = by_name[step]
    return entry


def _load(name: str) -> Any:
    file = DATA / "published" / f"{name}.json"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in file.parent.glob("*.json"))) or "none"
        raise ValueError(f"There are no published figures {name!r}; the subjects are: {names}.")
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} is not valid JSON ({error}).") from None
    for problem in _unsourced(figures, name, None):
        raise ValueError(problem)
    return figures


def _unsourced(entries: dict[str, Any], path: str, source: Any) -> Iterator[str]:
    source = entries.get("source", source)
    for key, value in entries.items():
        if key in ("about", "source"):
            continue
        if isinstance(value, dict):
            yield from _unsourced(value, f"{path}/{key}", source)
        elif fault := _fault(source):
            yield f"{path}/{key} has {fault}: give its source as where, url and status."


def _fault(source: Any) -> str:
    """What is wrong with a source, in a few words; empty if nothing."""
    if not isinstance(source, dict):
        return "no source"
    if source.get("status") not in STATUSES:
        return f"a source of status {source.get('status')!r}, where one of {', '.join(STATUSES)} was expected"
    needed = ["where"] if source["status"] in _OURS else ["where", "url"]
    return next((f"a source without {key!r}" for key in needed if not source.get(key)), "")
