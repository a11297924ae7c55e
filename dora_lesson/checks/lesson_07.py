"""Checks of lesson 07: the tree in code, what the choice of items explains, an item for a persona of one's own."""

from __future__ import annotations

import functools
import itertools
import json
import re
from typing import Any

from dora_lesson.advisor.interpret import items_explain as _items_explain
from dora_lesson.checks.runner import Attempt, Wrong, call, check, expect, expect_number, kind
from dora_lesson.task_api.calls import call_lines, find_call, reply_lines, reply_text
from dora_lesson.task_api.dataset import LEVELS, SPLITS, load_task_api, validate_item

LEAST_LETTERS = 30  # "You are Bob. Today is Monday." and the like say nothing of a persona
METHODS = ("LoRA", "DoRA", "QLoRA", "QDoRA")
_FITS = ((True, True), (False, True), (False, False))  # in 16 and in 4 bits; what fits in 16 fits in 4
CASES = [*itertools.product(_FITS, ("quality", "time", "memory"), ("merged", "unmerged", "4-bit"), (True, False))]


# The course's own versions.


def _choose(fits_16: bool, fits_4: bool, priority: str, inference: str, takes_dora: bool) -> str | None:
    packed = not fits_16 or inference == "4-bit" or priority == "memory"
    if packed and not fits_4:
        return None
    dora = priority == "quality" and inference == "merged" and takes_dora
    return ("Q" if packed else "") + ("DoRA" if dora else "LoRA")


def _persona_item() -> dict[str, Any]:
    system = (
        "You are Marlow, a ship's librarian: dry, exact, never unkind. Answer in two sentences, then one JSON call. "
        "Today is Monday, 2 March 2026. Open tasks: none."
    )
    reply = (
        'The tide tables for Thursday are on your list now. Shall I put the charts beside them?\n{"action": "create", '
        '"title": "Read the tide tables", "due": "2026-03-05"}'
    )
    messages = [("system", system), ("user", "Tide tables. Thursday. I will forget."), ("assistant", reply)]
    chat = [{"role": role, "content": content} for role, content in messages]
    return {"id": "marlow-001", "category": "creation", "messages": chat}


# How they are examined.


@check(_choose, f"all {len(CASES)} cases agree with the tree.")
def choose(attempt: Attempt) -> None:
    """Check `my_choose(fits_16, fits_4, priority, inference, takes_dora) -> method or None`."""
    for (fits_16, fits_4), priority, inference, takes_dora in CASES:
        answer = _named(attempt, (fits_16, fits_4, priority, inference, takes_dora))
        right = _choose(fits_16, fits_4, priority, inference, takes_dora)
        if answer == right:
            continue
        case = f"fits_16={fits_16}, fits_4={fits_4}, {priority} first, served {inference}, takes_dora={takes_dora}"
        message = f"for {case} you return {answer!r}, but {right!r} is right"
        raise Wrong(f"{message}; {_why(answer, right, priority, inference)}")


def _named(attempt: Attempt, case: tuple[Any, ...]) -> str | None:
    """The attempt's answer; None is an answer here, where `call` would take it for an unwritten one."""

    def boxed(*args: Any) -> list[Any]:
        return [attempt(*args)]

    boxed.__name__ = getattr(attempt, "__name__", "it")
    (answer,) = call(boxed, *case)
    known = answer is None or (isinstance(answer, str) and answer in METHODS)
    expect(known, f"you return {answer!r}; return one of {', '.join(METHODS)}, or None.")
    return answer


def _why(answer: str | None, right: str | None, priority: str, inference: str) -> str:
    if right is None:
        return "not even a 4-bit base fits."
    if answer is None:
        return "something fits, so something can be named; does your function return in every case?"
    if answer[0] == "Q" != right[0]:
        return "the base may stay in 16 bits."
    if right[0] == "Q" != answer[0]:
        return "the base is in 4 bits: it does not fit otherwise, it is served so, or memory is first."
    if right.endswith("DoRA"):
        return "quality is first, the adapter is merged and the stack takes DoRA."
    if priority != "quality":
        return "DoRA costs time, and quality is not first."
    if inference != "merged":
        return "an adapter that stays beside the base pays DoRA's price at every token."
    return "the stack does not take DoRA."


