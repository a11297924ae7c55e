"""Days as people say them: what a call holds, and the date that the app makes of it."""

from __future__ import annotations

import calendar
import datetime
import functools
import re
from collections.abc import Callable
from typing import Any

from dora_lesson.task_api.words import WORDS

# In English whatever the computer's locale, which `calendar` and `strftime` follow.
WEEKDAYS, MONTHS = WORDS["weekdays"], WORDS["months"]
_HOURS = {"noon": "12:00", "12 noon": "12:00", "midday": "12:00", "midnight": "00:00"}
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def resolve(due: str, today: datetime.date) -> datetime.date:
    """The date that a day stands for, when it is said today.

    Args:
        due: "today", "this evening", "tomorrow", "yesterday", "thursday", "next thursday" (of the next calendar week),
            "in 3 days", "in two weeks", "the 14th", "14 march", "saturday 14 march", "the weekend" (its Saturday; on a
            Sunday, today), "end of the month", or a date such as 2026-03-14. A weekday is the coming one, never today.
            A day without a year is the next one.
        today: the day on which it is said.

    Raises:
        ValueError: this is not a day, or not one of the calendar, or `today` is not a date.
    """
    return first_and_last(due, today)[0]


def first_and_last(due: str, today: datetime.date) -> tuple[datetime.date, datetime.date]:
    """The dates from and to which a day lasts, said today: one day, or the weekend's two, or next week's seven.

    Raises:
        ValueError: as in `resolve`.
    """
    meaning, today = meaning_of(due), as_date(today, "today")
    try:
        first = meaning(today)
        to_sunday = 6 - first.weekday() if _said(due) in ("next week", "weekend", "next weekend") else 0
        return first, first + datetime.timedelta(to_sunday)
    except (ValueError, OverflowError):
        raise ValueError(f"The calendar has no day {due!r}.") from None


def as_date(day: Any, name: str) -> datetime.date:
    """The date of a date or a `datetime`."""
    if not isinstance(day, datetime.date) or day != day:  # pandas has a date that is none, unlike itself
        raise ValueError(f"{name} is {day!r}, but a date is expected, such as datetime.date(2026, 3, 2).")
    return day.date() if isinstance(day, datetime.datetime) else day


def clock(time: str | datetime.time) -> str:
    """A time of day on the 24-hour clock: "15:00" for "3pm", "3:00 pm", "15:00" and "at 3pm"; "12:00" for "noon".

    Raises:
        ValueError: this is not a time of day.
    """
    said = re.sub(r"^(at|by)\s+|[,;!?.]+$", "", str(time).strip().lower())
    found = re.fullmatch(r"(\d{1,2})(?:[:.](\d\d)(?::\d\d(?:\.\d+)?)?)?(?:\s*([ap])\.?m\.?)?", _HOURS.get(said, said))
    if found and (found[2] or found[3]):
        hour, minute = int(found[1]), int(found[2] or 0)
        if found[3]:
            hour = hour % 12 + 12 * (found[3] == "p") if 1 <= hour <= 12 else 24
        if hour < 24 and minute < 60:
            return f"{hour:02}:{minute:02}"
    raise ValueError(f"{time!r} is not a time: say one such as 3pm or 15:00.")


def meaning_of(due: str) -> Callable[[datetime.date], datetime.date]:
    """What makes a date of today, for a day as it was said."""
    said = _said(due)
    for pattern, meaning in _DAYS.items():
        if found := re.fullmatch(pattern, said):
            return functools.partial(meaning, *found.groups())
    raise ValueError(f"{due!r} is not a day: say one such as tomorrow, thursday, the 14th or 14 march.")


def _said(due: str) -> str:
    """A day in lower case, without what may stand around it, its punctuation and the endings of its numbers.

    "at 3" and "by 12" stay as they are, which is no day: they are hours.
    """
    said = re.sub(r"\s+", " ", re.sub(r"[.,;!?](?!\d)", "", str(due).lower())).strip()
    said = re.sub(r"^((on|due|this|the|coming|(at|by|for|until|till)(?! \d+$)) )+", "", said)
    return re.sub(r"(?<=\d)(st|nd|rd|th)\b| (morning|afternoon|evening|night)$", "", said)


