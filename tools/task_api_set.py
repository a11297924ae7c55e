"""Build the Task API set from its sources: `python -m tools.task_api_set`.

The plain level is drawn from phrasings and objects (`tools/plain_set.py`). The spoken level is written out: a record
holds what a person said, the open tasks, the call and the reply, with days as symbols. The same sources give the same
bytes.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dora_lesson.task_api.app import Task, TaskList
from dora_lesson.task_api.calls import call_schema
from dora_lesson.task_api.dataset import CATEGORIES, SPLITS, validate_item
from dora_lesson.task_api.days import MONTHS, WEEKDAYS, resolve
from dora_lesson.task_api.words import content_words
from tools.plain_set import KINDS, SIZES, Draw, PlainLevel, ordinal

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data" / "task_api"
Item = dict[str, Any]


def plain() -> dict[str, list[Item]]:
    """The items of the plain level, by split; none is much like one of an earlier split."""
    level = PlainLevel(yaml.safe_load((FOLDER / "source" / "plain.yaml").read_text(encoding="utf-8")))
    items: dict[str, list[Item]] = {}
    for split, size in SIZES.items():
        chance = random.Random(f"plain {split}")
        earlier = [words_of(item) for others in items.values() for item in others]
        chosen: dict[str, Item] = {}
        for kind in chance.choices([*KINDS], [share for share, _ in KINDS.values()], k=size):
            while not _add(Draw(level, split, kind, chance).made(), split, chosen, earlier):
                pass
        items[split] = [*chosen.values()]
    return items


def _add(drawn: Any, split: str, chosen: dict[str, Item], earlier: list[frozenset[str]]) -> bool:
    """Add what was drawn to a split; False if it is there already, or much like a request of an earlier split."""
    if drawn is None:
        return False
    category, messages, call = drawn
    chat = "\n".join(message["content"] for message in messages[:2])
    made = item(f"plain/{split}/{len(chosen) + 1:04}", category, messages, call)
    words = words_of(made)
    if chat in chosen or any(alike(words, others) for others in earlier):
        return False
    chosen[chat] = made
    return True


def spoken() -> dict[str, list[Item]]:
    """The items of the spoken level, by split."""
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for category in CATEGORIES:
        path = FOLDER / "source" / f"{category.replace(' ', '_')}.jsonl"
        counts = dict.fromkeys(SPLITS, 0)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
                split = record["split"]
                counts[split] += 1
                items[split].append(
                    _spoken(f"spoken/{split}/{category.replace(' ', '-')}/{counts[split]:03}", category, record)
                )
            except (KeyError, ValueError) as error:
                raise SystemExit(f"{path.name}, line {number}: {error}") from error
    for split, chosen in items.items():
        random.Random(f"order of {split}").shuffle(chosen)  # a reader who browses meets all categories
    return items


def item(name: str, category: str, messages: list[dict[str, str]], call: dict[str, Any]) -> Item:
    """One item, whose call is put under its reply."""
    *chat, reply = messages
    content = f"{reply['content']}\n{json.dumps(call, ensure_ascii=False)}"
    made = {"id": name, "category": category, "messages": [*chat, {"role": "assistant", "content": content}]}
    if problem := validate_item(json.dumps(made)):
        raise ValueError(f"{name}: {problem}")
    return made


def _spoken(name: str, category: str, record: dict[str, Any]) -> Item:
    """One item of a record: the symbols become days as they are said, and the tasks get their numbers."""
    today = _today(record, random.Random(name))
    tasks = [
        Task(title, resolve(said(due), today) if due else None, None, priority or None)
        for title, due, priority in record["tasks"]
    ]
    call = dict(record["call"])
    call |= {key: said(call[key]) for key in ("due", "until") if call.get(key)}
    if "task" in call:
        call["task"] = [title for title, _, _ in record["tasks"]].index(call["task"]) + 1
    messages = TaskList(tasks, today).messages(record["user"])
    return item(name, category, [*messages, {"role": "assistant", "content": record["reply"]}], call)


def said(symbol: str) -> str:
    """How people say a day that stands in the sources as a symbol such as +1, fri, next mon, d14, 03-21 or eom."""
    if re.fullmatch(r"[+-]\d+", symbol):
        near = {"-1": "yesterday", "+0": "today", "+1": "tomorrow", "+7": "in a week", "+14": "in two weeks"}
        return near.get(symbol) or f"in {int(symbol)} days"
    if (day := symbol.removeprefix("next "))[:3] in [name[:3] for name in WEEKDAYS]:
        name = next(name for name in WEEKDAYS if name.startswith(day))
        return f"next {name}" if symbol.startswith("next ") else name
    if day_of_month := re.fullmatch(r"d(\d+)", symbol):
        return f"the {ordinal(int(day_of_month[1]))}"
    if date := re.fullmatch(r"(\d\d)-(\d\d)", symbol):
        return f"{int(date[2])} {MONTHS[int(date[1]) - 1]}"
    if symbol == "eom":
        return "end of the month"
    raise ValueError(f"{symbol!r} is not a date symbol")


def _today(record: dict[str, Any], chance: random.Random) -> datetime.date:
    """A day on which the record's days read well: "Friday" is not said on a Friday, nor "the 14th" a month ahead."""
    call = record["call"]
    asked = {call[k] for k in ("due", "until") if call.get(k)}
    for wanted in (asked | {due for _, due, _ in record["tasks"] if due}, asked):  # if need be, what is said alone
        for _ in range(4000):
            today = datetime.date(2025, 1, 1) + datetime.timedelta(chance.randrange(730))
            if all(_natural(symbol, today) for symbol in wanted):
                return today
    raise ValueError(f"no today fits the days {sorted(asked)}")


