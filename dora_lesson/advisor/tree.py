"""The tree of three questions as data, and the way that a request takes through it."""

from __future__ import annotations

from dataclasses import dataclass

from dora_lesson.advisor.memory_fit import fits
from dora_lesson.advisor.request import Request
from dora_lesson.core import ADAPTERS

NOTHING_FITS = "nothing fits"  # the leaf beside the methods


@dataclass(frozen=True)
class Question:
    """The answer is yes where one of `methods` is allowed and fits; `yes` and `no` name a question or a leaf."""

    text: str
    methods: tuple[str, ...]
    yes: str
    no: str


FIRST = "fits"
QUESTIONS = {
    "fits": Question("Does a step fit, with\nthe base in 4 bits?", ADAPTERS, "sixteen", NOTHING_FITS),
    "sixteen": Question("Can and may the base\nstay unpacked?", ("lora", "dora"), "dora, 16", "dora, 4"),
    "dora, 16": Question("Quality first, merged,\nand can DoRA be had?", ("dora",), "dora", "lora"),
    "dora, 4": Question("Quality first, merged,\nand can DoRA be had?", ("qdora",), "qdora", "qlora"),
}


def allowed(request: Request) -> list[str]:
    """The methods that the constraints leave, whatever the card holds."""
    if request.came_packed and request.inference == "merged":
        return []  # no unpacked weights to merge into
    sixteen = not request.came_packed and not request.trained_as_served and request.priority != "memory"
    dora = request.priority == "quality" and request.inference == "merged"
    rules = {"lora": sixteen, "dora": sixteen and dora, "qlora": True, "qdora": dora and request.trainer != "deepspeed"}
    return [method for method in ADAPTERS if rules[method]]


def way(request: Request) -> list[str]:
    """The questions that the request passes, from the top, and its leaf; empty where no method is allowed."""
    methods = allowed(request)
    if not methods:
        return []
    passed = [FIRST]
    while question := QUESTIONS.get(passed[-1]):
        holds = any(method in methods and fits(request, method) for method in question.methods)
        passed.append(question.yes if holds else question.no)
    return passed


def choose(request: Request) -> str | None:
    """The method at the end of the way: lora, dora, qlora or qdora; None where nothing can be had."""
    leaf = (way(request) or [NOTHING_FITS])[-1]
    return None if leaf == NOTHING_FITS else leaf
