"""Lesson 07's checks accept right answers in several styles and name the wrong ones that learners give."""

from __future__ import annotations

import copy
import uuid

import numpy as np
import pytest
import torch

from dora_lesson import checks, load_task_api
from dora_lesson.checks import lesson_07

# The tree.


def nested(fits_16, fits_4, priority, inference, takes_dora):
    if not fits_4:
        return None
    dora = takes_dora and priority == "quality" and inference == "merged"
    if fits_16 and priority != "memory" and inference != "4-bit":
        return "DoRA" if dora else "LoRA"
    return "QDoRA" if dora else "QLoRA"


def by_flags(fits_16, fits_4, priority, inference, takes_dora):
    sixteen = fits_16 and not (priority == "memory" or inference == "4-bit")
    names = {(True, True): "DoRA", (True, False): "LoRA", (False, True): "QDoRA", (False, False): "QLoRA"}
    if not (sixteen or fits_4):
        return None
    return names[sixteen, (priority, inference, takes_dora) == ("quality", "merged", True)]


def in_numpy_words(*case):
    return (said := nested(*case)) and np.array([said])[0]


@pytest.mark.parametrize("attempt", [nested, by_flags, in_numpy_words])
def test_a_right_tree_is_accepted(attempt, capsys):
    assert checks.choose(attempt) is attempt, capsys.readouterr().out


def test_it_says_how_many_cases_it_tried(capsys):
    tried = []

    def counts(*case):
        tried.append(case)
        return nested(*case)

    checks.choose(counts)
    assert len(tried) == len(set(tried)) == 54
    assert "all 54 cases" in capsys.readouterr().out


def old_tree(fits_16, fits_4, priority, inference, takes_dora):
    """The tree as tutorials have it: memory, then quality or not."""
    if fits_16:
        return "DoRA" if priority == "quality" else "LoRA"
    if fits_4:
        return "QDoRA" if priority == "quality" else "QLoRA"
    return None


@pytest.mark.parametrize(("attempt", "words"), [
    (old_tree, "the stack does not take DoRA"),
    (lambda a, b, c, d, e: nested(a, b, c, d, True), "the stack does not take DoRA"),
    (lambda a, b, c, d, e: nested(a, b, c, "merged" if d == "unmerged" else d, e), "at every token"),
    (lambda a, b, c, d, e: nested(a, b, "quality" if c == "time" else c, d, e), "quality is not first"),
    (lambda a, b, c, d, e: nested(a, b, "time" if c == "memory" else c, d, e), "memory is first"),
    (lambda a, b, c, d, e: nested(False, b, c, d, e), "may stay in 16 bits"),
    (lambda a, b, c, d, e: nested(a, True, c, d, e), "not even a 4-bit base fits"),
    (lambda a, b, c, d, e: nested(a, b, c, d, e) if a else None, "return in every case"),
    (lambda a, b, c, d, e: nested(a, b, c, d, False), "the stack takes DoRA"),
    (lambda a, b, c, d, e: (nested(a, b, c, d, e) or "none").lower(), "one of LoRA, DoRA"),
    (lambda a, b, c, d, e: np.array(["LoRA", "DoRA"]), "one of LoRA, DoRA"),
    (lambda a, b: "LoRA", "TypeError"),
])  # fmt: skip
def test_a_wrong_tree_is_named(attempt, words, capsys):
    assert checks.choose(attempt) is not attempt
    assert words in capsys.readouterr().out


def test_the_lessons_tree_is_the_advisors():
    """Where both can be asked the same, they say the same."""
    from dora_lesson import recommend

    for vram_gb in (6, 12, 24):
        for priority in ("quality", "time", "memory"):
            for inference in ("merged", "unmerged", "4-bit"):
                expected = lesson_07._choose(vram_gb == 24, vram_gb >= 12, priority, inference, True)
                assert recommend(vram_gb, "llama-3.1-8b", priority, inference=inference).method == expected


# What the items explain.


def in_steps(p, q, items):
    variance = p * (1 - p) / items + q * (1 - q) / items
    return (q - p) / variance**0.5


@pytest.mark.parametrize("attempt", [
    in_steps,
    lambda p, q, n: (q - p) * n**0.5 / (p - p * p + q - q * q) ** 0.5,
    lambda p, q, n: np.float32(in_steps(p, q, n)),
    lambda p, q, n: torch.tensor(in_steps(p, q, n)),
    lambda p, q, n: np.subtract(q, p) / np.sqrt((np.array([p, q]) * (1 - np.array([p, q]))).sum() / n),
])  # fmt: skip
def test_a_right_gap_is_accepted(attempt, capsys):
    assert checks.items_explain(attempt) is attempt, capsys.readouterr().out


def v(p):
    return p * (1 - p)


@pytest.mark.parametrize(("attempt", "words"), [
    (lambda p, q, n: q - p, "the gap itself"),
    (lambda p, q, n: ((v(p) + v(q)) / n) ** 0.5, "it is the standard error"),
    (lambda p, q, n: (p - q) / ((v(p) + v(q)) / n) ** 0.5, "you return it turned round"),
    (lambda p, q, n: abs(q - p) / ((v(p) + v(q)) / n) ** 0.5, "with its sign: here negative"),
    (lambda p, q, n: (q - p) / ((v(p) / n) ** 0.5 + (v(q) / n) ** 0.5), "add their squares"),
    (lambda p, q, n: (q - p) / (v(p) / n) ** 0.5, "only p's"),
    (lambda p, q, n: (q - p) / (v(q) / n) ** 0.5, "only q's"),
    (lambda p, q, n: (q - p) / (v(p) + v(q)) ** 0.5, "items is missing"),
    (lambda p, q, n: (q - p) / ((v(p) + v(q)) ** 0.5 / n), "root of the items"),
    (lambda p, q, n: (q - p) / ((v(p) + v(q)) / n), "variance"),
    (lambda p, q, n: 2.0, "look at the formula"),
    (lambda p, q, n: f"{q - p}", "a number is expected"),
    (lambda p, q, n: float("nan"), "is nan, but a finite number is expected"),
    (lambda p, q, n: float("inf"), "is inf, but a finite number is expected"),
    (lambda p, q, n: (q - p) / (-v(p) - v(q)) ** 0.5, "a complex, but a number is expected"),
])  # fmt: skip
def test_a_wrong_gap_is_named(attempt, words, capsys):
    assert checks.items_explain(attempt) is not attempt
    assert words in capsys.readouterr().out


