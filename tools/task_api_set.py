"""Build the Task API set from its sources: `python -m tools.task_api_set`.

A source record holds what a person said, the open tasks, the call and the reply, all written out; dates stand in it as
symbols. The build picks a today for each record on which its words make sense, fills in the dates and the tasks'
numbers, and writes one JSON line an item. The same sources give the same bytes.
"""

from __future__ import annotations

import calendar
import datetime
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dora_lesson.task_api.dataset import CATEGORIES, SPLITS, validate_item
from dora_lesson.task_api.scoring import content_words

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data" / "task_api"
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
RULES = (
    "You are TaskMaster, the assistant of a task list. Reply in two or three short sentences: acknowledge, say what "
    "you did, offer one next step. Then put one JSON call on a line of its own. Calls: create (title, due, time, "
    "priority), complete (task), update (task, changes), delete (task), list (due, until, priority), search (query), "
    "none."
)
Record = dict[str, Any]


def build() -> dict[str, list[dict[str, Any]]]:
    """All items, by split."""
    items: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for category in CATEGORIES:
        path = FOLDER / "source" / f"{category.replace(' ', '_')}.jsonl"
        counts = dict.fromkeys(SPLITS, 0)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
                split = record["split"]
                counts[split] += 1
                name = f"{split}/{category.replace(' ', '-')}/{counts[split]:03}"
                items[split].append(item(name, category, record))
            except (KeyError, ValueError) as error:
                raise SystemExit(f"{path.name}, line {number}: {error}") from error
    for split, chosen in items.items():
        random.Random(f"order of {split}").shuffle(chosen)  # a reader who browses meets all categories
    return items


def item(name: str, category: str, record: Record) -> dict[str, Any]:
    """One item: the record with a today, dates and task numbers filled in."""
    chance = random.Random(name)
    today = _today(record, chance)
    titles = [title for title, _, _ in record["tasks"]]
    numbers = sorted(chance.sample(range(1, 60), len(titles)))
    number_of = dict(zip(titles, numbers, strict=True))
    lines = [RULES, f"Today is {today:%A %Y-%m-%d}.", "Open tasks:" if titles else "Open tasks: none."]
    for number, (title, due, priority) in zip(numbers, record["tasks"], strict=True):
        notes = ", ".join(note for note in (due and f"due {resolve(due, today)}", priority) if note)
        lines.append(f"{number}. {title}" + (f" ({notes})" if notes else ""))
    call = dict(record["call"])
    for key in ("due", "until"):
        if call.get(key) is not None:
            call[key] = str(resolve(call[key], today))
    if "task" in call:
        call["task"] = number_of[call["task"]]
    messages = [
        {"role": "system", "content": "\n".join(lines)},
        {"role": "user", "content": record["user"]},
        {"role": "assistant", "content": f"{record['reply']}\n{json.dumps(call, ensure_ascii=False)}"},
    ]
    made = {"id": name, "category": category, "messages": messages}
    if problem := validate_item(json.dumps(made)):
        raise ValueError(problem)
    return made


def resolve(symbol: str, today: datetime.date) -> datetime.date:
    """The date that a symbol such as +1, fri, next mon, d14, 03-21 or eom stands for."""
    if re.fullmatch(r"[+-]\d+", symbol):
        return today + datetime.timedelta(int(symbol))
    if symbol in DAYS:
        return today + datetime.timedelta((DAYS.index(symbol) - today.weekday() - 1) % 7 + 1)
    if symbol.startswith("next "):
        return today + datetime.timedelta(7 - today.weekday() + DAYS.index(symbol.removeprefix("next ")))
    if symbol == "eom":
        return today.replace(day=calendar.monthrange(today.year, today.month)[1])
    if day := re.fullmatch(r"d(\d+)", symbol):
        return _first(today, lambda date: date.day == int(day.group(1)))
    if re.fullmatch(r"\d\d-\d\d", symbol):
        return _first(today, lambda date: f"{date:%m-%d}" == symbol)
    raise ValueError(f"{symbol!r} is not a date symbol")


def _first(today: datetime.date, fits: Any) -> datetime.date:
    for days in range(366):
        if fits(date := today + datetime.timedelta(days)):
            return date
    raise ValueError("no such day within a year")


def _today(record: Record, chance: random.Random) -> datetime.date:
    """A day on which the record's dates read well: "Friday" is not said on a Friday, nor "the 14th" a month ahead."""
    call = record["call"]
    symbols = {due for _, due, _ in record["tasks"] if due} | {call[k] for k in ("due", "until") if call.get(k)}
    for strictly in (True, False):  # open tasks may have to be less natural than what is said
        wanted = symbols if strictly else {call[k] for k in ("due", "until") if call.get(k)}
        for _ in range(4000):
            today = datetime.date(2025, 1, 1) + datetime.timedelta(chance.randrange(730))
            if all(_natural(symbol, today) for symbol in wanted):
                return today
    raise ValueError(f"no today fits the dates {sorted(symbols)}")


def _natural(symbol: str, today: datetime.date) -> bool:
    weekday = DAYS.index(symbol.removeprefix("next ")) if symbol.removeprefix("next ") in DAYS else None
    if weekday is not None:
        late = weekday in (4, 5) and today.weekday() > weekday  # "the weekend", "the end of the week"
        return today.weekday() != weekday and (symbol.startswith("next ") or not late)
    days = (resolve(symbol, today) - today).days
    if symbol == "eom":
        return 4 <= days <= 20
    if symbol.startswith("d"):
        return 2 <= days <= 20
    return 3 <= days <= 60 if "-" in symbol[1:] else True


def near_duplicates(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Pairs of ids whose requests share more than half of their words, or whose created titles agree."""
    others = [(item["id"], set(content_words(item["messages"][1]["content"])), created(item)) for item in there]
    for item in here:
        words, title = set(content_words(item["messages"][1]["content"])), created(item)
        for name, other, other_title in others:
            shared = len(words & other) / max(1, len(words | other))
            if shared > 0.5 or (title and title == other_title):
                yield item["id"], name


def created(item: dict[str, Any]) -> frozenset[str]:
    """The words of the title that an item's call creates; empty for other calls."""
    call = json.loads(item["messages"][2]["content"].splitlines()[-1])
    return frozenset(content_words(call["title"])) if call["action"] == "create" else frozenset()


def text(items: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def main() -> None:
    items = build()
    later = [*near_duplicates(items["test"], items["train"]), *near_duplicates(items["validation"], items["train"])]
    later += near_duplicates(items["test"], items["validation"])
    for pair in later:
        print("too much alike:", *pair, file=sys.stderr)
    if later:
        raise SystemExit("The splits share requests: change or drop one of each pair.")
    for split, chosen in items.items():
        (FOLDER / f"{split}.jsonl").write_text(text(chosen), encoding="utf-8")
        print(f"{split}: {len(chosen)} items")


if __name__ == "__main__":
    main()
