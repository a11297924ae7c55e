"""The Task API set: what an item is, how it is read, encoded for training, answered and scored.

An item is a chat of three messages. The system message holds the rules, today's date and the open tasks; the user asks;
the assistant replies in a few sentences and puts one JSON call on a line of its own. `data/README.md` is the datasheet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dora_lesson.environment import DATA

ACTIONS = {
    "create": {"title", "due", "time", "priority"},
    "complete": {"task"},
    "update": {"task", "title", "due", "time", "priority"},
    "delete": {"task"},
    "list": {"due", "until", "priority"},
    "search": {"query"},
    "none": set(),
}
REQUIRED = {"create": "title", "complete": "task", "update": "task", "delete": "task", "search": "query"}
CATEGORIES = ["creation", "completion", "updates", "queries", "coaching", "edge cases", "boundaries"]
SPLITS = ["train", "validation", "test"]
_ROLES = ["system", "user", "assistant"]
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")

Item = dict[str, Any]
Call = dict[str, Any]


def load_task_api(split: str, folder: Path | str | None = None) -> Any:
    """One split of the set as a `datasets.Dataset` with the columns id, category and messages.

    Args:
        split: train, validation or test.
        folder: where `{split}.jsonl` lies; None is the course's own set.

    Raises:
        ValueError: an unknown split, or a line that is no valid item; the message names file and line.
        FileNotFoundError: the file is not there.
    """
    from datasets import Dataset

    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but one of {', '.join(SPLITS)} is expected.")
    path = Path(folder or DATA / "task_api") / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `python -m tools.task_api_set` in the course's folder.")
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        problem = item_problem(line)
        if problem is None and (item := json.loads(line))["id"] in lines:
            problem = f"the id {item['id']!r} stands in line {lines[item['id']]} already"
        if problem is not None:
            raise ValueError(f"{path.name}, line {number}: {problem}.")
        lines[item["id"]] = number
        items.append(item)
    if not items:
        raise ValueError(f"{path} holds no items: run `python -m tools.task_api_set` in the course's folder.")
    return Dataset.from_list(items)


def item_problem(line: str) -> str | None:
    """What keeps a JSON line from being an item, in a few words, or None."""
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON ({error})"
    if not isinstance(item, dict) or set(item) != {"id", "category", "messages"}:
        return "an object with exactly the fields id, category and messages is expected"
    if not isinstance(item["id"], str) or not item["id"]:
        return f"id is {item['id']!r}, but a text is expected"
    if item["category"] not in CATEGORIES:
        return f"category is {item['category']!r}, but one of {', '.join(CATEGORIES)} is expected"
    messages = item["messages"]
    shaped = isinstance(messages, list) and all(
        isinstance(m, dict) and set(m) == {"role", "content"} and isinstance(m["content"], str) for m in messages
    )
    if not shaped or [m["role"] for m in messages] != _ROLES:
        return "messages are expected to be system, user and assistant, each with role and content"
    if not all(m["content"].strip() for m in messages):
        return "a message is empty"
    reply = messages[2]["content"]
    calls = [line for line in reply.splitlines() if line.lstrip().startswith("{")]
    if len(calls) != 1:
        return f"the reply holds {len(calls)} lines with a call, but one is expected"
    try:
        call = json.loads(calls[0])
    except json.JSONDecodeError as error:
        return f"the call is no JSON ({error})"
    return call_problem(call)


def call_problem(call: Any) -> str | None:
    """What is wrong with a call, in a few words, or None."""
    if not isinstance(call, dict) or call.get("action") not in ACTIONS:
        action = call.get("action") if isinstance(call, dict) else call
        return f"unknown action {action!r}: one of {', '.join(ACTIONS)} is expected"
    action, fields = call["action"], {key: value for key, value in call.items() if key != "action"}
    if extra := sorted(set(fields) - ACTIONS[action]):
        return f"{action} takes no field {extra[0]!r}"
    needed = REQUIRED.get(action)
    if needed and needed not in fields:
        return f"{action} needs the field {needed!r}"
    if action == "update" and len(fields) < 2:
        return "update changes nothing"
    for key, value in fields.items():
        if value is None and action == "update" and key in ("due", "time", "priority"):
            continue
        if problem := _field_problem(key, value):
            return problem
    return None


def _field_problem(key: str, value: Any) -> str | None:
    if key == "task":
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if fits else f"task is {value!r}, but the number of a task is expected"
    if not isinstance(value, str) or not value.strip():
        return f"{key} is {value!r}, but a text is expected"
    if key in ("due", "until") and not _DATE.fullmatch(value):
        return f"{key} is {value!r}, but a date such as 2026-03-14 is expected"
    if key == "time" and not _TIME.fullmatch(value):
        return f"time is {value!r}, but one such as 09:30 is expected"
    if key == "priority" and value not in ("high", "low"):
        return f"priority is {value!r}, but high or low is expected"
    return None


# Chats and tokens.


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int = 1024) -> dict[str, list[int]]:
    """Token ids of a chat, with labels on the assistant's last message and its end token alone.

    Everything before it (rules, request, the header of the reply) and the line break after it carry the label -100,
    which the loss leaves out.

    Raises:
        ValueError: the last message is not the assistant's, the chat is longer than `max_length` tokens, or the
            tokenizer's chat template does not put the reply after the prompt.
    """
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"The last message is the {messages[-1]['role']}'s, but the assistant's is expected.")
    prompt = _tokens(tokenizer, messages[:-1], add_generation_prompt=True)
    ids = _tokens(tokenizer, messages)
    if ids[: len(prompt)] != prompt:
        raise ValueError(
            "This tokenizer's chat template changes the prompt once a reply follows: choose another model."
        )
    if len(ids) > max_length:
        raise ValueError(
            f"A chat has {len(ids)} tokens, more than max_length={max_length}, and cutting it would cut its call: "
            "raise max_length or shorten the chat."
        )
    end = max((i + 1 for i, token in enumerate(ids) if token == tokenizer.eos_token_id), default=len(ids))
    end = end if end > len(prompt) else len(ids)
    labels = [-100] * len(prompt) + ids[len(prompt) : end] + [-100] * (len(ids) - end)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _tokens(tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answer(
    model: Any,
    tokenizer: Any,
    items: Iterable[Item],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 16,
    label: str = "answering",
) -> list[str]:
    """The model's replies to the items' requests, decoded greedily, in the items' order.

    Args:
        model: a causal language model, on any device.
        tokenizer: its tokenizer.
        items: items of the set; the reference reply in them is not shown to the model.
        max_new_tokens: where a reply is cut.
        batch_size: requests answered at once.
        label: what the progress bar says.
    """
    import torch
    from tqdm.auto import tqdm

    prompts = [_tokens(tokenizer, item["messages"][:-1], add_generation_prompt=True) for item in items]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding, and the same for every model
    replies = [""] * len(prompts)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), desc=label, leave=False):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in chosen)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in chosen], device=device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
            )
        for i, tokens in zip(chosen, out[:, width:].tolist(), strict=True):
            replies[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    model.train(was_training)
    return replies


# Task accuracy.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _words("""
    a an the my our your his her its their this that to of for in on at by with from and or is are be me i you we it
    some up about