# An item of one's own.

OWN = lesson_07._persona_item()


RULED = {"id": "marlow-2", "category": "completion", "messages": [
    {"role": "system", "content": "You are Marlow.\n1. Speak dryly, never of the sea.\nOpen tasks:\n2. Read charts"},
    {"role": "user", "content": "The first one is read."},
    {"role": "assistant", "content": 'Noted, with relief.\n{"action": "complete", "task": 1}'},
]}  # fmt: skip


def changed(**parts):
    return lambda: copy.deepcopy(OWN) | parts


def renamed(item):
    messages = [m | {"content": m["content"].replace("TaskMaster", "Bob, a kind helper")} for m in item["messages"]]
    return item | {"messages": messages}


def said(role, content):
    item = copy.deepcopy(OWN)
    item["messages"] = [m | {"content": content} if m["role"] == role else m for m in item["messages"]]
    return lambda: item


def listed(line):
    system = f"You are Marlow, a ship's librarian, dry and exact.\nOpen tasks:\n{line}"
    replies = [system, "The charts are read.", 'Noted, with relief.\n{"action": "complete", "task": 1}']
    messages = [m | {"content": content} for m, content in zip(OWN["messages"], replies, strict=True)]
    return lambda: copy.deepcopy(OWN) | {"messages": messages}


@pytest.mark.parametrize("attempt", [
    changed(id="mine-7"),
    changed(category="boundaries"),
    said("assistant", 'No. Ask me about the list instead.\n{"action": "none"}'),
    said("system", "You are a football coach of few words and much patience, in front of a task list."),
    said("system", "あなたは船の図書館員マーロウです。乾いた口調で正確に答え、意地悪はしません。"),
    said("assistant", 'Read, at last.\n{"action": "create", "title": "Charts"}\n'),
    said("assistant", 'Read, at last.\n{"action": "create", "title": "Charts"} '),
    *map(listed, ["1) Read charts", "    1. Read charts", "- 1: Read charts", "1.Read charts"]),
    said("assistant", 'Noted.\n{"action": "create", "title": "Read\u2028charts"}'),
    said("system", "You are Marlow.\n1. Speak dryly, and never joke about the sea.\n2. Answer in two sentences."),
])  # fmt: skip
def test_a_right_item_is_accepted(attempt, capsys):
    assert checks.persona_item(attempt) is attempt, capsys.readouterr().out


@pytest.mark.parametrize(("attempt", "words"), [
    (changed(category="fun"), "category is 'fun'"),
    (changed(note="x"), "note is not a known key"),
    (changed(messages=OWN["messages"][1:]), "system, user and assistant"),
    (said("assistant", "It is on your list."), "0 lines with a call"),
    (said("assistant", 'Done.\n{"action": "create"}'), "create needs the field 'title'"),
    (said("assistant", 'Done.\n{"action": "create", "title": "x", "due": "someday"}'), "a day such as"),
    (said("assistant", 'Done.\n{"action": "brew"}'), "unknown action 'brew'"),
    (said("user", " "), "a message is empty"),
    (said("system", "You are TaskMaster, an assistant in front of a Task API, as ever."), "TaskMaster still"),
    (said("system", "You are kind."), "says too little"),
    (said("system", "You are Task Master, an assistant in front of a list, as ever it was."), "TaskMaster still"),
    (said("assistant", 'Done.\n{\n"action": "create",\n"title": "x"}'), "write it on one line"),
    (said("system", "you are Taskmaster, an assistant in front of a list of tasks, as ever."), "TaskMaster still"),
    (lambda: RULED, "names task 1, but no line of the system message begins"),
    (said("system", "You are Bob. Today is Monday."), "says too little"),
    (said("assistant", '{"action": "create", "title": "Charts"}'), "is its call alone"),
    (said("assistant", '{"action": "create", "title": "Charts"}\nOn your list.'), "put the call last"),
    (said("assistant", 'On your list: {"action": "create", "title": "Charts"}'), "put a line break before the brace"),
    (said("assistant", 'Done and dusted.\n{"action": "complete", "task": 99}'), "names task 99, but no line"),
    (lambda: renamed(load_task_api("train")[0]), "is one of ours"),
    (lambda: renamed(load_task_api("validation")[0]), "is one of ours"),
    (lambda: renamed(load_task_api("test", level="spoken")[0]), "is one of ours"),
    (listed("Open tasks: 1. read charts; 2. wind the clock"), "put each open task on a line of its own"),
    (lambda: [OWN], "return a dict"),
    (changed(id=uuid.UUID(int=7)), "cannot be written as JSON (Object of type UUID"),
    (changed(id=np.int64(7)), "cannot be written as JSON (Object of type int64"),
    (changed(messages={1, 2}), "cannot be written as JSON (Object of type set"),
    (changed(id=7), "id is 7: Input should be a valid string"),
])  # fmt: skip
def test_a_wrong_item_is_named(attempt, words, capsys):
    assert checks.persona_item(attempt) is not attempt
    assert words in capsys.readouterr().out
