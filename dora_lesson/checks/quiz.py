"""The course's quiz: questions, and for every answer, right or wrong, why. It needs no network."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """`options` maps each answer to its explanation; `right` is one of them; `lesson` is where it is taught."""

    lesson: str
    text: str
    right: str
    options: dict[str, str]


QUESTIONS = [
    Question(
        "01",
        "A Linear layer's weight in PyTorch has shape (d_out, d_in). How many magnitudes does DoRA give it?",
        "d_out",
        {
            "d_out": "One for each output: the norm runs over the inputs, weight.norm(dim=1) (lesson 01).",
            "d_in": "That is dim=0. At step 0 it looks right too, since m / ‖W‖ is 1 on either axis (lesson 03).",
            "one": "A single number could only stretch the whole matrix (lesson 01).",
        },
    ),
    Question(
        "02",
        "LoRA adds B·A to a row. What happens to the row's length?",
        "it may change, and nothing sets it apart from the turn",
        {
            "nothing, LoRA only turns rows": "An addition moves length and angle at once, as a rule (lesson 01).",
            "it may change, and nothing sets it apart from the turn": "LoRA can do either; it has no handle for the "
            "length alone. That is all that 'coupled' means (lesson 02).",
            "it always grows": "A row can be added to in any direction, and shrink (lesson 02).",
        },
    ),
    Question(
        "03",
        "Your DoRA layer gives the base's output at step 0. What has that proved?",
        "that it starts right, whatever the axis",
        {
            "that the layer is DoRA": "Layers with the wrong axis, and plain LoRA, pass as well. Set B to something "
            "other than zero and compare with PEFT (lesson 03).",
            "that it starts right, whatever the axis": "B is zero then, and m / ‖V‖ is 1 on any axis (lesson 03).",
            "nothing at all": "A start away from the base would be an error, so it is worth a line (lesson 03).",
        },
    ),
    Question(
        "04",
        "Where does DoRA cost nothing more than LoRA?",
        "when answering, after merging",
        {
            "when answering, after merging": "Merged, both are a plain Llama with other weights (lesson 04).",
            "in training with PEFT": "PEFT forms V and its norm at every step, and its own record has DoRA slower "
            "(lesson 04).",
            "when answering, unmerged": "Unmerged, V is formed again for every token (lesson 04).",
        },
    ),
    Question(
        "05",
        "You trained QDoRA, merged it, and packed the result into 4 bits again. What do you expect to be left of it?",
        "little: rounding takes most of a small update back",
        {
            "all of it, since QDoRA was made for 4 bits": "It was trained beside packed weights, not inside them "
            "(lesson 05).",
            "little: rounding takes most of a small update back": "The update is far smaller than half the distance "
            "between two levels (lesson 05).",
            "half, since 4 bits are half of 8": "Bits are not shares of an update (lesson 05).",
        },
    ),
    Question(
        "06",
        "One LoRA run and one DoRA run, same data; DoRA scores 1 point more. What follows?",
        "nothing yet: a second seed might turn it round",
        {
            "DoRA is better": "Two runs of one method differ as well when the seed changes (lesson 06).",
            "DoRA is better on this task": "Not even that: the spread over seeds is not known (lesson 06).",
            "nothing yet: a second seed might turn it round": "Pairs over several seeds, each method at a tuned rate, "
            "can answer it (lesson 06).",
        },
    ),
    Question(
        "07",
        "You will serve the adapter beside a packed base, quality first. Which method does the advisor name?",
        "QLoRA",
        {
            "DoRA": "The base is served in 4 bits, so it is trained over 4 bits (lesson 07).",
            "QDoRA": "Unmerged, its price is paid at every token, and one of our three set-ups over 4 bits shows a "
            "gain, of thousandths of a nat (lesson 07).",
            "QLoRA": "Unmerged, DoRA's price is certain and its gain is small or not shown (lesson 07).",
        },
    ),
    Question(
        "00",
        "A tutorial gives a table: LoRA 95 to 98 %, DoRA 98 to 100 % of full fine-tuning. No source. What is it worth?",
        "nothing, until it is measured or sourced",
        {
            "a rough guide": "A range without task, model or runs guides nowhere (lesson 00).",
            "nothing, until it is measured or sourced": "A number in this course has one of the two (lesson 00).",
            "proof that DoRA is better": "Nobody can check it (lesson 00).",
        },
    ),
]


class Folded:
    """The quiz on a page where nothing runs: each answer opens to its explanation."""

    def _repr_html_(self) -> str:
        return "".join(_folded(number, question) for number, question in enumerate(QUESTIONS, start=1))

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(QUESTIONS, start=1):
            lines.append(f"{number}. {question.text}")
            lines += [
                f"   {'(right)' if option == question.right else '(wrong)'} {option}: {why}"
                for option, why in question.options.items()
            ]
        return "\n".join(lines)


def _folded(number: int, question: Question) -> str:
    options = "".join(
        f"<details><summary>{html.escape(option)}</summary>"
        f"{'Right' if option == question.right else 'Not this one'}: {html.escape(why)}</details>"
        for option, why in question.options.items()
    )
    return f"<p><b>{number}. {html.escape(question.text)}</b></p>{options}"
