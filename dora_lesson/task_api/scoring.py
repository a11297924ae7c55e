"""How good a reply to an item of the Task API set is: task accuracy, and persona consistency by a rubric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from dora_lesson.core import DATA
from dora_lesson.task_api.calls import Call, call_lines, find_call, reply_lines, validate_call
from dora_lesson.task_api.dataset import CATEGORIES, Item

_WORDS = json.loads((DATA / "task_api" / "words.json").read_text(encoding="utf-8"))
STOP_WORDS, FILLERS, BANNED = frozenset(_WORDS["stop"]), frozenset(_WORDS["fillers"]), _WORDS["banned"]

# Task accuracy.


def normalize(call: Call) -> Call:
    """A call in the form in which calls are compared.

    Texts lose case and outer spaces. Titles and queries are compared as sets of words, without punctuation and
    without the stop words. The order of keys does not count, nor whether a task's number is written as text. A field
    that is null is left out, but in an update, where null removes a value.
    """
    normal: Call = {}
    for key, value in call.items():
        if value is None and call.get("action") != "update":
            continue
        if key in ("title", "query"):
            normal[key] = frozenset(content_words(str(value)))
        elif key == "task" and re.fullmatch(r"#?\s*\d+", str(value).strip()):
            normal[key] = int(str(value).strip().lstrip("# "))
        else:
            normal[key] = str(value).strip().lower() if value is not None else None
    return normal


def content_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and stop words."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))
    return [word for word in (word.removesuffix("'s") for word in words) if word not in STOP_WORDS]


def is_right(reply: str, item: Item) -> bool:
    """Whether the reply's call is valid and equals the reference after `normalize`."""
    call, reference = find_call(reply), find_call(item["messages"][2]["content"])
    assert reference is not None
    return call is not None and normalize(call) == normalize(reference)


# Persona consistency: five rules of two points each.

_DONE, _REFUSAL, _OFFER = (re.compile(_WORDS[name]) for name in ("done", "refusal", "offer"))


def persona_points(reply: str, item: Item) -> dict[str, int]:
    """Points from 0 to 2 for each rule of the persona; their sum, 0 to 10, is the reply's persona consistency.

    - acknowledge: 2 if the text takes up a word of the request or of the task that the request is about, 1 if only a
      word of another open task.
    - deliver: 1 for exactly one valid call, on a line of its own and of a task that exists, 1 if the text names what
      the call acts on. For a list that is a task of the list, or that there is none; a call of none may not claim
      that something was done.
    - propose: 2 if the last sentence asks or offers something about the matter at hand, 1 if about anything.
    - vocabulary: 2, less 1 for each kind of lapse: a banned phrase, an exclamation mark, more than 60 words or four
      sentences, or three words in a row that come twice.
    - boundaries: 2 where the reply acts if the reference acts and holds back if it holds back; a refusal of a request
      that can be met, or action where none was called for, gives 0.

    A reply with fewer than four words of text gets no points for vocabulary and boundaries.
    """
    system, user, reference = (message["content"] for message in item["messages"])
    call, expected = find_call(reply), find_call(reference)
    assert expected is not None
    text = " ".join(line for line in reply_lines(reply) if not line.lstrip().startswith("{")).strip()
    low = text.lower().replace("\u2019", "'")
    stems = _stems(text)
    sentences = [s for s in re.split(r"(?<=[.?])\s+|;\s+", text) if s]
    # An offer claims nothing: "shall I move it?" has moved nothing.
    claims = " ".join(s for s in sentences if not s.endswith("?")).lower().replace("\u2019", "'")
    tasks = dict(re.findall(r"^(\d+)\. (.+?)(?: \(.*\))?$", system, flags=re.M))
    matter = _stems(user) | _stems(_subject(expected, tasks))
    every = matter | {stem for title in tasks.values() for stem in _stems(title)}
    points = {"acknowledge": int(bool(stems & every)) + int(bool(stems & matter) or not matter)}
    lines = call_lines(reply)
    valid = len(lines) == 1 and call is not None and validate_call(call) is None
    valid = valid and ("task" not in call or str(call["task"]) in tasks)  # type: ignore[operator, index]
    points["deliver"] = int(valid) + int(call is not None and _delivers(call, claims, low, stems & every, tasks))
    last = sentences[-1].lower() if sentences else ""
    offers = last.endswith("?") or bool(_OFFER.match(last))
    about = stems & (every if expected["action"] in ("list", "none") else matter)
    points["propose"] = (1 + bool(about or not tasks)) if offers else 0
    words = len(text.split())
    threes = list(zip(low.split(), low.split()[1:], low.split()[2:], strict=False))
    lapses = any(phrase in low for phrase in BANNED) + ("!" in text) + (len(threes) > len(set(threes)))
    lapses += words > 60 or len(sentences) > 4
    points["vocabulary"] = max(0, 2 - lapses) if words >= 4 else 0
    acts = call is not None and call.get("action") != "none"
    held_back, refused = not acts and not _DONE.search(claims), bool(_REFUSAL.search(claims))
    holds = held_back if expected["action"] == "none" else acts and not refused
    points["boundaries"] = 2 if holds and words >= 4 else 0
    return points