def day_word(date: datetime.date, today: datetime.date) -> str:
    """How a date is said today: "tomorrow", "thursday" within a week, then "14 march". `resolve` gives it back."""
    days = (date - today).days
    if -1 <= days <= 1:
        return ("yesterday", "today", "tomorrow")[days + 1]
    if 1 < days < 7:
        return WEEKDAYS[date.weekday()]
    return f"{date.day} {MONTHS[date.month - 1]}" if 0 < days < 365 else date.isoformat()


def long_date(date: datetime.date) -> str:
    """A date in full, but for its year: "Monday 2 March"."""
    return f"{WEEKDAYS[date.weekday()]} {date.day} {MONTHS[date.month - 1]}".title()


def _weekday(following: str | None, name: str, today: datetime.date) -> datetime.date:
    index = [day[:3] for day in WEEKDAYS].index(name[:3])
    days = 7 - today.weekday() + index if following else (index - today.weekday() - 1) % 7 + 1
    return today + datetime.timedelta(days)


def _after(count: str, unit: str, today: datetime.date) -> datetime.date:
    number = int(count) if count.isdigit() else _NUMBERS.index(count) + 1 if count != "a" else 1
    return today + datetime.timedelta(number * (7 if unit.startswith("week") else 1))


def _monthday(name: str | None, day: str, month: str | None, year: str | None, today: datetime.date) -> datetime.date:
    number = [name[:3] for name in MONTHS].index(month[:3]) + 1 if month else None
    ahead = (today + datetime.timedelta(days) for days in range(8 * 366))  # 29 February may be eight years away
    coming = (date for date in ahead if date.day == int(day) and number in (None, date.month))
    date = datetime.date(int(year), number or 0, int(day)) if year else next(coming, None)
    if date is None or not WEEKDAYS[date.weekday()].startswith((name or "")[:3]):
        raise ValueError
    return date


_WEEKDAY = "(mon|tues?|weds?|thu|thur|thurs|fri|sat|sun|" + "|".join(WEEKDAYS) + ")"
_MONTH = "(" + "|".join(f"{month[:3]}|{month}" for month in MONTHS) + "|sept)"
_DAYS: dict[str, Callable[..., datetime.date]] = {
    r"(?:later )?today|tonight|morning|afternoon|evening": lambda today: today,
    r"tomorrow|tmrw?": lambda today: today + datetime.timedelta(1),
    r"yesterday": lambda today: today - datetime.timedelta(1),
    r"day after tomorrow": lambda today: today + datetime.timedelta(2),
    rf"(next\s+)?{_WEEKDAY}": _weekday,
    rf"{_WEEKDAY}\s+next\s+week": functools.partial(_weekday, "next"),
    r"weekend": lambda today: max(today, today + datetime.timedelta(5 - today.weekday())),
    r"next\s+weekend": functools.partial(_weekday, "next", "saturday"),
    r"next week": functools.partial(_weekday, "next", "monday"),
    rf"in\s+(\d+|a|{'|'.join(_NUMBERS)})\s+(days?|weeks?)": _after,
    r"end of (?:the |this )?month": lambda today: today.replace(day=calendar.monthrange(today.year, today.month)[1]),
    rf"(?:{_WEEKDAY} (?:the )?)?(\d{{1,2}})(?: (?:of )?{_MONTH}(?: (\d{{4}}))?)?": _monthday,
    rf"(?:{_WEEKDAY} )?{_MONTH} (?:the )?(\d{{1,2}})(?: (\d{{4}}))?": (
        lambda weekday, month, day, year, today: _monthday(weekday, day, month, year, today)
    ),
    r"(\d{4}-\d{2}-\d{2})": lambda iso, today: datetime.date.fromisoformat(iso),
}