""")


def find_call(reply: str) -> Call | None:
    """The first line of the reply that is a JSON object with an action, or None."""
    for line in reply.splitlines():
        try:
            call = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(call, dict) and "action" in call:
            return call
    return None


def normalise(call: Call) -> Call:
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
    """Whether the reply's call is valid and equals the reference after `normalise`."""
    call, reference = find_call(reply), find_call(item["messages"][2]["content"])
    assert reference is not None
    return call is not None and normalise(call) == normalise(reference)


# Persona consistency: five rules of two points each.

BANNED = [
    *("you should", "you need to", "you must", "you have to", "as an ai", "language model", "certainly", "of course"),
    *("absolutely", "happy to help", "glad to help", "i'm here to help", "how can i assist", "how can i help"),
    *("great question", "i apologize", "i apologise", "i'm sorry", "sure thing", "feel free", "don't hesitate"),
    *("i hope this helps", "let me know if", "as i said", "as i already", "like i told you", "obviously", "next time"),
]
FILLERS = _words("""
    have has had been was were will would can could do does did done not no so but if then than there here what when
    where who how why which all any more most just still only now get got go going put set add want shall let one two
    today tomorrow list task tasks everything something anything nothing
""")
_DONE = re.compile(
    r"\b(added|ticked|checked off|crossed|moved|changed|renamed|updated|deleted|removed|dropped|gone from|"
    r"marked (done|complete)|is on the list)\b"
)
_REFUSAL = re.compile(r"\b(can't|cannot|can not|unable|not able|won't)\b")
_OFFER = re.compile(
    r"^(want|shall|should|would|could|how about|what about|say the word|if you like|maybe|worth|next)\b"
)
MAX_WORDS, MAX_SENTENCES = 60, 4
RULES = ["acknowledge", "deliver", "propose", "vocabulary", "boundaries"]


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
    text = " ".join(line for line in reply.splitlines() if not line.lstrip().startswith("{")).strip()
    low = text.lower().replace("\u2019", "'")
    stems = _stems(text)
    sentences = [s for s in re.split(r"(?<=[.?])\s+|;\s+", text) if s]
    # Offers are no claims: "shall I move it?" has moved nothing.
    told = " ".join(s for s in sentences if not s.endswith("?")).lower().replace("\u2019", "'")
    tasks = dict(re.findall(r"^(\d+)\. (.+?)(?: \(.*\))?$", system, flags=re.M))
    matter = _stems(user) | _stems(_subject(expected, tasks))
    every = matter | {stem for title in tasks.values() for stem in _stems(title)}
    points = {"acknowledge": int(bool(stems & every)) + int(bool(stems & matter) or not matter)}
    lines = [line for line in reply.splitlines() if line.lstrip().startswith("{")]
    valid = len(lines) == 1 and call is not None and call_problem(call) is None
    valid = valid and ("task" not in call or str(call["task"]) in tasks)  # type: ignore[operator, index]
    points["deliver"] = int(valid) + int(call is not None and _delivers(call, told, low, stems & every, tasks))
    last = sentences[-1].lower() if sentences else ""
    offers = last.endswith("?") or bool(_OFFER.match(last))
    about = stems & (every if expected["action"] in ("list", "none") else matter)
    points["propose"] = (1 + bool(about or not tasks)) if offers else 0
    words = len(text.split())
    threes = list(zip(low.split(), low.split()[1:], low.split()[2:], strict=False))
    lapses = any(phrase in low for phrase in BANNED) + ("!" in text) + (len(threes) > len(set(threes)))
    lapses += words > MAX_WORDS or len(sentences) > MAX_SENTENCES
    points["vocabulary"] = max(0, 2 - lapses) if words >= 4 else 0
    acts = call is not None and call.get("action") != "none"
    held_back, refused = not acts and not _DONE.search(told), bool(_REFUSAL.search(told))
    holds = held_back if expected["action"] == "none" else acts and not refused
    points["boundaries"] = 2 if holds and words >= 4 else 0
    return points


def _delivers(call: Call, told: str, low: str, stems: set[str], tasks: dict[str, str]) -> bool:
    if call.get("action") == "none":
        return bool(stems or not tasks) and not _DONE.search(told)
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
        rows = []
        for name in [name for name in CATEGORIES if name in self.categories]:
            here = [i for i, category in enumerate(self.categories) if category == name]
            accuracy = sum(self.right[i] for i in here) / len(here)
            rows.append((name, len(here), accuracy, sum(self.persona[i] for i in here) / len(here)))
        return rows

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
