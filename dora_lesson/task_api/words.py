"""The words of a text as the scores see them."""

from __future__ import annotations

import json
import re

from dora_lesson.core import DATA

WORDS = json.loads((DATA / "task_api" / "words.json").read_text(encoding="utf-8"))
STOP_WORDS, FILLERS, BANNED = frozenset(WORDS["stop"]), frozenset(WORDS["fillers"]), WORDS["banned"]


def content_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and stop words."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?[+#]*", text.lower().replace("\u2019", "'"))
    return [word for word in (word.removesuffix("'s") for word in words) if word not in STOP_WORDS]


def stems_of(text: str) -> set[str]:
    """Content words without endings, cut to five letters, so that mow and mowing, invoice and invoices agree."""
    words = [word for word in content_words(text) if word not in FILLERS]
    return {re.sub(r"(ing|ed|es|s|e)$", "", word)[:5] if len(word) > 3 else word for word in words}
