"""The Task API set: what an item is, how it is read, encoded for training and answered; `scoring` judges the replies.

An item is a chat of three messages. The system message says who the assistant is, which day it is, and the open tasks;
the user asks; the assistant replies in a sentence or two and puts one JSON call on a line of its own. In the plain
level all that is needed stands in the request or the list; the spoken one is as people say it. `data/README.md` is the
datasheet.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dora_lesson.adapters.linear4bit import restore_order
from dora_lesson.core import DATA, first_problem
from dora_lesson.task_api.calls import Call, call_lines, find_call, validate_call

CATEGORIES = ["creation", "completion", "updates", "queries", "coaching", "edge cases", "boundaries"]
SPLITS = ["train", "validation", "test"]
LEVELS = ["plain", "spoken"]

Item = dict[str, Any]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatItem(BaseModel):
    """An item, as a line of the set's files holds it."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    category: Literal[tuple(CATEGORIES)]  # type: ignore[valid-type]
    messages: list[Message]

    @model_validator(mode="after")
    def _has_the_form_of_the_set(self) -> ChatItem:
        if [message.role for message in self.messages] != ["system", "user", "assistant"]:
            raise ValueError("messages are expected to be system, user and assistant, in this order")
        if not all(message.content.strip() for message in self.messages):
            raise ValueError("a message is empty")
        return self


def load_task_api(split: str, folder: Path | str | None = None, *, level: str = "plain") -> Any:
    """One split of the set as a `datasets.Dataset` with the columns id, category and messages.

    Args:
        split: train, validation or test.
        folder: where `{split}.jsonl` lies; None is the course's own set.
        level: of the course's own set, plain or spoken.

    Raises:
        ValueError: an unknown split or level, or an invalid line; the message names file and line.
        FileNotFoundError: the file is not there.
    """
    from datasets import Dataset

    for name, value, known in (("split", split, SPLITS), ("level", level, LEVELS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, but one of {', '.join(known)} is expected.")
    path = Path(folder or DATA / "task_api" / level) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `python -m tools.task_api_set` in the course's folder.")
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        problem = validate_item(line)
        if problem is None and (item := json.loads(line))["id"] in lines:
            problem = f"the id {item['id']!r} is already in line {lines[item['id']]}"
        if problem is not None:
            raise ValueError(f"{path.name}, line {number}: {problem}.")
        lines[item["id"]] = number
        items.append(item)
    if not items:
        raise ValueError(f"{path} holds no items: run `python -m tools.task_api_set` in the course's folder.")
    return Dataset.from_list(items)


def _lines(path: Path) -> list[str]:
    """The lines of a JSON lines file. JSON allows other line separators than this inside a text."""
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}): save it in UTF-8.") from None


def validate_item(line: str) -> str | None:
    """What keeps a JSON line from being an item, in a few words, or None."""
    try:
        item = ChatItem.model_validate_json(line)
    except ValidationError as error:
        return first_problem(error)
    calls = call_lines(item.messages[2].content)
    if len(calls) != 1:
        return f"the reply holds {len(calls)} lines with a call, but one is expected"
    try:
        return validate_call(json.loads(calls[0]))
    except json.JSONDecodeError as error:
        return f"the call is not valid JSON ({error})"


def reference_call(item: Item) -> Call:
    """The call of an item's own reply."""
    call = find_call(item["messages"][2]["content"])
    assert call is not None
    return call


# Chats and tokens.


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int = 1024) -> dict[str, list[int]]:
    """Token ids of a chat, with labels on the assistant's last message and the token that ends its turn alone.

    Everything before it (rules, request, the header of the reply) and the line break after it carry the label -100,
    which the loss leaves out.

    Raises:
        ValueError: the last message is not the assistant's, the chat is longer than `max_length` tokens, or the
            tokenizer's chat template cannot be trained on; the message says why.
    """
    if (role := messages[-1]["role"]) != "assistant":
        raise ValueError(f"The last message is the {role}'s, but the assistant's is expected.")
    prompt = _tokens(tokenizer, messages[:-1], add_generation_prompt=True)
    ids = _tokens(tokenizer, messages)
    if ids[: len(prompt)] != prompt:
        raise ValueError("The tokenizer's chat template changes the prompt once a reply follows: choose another model.")
    if len(ids) > max_length:
        raise ValueError(f"A chat has {len(ids)} tokens: shorten it, or raise max_length, which is {max_length}.")
    end = _end_of_turn(tokenizer, ids, len(prompt))
    labels = [-100] * len(prompt) + ids[len(prompt) : end] + [-100] * (len(ids) - end)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _end_of_turn(tokenizer: Any, ids: list[int], start: int) -> int:
    """Where the reply that begins at `start` ends, its end token included: the last special token of the chat."""
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ends = [i + 1 for i in range(start, len(ids)) if ids[i] in special]
    if not ends:
        raise ValueError(
            "The tokenizer's chat template puts no end token after a reply, so that a model would never learn to stop: "
            "add one to the template, such as {{ eos_token }}."
        )
    return ends[-1]


def pad_token_id(model: Any, tokenizer: Any) -> int:
    """The token to pad with; the end token stands in for a missing one, since padding is masked.

    Raises:
        ValueError: there is neither, or the model has no row for it.
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if pad is None or not 0 <= pad < rows:
        raise ValueError(
            f"The tokenizer pads with token {pad}, but the model has rows for 0 to {rows - 1}: set "
            "tokenizer.pad_token = tokenizer.eos_token."
        )
    return int(pad)


def _tokens(tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template: take the instruct version of the model.")
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise ValueError(
            f"The model's chat template refuses the chat ({error}): where it has no system role, put the rules in "
            "front of the first request."
        ) from None
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
        model, tokenizer: a causal language model, on any device, and its tokenizer.
        items: items of the set; the reference reply in them is not shown to the model.
        max_new_tokens, batch_size: where a reply is cut, and how many requests are answered at once.
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
    restore_order(model)
    pad = pad_token_id(model, tokenizer)
    ends = _end_tokens(model, tokenizer)
    for start in tqdm(range(0, len(order), batch_size), desc=label, leave=False):
        indices = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in indices)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in indices], device=device)
        mask = torch.tensor([[int(k >= width - len(prompts[i])) for k in range(width)] for i in indices], device=device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=ends,
            )
        for i, tokens in zip(indices, out[:, width:].tolist(), strict=True):
            replies[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    model.train(was_training)
    return replies


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a reply: the one of the chat template, which need not be the tokenizer's, and the model's."""
    ids = _tokens(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    with contextlib.suppress(ValueError):  # a template without an end token: the model's own is all there is
        ends.add(ids[_end_of_turn(tokenizer, ids, len(ids) // 2) - 1])
    return sorted(token for token in ends if token is not None)
