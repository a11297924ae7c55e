"""Checks of lesson 06: difference or noise, seeds enough to decide, what else differs, and an audit of claims."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dora_lesson.checks.runner import Attempt, Wrong, call, check, expect, is_whole, kind, plain
from dora_lesson.evidence.published import load_published
from dora_lesson.evidence.stats import detectable, paired_difference

SAID = ("higher", "lower", "cannot tell")
# Claims of which more than one verdict can be defended, with those beside our own.
ALSO = {
    "extra for 7B": {"wrong"},
    "absolute scores": {"no source"},
    "rank table": {"no source"},
    "rank 8 beats 32": {"depends", "overstated"},
    "coupling": {"depends", "holds once", "wrong"},
    "training speed": {"depends"},
    "inference cost": {"overstated"},
    "memory table": {"overstated"},
    "quality shares": {"wrong"},
    "the snippet": {"wrong"},
    "beats full": {"depends", "overstated"},
    "the call": {"wrong"},
}


# The course's own versions.


def _noise(a: Sequence[float], b: Sequence[float]) -> str:
    if len(a) < 2:
        return "cannot tell"
    found = paired_difference(a, b)
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "cannot tell"


def _enough(spread: float, difference: float, minutes: float, budget: float) -> int:
    seeds = 2
    while 2 * seeds * minutes <= budget:
        if detectable(spread, seeds) <= difference:
            return seeds
        seeds += 1
    return 0


def _confounds(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {key for key in a | b if a.get(key) != b.get(key)} - {"method", "seed"}


def _audit() -> dict[str, tuple[str, str]]:
    return {name: (claim["verdict"], claim["evidence"][0]) for name, claim in claims().items()}


def claims() -> dict[str, Any]:
    """The claims to be judged, by name."""
    return {name: claim for name, claim in load_published("claims").items() if name not in ("about", "source")}


# How they are examined.

_STEADY = [61.0, 70.2, 55.1, 66.3, 58.8]
_TEN = [1.6, -0.4, 1.1, 0.4, 1.8, 0.0, 1.3, -0.7, 1.0, 0.5]


@check(_noise, "you do not judge from one pair, and you compare five pairs by their differences.")
def noise(attempt: Attempt) -> None:
    """Check `my_noise(a, b) -> "higher", "lower" or "cannot tell"`."""
    higher = [a + gain for a, gain in zip(_STEADY, [0.5, 0.6, 0.4, 0.5, 0.6], strict=True)]
    uneven = [a + gain for a, gain in zip(_STEADY, [9.0, -4.0, 7.0, -6.0, 2.0], strict=True)]
    one = "two single runs say nothing: the same method differs from itself when the seed changes."
    steady = (
        "five pairs differ by 0.4 to 0.6, all one way; subtract pair by pair before you look at the spread, and do not "
        "ask ranks or signs alone, whose p is never below 0.06 with five pairs."
    )
    wild = "the mean difference is 1.6, but the five are +9, −4, +7, −6 and +2; how sure is that mean?"
    two = "the two pairs differ by {}; a coin falls one way twice as well, and an interval from two pairs is wide."
    near = "the five differ by +3, −1, +2, +2 and −0.5; their mean is 1.4 standard errors from 0, and five ask for 2.8."
    one_way = "all five gain, by 3.2, 0.2, 2.2, 2 and 0.1; their mean is 2.6 standard errors from 0; five ask for 2.8."
    one_against = "four gain about 1 and one loses 0.05; the mean is 3.7 standard errors from 0, and 2.8 are enough."
    sorts = (
        "the five differ by +5.8, −14.6, +15.6, −7 and +2.7; keep the order, the first of b belongs to the first of a."
    )
    three = "the three differ by +0.1, +0.2 and +0.3; their mean is 3.5 standard errors from 0, and three ask for 4.3."
    ten = "the mean of the ten differences is 2.5 standard errors from 0, and ten ask for 2.26."
    cases = [
        ([47.8], [46.9], "cannot tell", one),
        ([74.7], [78.4], "cannot tell", one),
        (_STEADY, uneven, "cannot tell", wild),
        ([61.0, 70.2], [61.5, 79.2], "cannot tell", two.format("+0.5 and +9")),
        ([61.0, 70.2], [62.0, 73.2], "cannot tell", two.format("+1 and +3")),
        (_STEADY, [64.0, 69.2, 57.1, 68.3, 58.3], "cannot tell", near),
        (_STEADY, [66.8, 55.6, 70.7, 59.3, 61.5], "cannot tell", sorts),
        (_STEADY, [64.2, 70.4, 57.3, 68.3, 58.9], "cannot tell", one_way),
        (_STEADY, higher, "higher", steady),
        (_STEADY, [62.0, 71.3, 56.0, 67.3, 58.75], "higher", one_against),
        (higher, _STEADY, "lower", "b is below a in all five pairs; look at the sign of b − a."),
        (_STEADY[:3], [61.1, 70.4, 55.4], "cannot tell", three),
        ([0.0] * 10, _TEN, "higher", ten),
        (_STEADY, _STEADY, "cannot tell", "these are the same scores twice; zero lies in the interval."),
    ]
    for a, b, right, why in cases:
        answer = call(attempt, list(a), list(b))
        expect(isinstance(answer, str) and answer in SAID, f"you return {answer!r}; the answers are {', '.join(SAID)}.")
        expect(answer == right, f"for a={a} and b={b} you return {answer!r}: {why}")


@check(_enough, "you ask for as many seeds as it takes and no more, and for 0 where the time is too short.")
def enough(attempt: Attempt) -> None:
    """Check `my_enough(spread, difference, minutes, budget) -> seeds or 0`."""
    # Ten thousand minutes are enough for any of these.
    for spread, difference, minutes in [(1.0, 1.0, 7), (0.01, 0.005, 3), (2.0, 9.0, 11), (1.5, 0.5, 1), (0.01, 1.0, 6)]:
        right = _enough(spread, difference, minutes, budget=10_000)
        answer = plain(call(attempt, spread, difference, minutes, 10_000))
        expect(
            is_whole(answer) and answer > 0,
            f"you return {answer!r} although there is time enough; return a whole number of seeds.",
        )
        case = f"for a spread of {spread:g} and a difference of {difference:g}"
        if answer != right:
            found = detectable(spread, max(answer, 2))
            way = "too few" if answer < right else "more than it takes"
            raise Wrong(f"{case} you return {answer} seeds, {way}: what {max(answer, 2)} detect is {found:.3g}.")
        case += f" and runs of {minutes} min"
        cost = 2 * right * minutes
        just = plain(call(attempt, spread, difference, minutes, cost))
        expect(
            is_whole(just) and just == right, f"{case} you return {just!r}, but {cost} minutes are enough for {right}."
        )
        short = plain(call(attempt, spread, difference, minutes, cost - 1))
        message = f"{case} you return {short!r}, but {cost - 1} minutes are too few for {right} seeds of two methods; "
        expect(is_whole(short) and short == 0, f"{message}return 0.")


_FULL: dict[str, Any] = {"method": "lora", "r": 32, "lora_alpha": 64, "learning_rate": 3e-4, "lora_dropout": 0.05}
_FULL |= {"target_modules": ["q_proj", "v_proj"], "seed": 0}
_ARMS: list[tuple[dict[str, Any], dict[str, Any], set[str], str]] = [
    (_FULL, _FULL | {"method": "dora"}, set(), "these arms differ in the method alone."),
    (_FULL, _FULL | {"method": "dora", "seed": 1}, set(), "seeds are what pairs are made of; leave them out."),
    (_FULL, _FULL | {"method": "dora", "learning_rate": 1e-4}, {"learning_rate"}, "the rates differ."),
    (
        _FULL,
        _FULL | {"method": "dora", "target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"target_modules"},
        "DoRA adapts one kind of layer more.",
    ),
    (
        _FULL,
        _FULL | {"method": "dora", "r": 16, "lora_alpha": 32},
        {"r", "lora_alpha"},
        "r and lora_alpha differ, although their ratio does not.",
    ),
    (
        {"method": "qlora", "r": 64, "lora_alpha": 16, "lora_dropout": 0.1},
        {"method": "qdora", "r": 64, "lora_alpha": 64, "lora_A_std": 0.125},
        {"lora_alpha", "lora_dropout", "lora_A_std"},
        "what only one arm names differs too; look at the keys of both.",
    ),
]


@check(_confounds, "you name all that differs, and nothing else.")
def confounds(attempt: Attempt) -> None:
    """Check `my_confounds(a, b) -> set of names`."""
    for a, b, right, why in [*_ARMS, *((b, a, right, why) for a, b, right, why in _ARMS)]:
        given = json.loads(json.dumps([a, b]))  # values that are equal and not the same objects, as in files of runs
        answer = call(attempt, *given)
        expect(given == [a, b], "it changed a configuration, which the lesson still needs; make a copy first.")
        listed = not isinstance(answer, str | dict) and hasattr(answer, "__iter__")
        expect(listed, f"your function returns {kind(answer)}; return the names that differ, as a set.")
        names = set(answer)
        expect("method" not in names, "the method is what is compared; leave it out.")
        expect(names == right, f"for {a} and {b} you return {sorted(map(str, names)) or 'nothing'}: {why}")


@check(_audit, "every claim has a verdict and a place that bears it out.")
def audit(attempt: Attempt) -> None:
    """Check `my_audit() -> {claim: (verdict, evidence)}`, the evidence a lesson or "calculation"."""
    answer, ours = call(attempt), claims()
    expect(isinstance(answer, dict), f"your function returns {kind(answer)}; return a dict, by claim.")
    words = sorted({claim["verdict"] for claim in ours.values()})
    for name, pair in answer.items():
        expect(name in ours, f"{name!r} is not the name of a claim; the names stand in the table.")
        two = isinstance(pair, tuple | list) and len(pair) == 2
        expect(two, f"{name!r} has {pair!r}; give a pair of verdict and evidence, such as ('wrong', 'lesson 04').")
        word, evidence = str(pair[0]).strip().lower(), pair[1]
        expect(word not in ("right", "true"), f"{name!r} is called {word}, but none of the claims holds as it stands.")
        expect(word in words, f"{name!r} is called {word!r}; the verdicts are {', '.join(words)}.")
        expect(bool(_place(evidence)), f"{name!r} rests on {evidence!r}; name a lesson, 00 to 06, or 'calculation'.")
    if missing := [name for name in ours if name not in answer]:
        raise Wrong(f"{len(missing)} claims are still without a verdict, {missing[0]!r} the first of them.")
    answer = {name: (str(word).strip().lower(), evidence) for name, (word, evidence) in answer.items()}
    expect(len({word for word, _ in answer.values()}) > 1, "one verdict for all is no audit; they differ in kind.")
    for name, claim in ours.items():
        word, evidence = answer[name]
        right = word in {claim["verdict"], *ALSO.get(name, ())}
        expect(right, f"look again at {name!r}: {word!r} is not what the sources bear out.")
        place = _place(evidence)
        expect(
            place in claim["evidence"],
            f"{name!r} is {word}, but {place if place == 'calculation' else f'lesson {place}'} does not show it; where "
            "is its subject measured, counted or told?",
        )


def _place(evidence: Any) -> str:
    """ "04" for a lesson however it is written, "calculation", or nothing for anything else."""
    text = str(evidence).strip().lower()
    if re.match(r"calc|comput", text):
        return "calculation"
    number = re.fullmatch(r"(?:lesson|notebook)?\s*0?([0-6])", text)
    return f"0{number[1]}" if number else ""
