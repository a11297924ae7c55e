"""The final check: for each lesson's objective a short task, and a line that says whether the answer is right."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from dora_lesson.advisor.recommend import recommend
from dora_lesson.checks.runner import kind, plain
from dora_lesson.environment import doctor
from dora_lesson.evidence.stats import paired_difference

Slips = list[tuple[list[float], str]]  # wrong answers that learners give, and what to say of them


@dataclass(frozen=True)
class Task:
    """`problem(answer)` says in a few words what is wrong, or None; `answer` is the course's own."""

    lesson: str
    objective: str
    question: str
    answer: Any
    problem: Callable[[Any], str | None]


def tasks() -> list[Task]:
    """One task for each lesson, in order."""
    return copy.deepcopy(list(_TASKS))


def final_check(answers: Mapping[str, Any]) -> int:
    """Print one line for each task, under its lesson's number, and return how many are right.

    Args:
        answers: lesson number, such as "03", to answer; None is "not yet".
    """
    if not isinstance(answers, Mapping):
        raise ValueError(f"answers is {answers!r}, but a dict is expected, such as {{'01': [5, 10]}}.")
    right = 0
    for task in _TASKS:
        answer = answers.get(task.lesson)
        if answer is None:
            print(f"{task.lesson} not yet")
            continue
        try:
            problem = task.problem(answer)
        except Exception:
            problem = f"{kind(answer)} does not answer this; give {_like(task.answer)}"
        right += problem is None
        print(f"{task.lesson} correct: {task.objective}" if problem is None else f"{task.lesson} wrong: {problem}")
    lessons = [task.lesson for task in _TASKS]
    if extra := [key for key in answers if key not in lessons]:
        print(f"{extra[0]!r} is not the number of a lesson; those are {lessons[0]!r} to {lessons[-1]!r}, in quotes")
    print(f"{right} of {len(_TASKS)}")
    return right


def _like(answer: Any) -> str:
    return {str: "a word in quotes", bool: "True or False", dict: "a dict", float: "a number"}.get(
        type(answer), f"{len(answer)} numbers in brackets" if isinstance(answer, list) else "a number"
    )


def _numbers(answer: Any, right: list[float], slips: Slips) -> str | None:
    if isinstance(answer, str | Mapping | Set):
        raise TypeError  # their parts have no order, or are letters
    given = [float(value) for value in answer]
    if len(given) != len(right):
        return f"you give {len(given)} numbers, but the question asks for {len(right)}"
    for values, message in [(right, None), *slips]:
        if all(abs(x - y) < 0.02 for x, y in zip(given, values, strict=True)):
            return message
    return f"{given} is not right"


def _ready(answer: Any) -> str | None:
    answer = str(answer).strip().lower()
    if answer not in ("yes", "no"):
        return "answer 'yes' or 'no': what does the last line of dora_lesson.doctor() say?"
    ready = "yes" if doctor().ok else "no"
    return None if answer == ready else f"dora_lesson.doctor() says {ready}: run it and read its last line"


def _magnitudes(answer: Any) -> str | None:
    return _numbers(
        answer, [5, 10], [([6.71, 8.94], "that is dim=0, the columns; one magnitude for each output: rows")]
    )


def _moved(answer: Any) -> str | None:
    slips: Slips = [
        ([1, 0], "cos is 0 for a right angle, and ΔD is 1 − cos"),
        ([3.61, 1], "ΔM compares lengths, not tips"),
    ]
    return _numbers(answer, [1, 1], slips)


def _merged(answer: Any) -> str | None:
    slips: Slips = [
        ([4, 3], "that is V = w + u; divide by its length and multiply by m"),
        ([40, 30], "divide V by its length before you multiply by m"),
        ([0.8, 0.6], "that is the direction; multiply it by m"),
        ([6, 8], "that is w with m; add u first"),
        ([7, 3], "only the base's direction was scaled; u is inside the norm too"),
    ]
    return _numbers(answer, [8, 6], slips)