def _natural(symbol: str, today: datetime.date) -> bool:
    day, days = said(symbol), (resolve(said(symbol), today) - today).days
    name = day.removeprefix("next ")
    if name in WEEKDAYS:
        index = WEEKDAYS.index(name)
        late = index in (4, 5) and today.weekday() > index  # "the weekend", "the end of the week"
        return today.weekday() != index and (day != name or not late)
    if symbol == "eom":
        return 4 <= days <= 20
    if symbol.startswith("d"):
        return 2 <= days <= 20
    return 3 <= days <= 60 if "-" in symbol[1:] else True


def words_of(item: Item) -> frozenset[str]:
    """The words of a request."""
    return frozenset(re.findall(r"[^\W_]+", item["messages"][1]["content"].lower()))


def alike(here: frozenset[str], there: frozenset[str]) -> bool:
    """Whether two requests of the plain level share three quarters of their words."""
    return len(here & there) >= 0.75 * len(here | there)


def near_duplicates(here: list[Item], there: list[Item]) -> Iterator[tuple[str, str]]:
    """Pairs of ids whose requests are too much alike for two splits.

    The plain level is made of phrasings, so that three quarters of all words count; the spoken one of what people
    said: there half of the content words do, or a created title that agrees.
    """
    others = [(item["id"], *_marks(item)) for item in there]
    for item in here:
        words, title = _marks(item)
        for name, other, other_title in others:
            if item["id"].startswith("plain"):
                same = alike(words, other)
            else:
                same = len(words & other) > 0.5 * len(words | other) or bool(title and title == other_title)
            if same:
                yield item["id"], name


def _marks(item: Item) -> tuple[frozenset[str], frozenset[str]]:
    """The words by which a request is compared, and those of a title that it creates."""
    if item["id"].startswith("plain"):
        return words_of(item), frozenset()
    return frozenset(content_words(item["messages"][1]["content"])), created(item)


def created(item: Item) -> frozenset[str]:
    """The words of the title that an item's call creates; empty for other calls."""
    call = json.loads(item["messages"][2]["content"].splitlines()[-1])
    return frozenset(content_words(call["title"])) if call["action"] == "create" else frozenset()


def text(items: list[Item]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def main() -> None:
    for name, items in {"plain": plain(), "spoken": spoken()}.items():
        pairs = [("test", "train"), ("validation", "train"), ("test", "validation")]
        alike_ones = [pair for here, there in pairs for pair in near_duplicates(items[here], items[there])]
        for pair in alike_ones:
            print("too much alike:", *pair, file=sys.stderr)
        if alike_ones:
            raise SystemExit("The splits share requests: change or drop one of each pair.")
        for split, chosen in items.items():
            (FOLDER / name).mkdir(exist_ok=True)
            (FOLDER / name / f"{split}.jsonl").write_text(text(chosen), encoding="utf-8")
            print(f"{name}, {split}: {len(chosen)} items")
    (FOLDER / "calls.schema.json").write_text(json.dumps(call_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