def _delivers(call: Call, claims: str, low: str, stems: set[str], tasks: dict[str, str]) -> bool:
    if call.get("action") == "none":
        return bool(stems or not tasks) and not _DONE.search(claims)
    if call.get("action") == "list":
        named = any(stems & _stems(title) for title in tasks.values())
        return named or bool(re.search(r"\b(nothing|empty|none|clear|no tasks)\b", low))
    return bool(stems & _stems(_subject(call, tasks)))


def _subject(call: Call, tasks: dict[str, str]) -> str:
    """What a call is about, in words: a title, a query, or the title of the task that it names."""
    task = tasks.get(str(call.get("task")), "")
    return " ".join(str(part) for part in (call.get("title"), call.get("query"), task) if part)


def _stems(text: str) -> set[str]:
    """Content words without endings, cut to five letters, so that mow and mowing, invoice and invoices agree."""
    words = [word for word in content_words(text) if word not in FILLERS]
    return {re.sub(r"(ing|ed|es|s|e)$", "", word)[:5] if len(word) > 3 else word for word in words}


@dataclass(repr=False)
class Scores:
    """What `score` found. The lists run over the items, in order, so that two models can be compared item by item."""

    right: list[bool]
    persona: list[int]
    categories: list[str]

    @property
    def task_accuracy(self) -> float:
        """Share of items whose call equals the reference, 0 to 1."""
        return sum(self.right) / len(self.right)

    @property
    def persona_consistency(self) -> float:
        """Mean points of the rubric, 0 to 10."""
        return sum(self.persona) / len(self.persona)

    def table(self) -> list[tuple[str, int, float, float]]:
        """One row a category, in the set's order: name, items, task accuracy, persona consistency."""
        by_name = {name: [i for i, other in enumerate(self.categories) if other == name] for name in CATEGORIES}
        return [
            (name, len(items), fmean(self.right[i] for i in items), fmean(self.persona[i] for i in items))
            for name, items in by_name.items()
            if items
        ]

    def __repr__(self) -> str:
        rows = [*self.table(), ("all", len(self.right), self.task_accuracy, self.persona_consistency)]
        lines = [f"{name:11} {n:5} {accuracy:9.0%} {persona:12.1f}" for name, n, accuracy, persona in rows]
        return "\n".join([f"{'category':11} items  accuracy  persona 0-10", *lines])


def score(replies: Sequence[str], items: Iterable[Item]) -> Scores:
    """Task accuracy and persona consistency of replies to items.

    Raises:
        ValueError: there are not as many replies as items, or none.
    """
    items = list(items)
    if len(replies) != len(items) or not items:
        raise ValueError(f"There are {len(replies)} replies for {len(items)} items: pass one reply an item.")
    return Scores(
        [is_right(reply, item) for reply, item in zip(replies, items, strict=True)],
        [sum(persona_points(reply, item).values()) for reply, item in zip(replies, items, strict=True)],
        [item["category"] for item in items],
    )