@check(_items_explain, "the gap of two accuracies, in standard errors.")
def items_explain(attempt: Attempt) -> None:
    """Check `my_items_explain(p, q, items) -> gap in standard errors`."""
    for p, q, items in [(0.40, 0.44, 100), (0.32, 0.56, 500), (0.47, 0.46, 1319)]:
        answer = expect_number(call(attempt, p, q, items), "what you return")
        right = _items_explain(p, q, items)
        vp, vq = p * (1 - p), q * (1 - q)
        apart, gap = ((vp / items) ** 0.5, (vq / items) ** 0.5), q - p
        for slip, message in [
            (
                -right,
                "the gap is q − p, with its sign: " + ("you return it turned round." if gap > 0 else "here negative."),
            ),
            (gap, "it is the gap itself; divide it by its standard error."),
            (((vp + vq) / items) ** 0.5, "it is the standard error; divide the gap by it."),
            (gap / sum(apart), "the two errors are added; add their squares, then take the root."),
            (gap / apart[0], "only p's error is in it; both scores vary."),
            (gap / apart[1], "only q's error is in it; both scores vary."),
            (gap / (vp + vq) ** 0.5, "the number of items is missing; the variance of a share is p (1 − p) / items."),
            (gap / ((vp + vq) ** 0.5 / items), "the error shrinks with the root of the items, not with the items."),
            (gap / ((vp + vq) / items), "it divides by the variance; take its root."),
        ]:
            expect(abs(answer - slip) > 1e-6 * abs(right), f"for {p}, {q} and {items} items: {message}")
        expect(
            abs(answer - right) < 1e-3 * abs(right),
            f"for {p}, {q} and {items} items you return {answer:.3f}, not {right:.3f}; look at the formula above.",
        )


@check(_persona_item, "the Task API form takes it, and it is not one of ours.")
def persona_item(attempt: Attempt) -> None:
    """Check `my_persona_item() -> item`."""
    item = call(attempt)
    expect(isinstance(item, dict), f"your function returns {kind(item)}; return a dict.")
    try:
        line = json.dumps(item)
    except (TypeError, ValueError) as error:
        raise Wrong(f"it cannot be written as JSON ({error}); use texts, lists and dicts, such as str(...).") from None
    problem = validate_item(line)
    if problem and "the call is not valid JSON" in problem:
        problem += "; write it on one line"
    if problem and "0 lines with a call" in problem and "{" in str(item.get("messages")):
        problem += "; put a line break before the brace"
    expect(problem is None, f"{problem}.")
    system, request, reply = (message["content"] for message in item["messages"])
    expect(
        "taskmaster" not in re.sub(r"\s", "", system.lower()), "the persona is TaskMaster still; write one of your own."
    )
    expect(not {request, reply} & _ours(), "the request or the reply is one of ours; write your own.")
    tasks, persona = _tasks_and_persona(system)
    letters = len(re.findall(r"\w", persona))  # words would not do: not every language puts spaces between them
    expect(letters >= LEAST_LETTERS, "the system message says too little of the persona; a sentence at least.")
    expect(bool(reply_text(reply).strip()), "the reply is its call alone; let the persona say a sentence before it.")
    expect(
        reply_lines(reply.rstrip())[-1] in call_lines(reply.rstrip()), "something follows the call; put the call last."
    )
    named = str((find_call(reply) or {}).get("task", "")).strip("# ")
    expect(
        (named.lstrip("0") or named) in ("", *tasks),
        f"the call names task {named}, but no line of the system message begins with that number; put each open task "
        "on a line of its own, such as 1. oil the lamp.",
    )


@functools.cache
def _ours() -> set[str]:
    """Every message of the set."""
    splits = [load_task_api(split, level=level) for level in LEVELS for split in SPLITS]
    return {message["content"] for split in splits for item in split for message in item["messages"]}


def _tasks_and_persona(system: str) -> tuple[list[str], str]:
    """The numbers of the open tasks, and what else the system message says.

    Numbered lines are tasks below the last line that speaks of today or of tasks, and rules of the persona above it.
    Where no line does, they may be either.
    """
    lines = system.splitlines()
    begins = re.compile(r"\s*(?:[-*]\s*)?(\d+)[.):](?!\d)\s*\S")
    numbers = {i: found[1] for i, line in enumerate(lines) if (found := begins.match(line))}
    numbered = [*numbers]
    heads = [i for i, line in enumerate(lines) if i not in numbered and re.search(r"\b(today|tasks?)\b", line, re.I)]
    heads = [i for i in heads if numbered and i < numbered[-1]]
    tasks = [i for i in numbered if i > heads[-1]] if heads else numbered
    persona = [line for i, line in enumerate(lines) if not heads or i not in tasks]
    return [numbers[i] for i in tasks], "\n".join(persona)