def _configured(answer: Any) -> str | None:
    given = answer if isinstance(answer, Mapping) else vars(answer)
    if plain(given.get("use_dora")) is not True:
        return "use_dora is not True, so this is LoRA"
    if given.get("r") != 8:
        return f"r is {given.get('r')!r}, but the question asks for 8"
    alpha, root = given.get("lora_alpha"), given.get("use_rslora")
    if root and not (alpha and math.isclose(alpha / 8**0.5, 2)):
        return f"use_rslora divides lora_alpha by the root of r, and {alpha!r} / √8 is not 2; leave it out"
    if not root and alpha != 16:
        return f"lora_alpha / r is the scaling, and {alpha!r} / 8 is not 2"
    return None


def _bits(answer: Any) -> str | None:
    right = 4 + 8 / 64 + 32 / (64 * 256)
    slips = [
        (4, 1e-3, "that is the codes alone; what do the scales add?"),
        (4.5, 1e-3, "that is without double quantization"),
        (4.125, 5e-4, "the scales of the scales are missing, 32 bits for 64 · 256 weights"),
        (right, 0.005, "that is near; keep all decimals until the end, and then three"),
    ]
    value = float(answer)
    if round(value, 3) == round(right, 3):
        return None
    return next((message for slip, off, message in slips if abs(value - slip) < off), f"{value:g} is not right")


@functools.cache
def _pairs() -> bool:
    return paired_difference([0.50, 0.56, 0.47], [0.53, 0.57, 0.51]).measurable


def _shown(answer: Any) -> str | None:
    answer = plain(answer)
    if not isinstance(answer, bool):
        return "answer True or False"
    hint = "three pairs of +0.03, +0.01, +0.04: compute paired_difference, and look whether zero is inside"
    return None if answer == _pairs() else hint


def _chosen(answer: Any) -> str | None:
    right_method = recommend(12, "llama-3.1-8b", "quality", inference="4-bit").method
    method = str(answer).strip().lower()
    if method == str(right_method).lower():
        return None
    why = dict.fromkeys(["lora", "dora"], "the 16-bit weights alone are larger than the card")
    why["qdora"] = "beside a packed base the adapter is not merged, and DoRA's price falls due at every token"
    return why.get(method, "answer LoRA, DoRA, QLoRA or QDoRA")


_TASKS = (
    Task(
        "00",
        "say whether this machine is ready",
        'Is this machine ready for the course? "yes" or "no".',
        "yes",
        _ready,
    ),
    Task(
        "01",
        "split a weight into magnitude and direction, on the right axis",
        "The weight of a Linear layer is [[3, 4], [6, 8]]. Its magnitudes?",
        [5, 10],
        _magnitudes,
    ),
    Task(
        "02",
        "explain how weights move",
        "A row (2, 0) is trained to (0, 3). ΔM and ΔD of this row?",
        [1, 1],
        _moved,
    ),
    Task(
        "03",
        "write a DoRA layer and merge it",
        "A row w = (3, 4), its scaled update u = (1, −1), its magnitude m = 10. The merged row?",
        [8, 6],
        _merged,
    ),
    Task(
        "04",
        "configure DoRA in PEFT",
        "Arguments of LoraConfig for DoRA of rank 8 with scaling 2? A dict, or a LoraConfig.",
        {"r": 8, "lora_alpha": 16, "use_dora": True},
        _configured,
    ),
    Task(
        "05",
        "account for every byte",
        "Bits a weight in NF4 with double quantization, to three decimals?",
        4.127,
        _bits,
    ),
    Task(
        "06",
        "judge a LoRA-against-DoRA claim",
        "Three paired seeds: LoRA 0.50, 0.56, 0.47; DoRA 0.53, 0.57, 0.51. Is a difference shown? True or False.",
        False,
        _shown,
    ),
    Task(
        "07",
        "choose an adapter and defend the choice",
        "12 GB, Llama-3.1-8B, quality first, to be served beside a packed base. Which method?",
        "QLoRA",
        _chosen,
    ),
)
