"""The Task API set: what an item is, how it is read, encoded for training and answered; `scoring` judges the replies.

An item is a chat of three messages. The system message holds the rules, today's date and the open tasks; the user asks;
the assistant replies in a few sentences and puts one JSON call on a line of its own. `data/README.md` is the datasheet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dora_lesson.core import DATA, first_problem
from dora_lesson.task_api.calls import validate_call

CATEGORIES = ["creation", "completion", "updates", "queries", "coaching", "edge cases", "boundaries"]
SPLITS = ["train", "validation", "test"]

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


def load_task_api(split: str, folder: Path | str | None = None) -> Any:
    """One split of the set as a `datasets.Dataset` with the columns id, category and messages.

    Args:
        split: train, validation or test.
        folder: where `{split}.jsonl` lies; None is the course's own set.

    Raises:
        ValueError: an unknown split, or an invalid line; the message names file and line.
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


def validate_item(line: str) -> str | None:
    """What keeps a JSON line from being an item, in a few words, or None."""
    try:
        item = ChatItem.model_validate_json(line)
    except ValidationError as error:
        return first_problem(error)
    calls = [line for line in item.messages[2].content.splitlines() if line.lstrip().startswith("{")]
    if len(calls) != 1:
        return f"the reply holds {len(calls)} lines with a call, but one is expected"
    try:
        return validate_call(json.loads(calls[0]))
    except json.JSONDecodeError as error:
        return f"the call is not valid JSON ({error})"


# Chats and tokens.


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int = 1024) -> dict[str, list[int]]:
    """Token ids of a chat, with labels on the assistant's last message and its end token alone.

    Everything before it (rules, request, the header of the reply) and the line break after it carry the label -100,
    which the loss leaves out.

    Raises:
        ValueError: the last message is not the assistant's, the chat is longer than `max_length` tokens, or the
            tokenizer's chat template does not put the reply after the prompt.
    """
    if (role := messages[-1]["role"]) != "assistant":
        raise ValueError(f"The last message is the {role}'s, but the assistant's is expected.")
    prompt = _tokens(tokenizer, messages[:-1], add_generation_prompt=True)
    ids = _tokens(tokenizer, messages)
    if ids[: len(prompt)] != prompt:
        raise ValueError("The tokenizer's chat template changes the prompt once a reply follows: choose another model.")
    if len(ids) > max_length:
        raise ValueError(f"A chat has {len(ids)} tokens: shorten it, or raise max_length, which is {max_length}.")
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
    for start in tqdm(range(0, len(order), batch_size), desc=label, leave=False):
        indices = order[start : start + batch_size]
        batch = {"input_ids": [prompts[i] for i in indices]}
        padded = tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(device)
        with torch.inference_mode():
            out = model.generate(
                **padded, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        for i, tokens in zip(indices, out[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            replies[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    model.train(was_training)
    return replies
