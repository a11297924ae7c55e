"""A chat as a model takes it: encoded for training with the reply's labels, and asked for a reply."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from dora_lesson.adapters.linear4bit import restore_packed_bytes
from dora_lesson.core import whole
from dora_lesson.task_api.dataset import Item, is_chat, require_items

# Without these a model's own generation_config may search beams, or punish words that the list and the call share.
_GREEDY: Any = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}
_GREEDY |= {"no_repeat_ngram_size": 0}


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int = 1024) -> dict[str, list[int]]:
    """Token ids of a chat, with labels on the assistant's last message and the token that ends its turn alone.

    Everything before it (rules, request, the header of the reply) and the line break after it carry the label -100,
    which the loss leaves out.

    Raises:
        ValueError: the last message is not the assistant's, the chat is longer than `max_length` tokens, or the
            tokenizer's chat template cannot be trained on; the message says why.
    """
    if not is_chat(messages):
        raise ValueError("A list of messages is expected, each with a `role` and a text: pass item['messages'].")
    (max_length,) = whole(max_length=max_length)
    if (role := messages[-1]["role"]) != "assistant":
        raise ValueError(f"The last message is the {role}'s, but the assistant's is expected.")
    reply = messages[-1].get("content") or ""
    if not reply.strip() or reply != reply.lstrip():
        raise ValueError(f"The reply is {reply!r}: a text that does not begin with spaces or line breaks is expected.")
    prompt = _tokens(tokenizer, messages[:-1], ask=True)
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
        raise ValueError("The tokenizer's chat template puts no end token after a reply: add one, {{ eos_token }}.")
    return ends[-1]


def pad_token_id(model: Any, tokenizer: Any, chats: Iterable[Sequence[int]] = ()) -> int:
    """The token to pad these chats with; the end token stands in for a missing one, since padding is masked.

    Raises:
        ValueError: there is neither, or the model has no row for it or for a token of the chats.
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows, largest = model.get_input_embeddings().weight.shape[0], max(map(max, chats), default=0)
    if pad is None or not 0 <= pad < rows:
        raise ValueError(f"The tokenizer pads with token {pad}, of {rows}: set tokenizer.pad_token to its eos_token.")
    if largest >= rows:
        raise ValueError(f"A chat has token {largest}, but the model has {rows} rows: load the model's own tokenizer.")
    return int(pad)


def _tokens(tokenizer: Any, messages: Sequence[dict[str, str]], ask: bool = False) -> list[int]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template: take the instruct version of the model.")
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        todo = "where it has no system role, put the rules in front of the first request"
        raise ValueError(f"The model's chat template refuses the chat ({error}): {todo}.") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


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
        items: items of the set; a reply at their end is not shown to the model.
        max_new_tokens, batch_size: where a reply is cut, and how many requests are answered at once.
        label: what the progress bar says.
    """
    import torch
    from tqdm.auto import tqdm

    batch_size, max_new_tokens = whole(batch_size=batch_size, max_new_tokens=max_new_tokens)
    chats = [item["messages"] for item in require_items(items)]
    prompts = [_tokens(tokenizer, c[:-1] if c[-1]["role"] == "assistant" else c, ask=True) for c in chats]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding, and the same for every model
    replies = [""] * len(prompts)
    device = next(model.parameters()).device
    pad, ends = pad_token_id(model, tokenizer, prompts), _end_tokens(model, tokenizer)
    was_training = model.training
    restore_packed_bytes(model.eval())
    try:
        for start in tqdm(range(0, len(order), batch_size), desc=label, leave=False):
            indices = order[start : start + batch_size]
            rows = [prompts[i] for i in indices]
            width = max(len(row) for row in rows)
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
            limits = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, "eos_token_id": ends}
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=mask, **limits, **_GREEDY)
            for i, tokens in zip(indices, out[:, width:].tolist(), strict=True):
                replies[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    finally:
        model.train(was_training)
    return replies


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a reply: the one of the chat template, which need not be the tokenizer's, and the model's."""
    ids = _tokens(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    with contextlib.suppress(ValueError):  # a template without an end token: the model's own is all there is
        ends.add(ids[_end_of_turn(tokenizer, ids, len(ids) // 2) - 1])  # the reply is in the second half
    return sorted(token for token in ends if token is not None)
