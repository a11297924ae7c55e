"""Persona consistency: five rules of two points each for the sentences of a reply, held against its call."""

from __future__ import annotations

import contextlib
import datetime
import re

from dora_lesson.task_api.calls import Call, call_lines, find_call, reply_text, text_lines, validate_call
from dora_lesson.task_api.dataset import Item, reference_call
from dora_lesson.task_api.days import MONTHS, WEEKDAYS, clock, day_word, resolve
from dora_lesson.task_api.words import BANNED, WORDS, stems_of

# In a pattern, WEEKDAY and MONTH stand for any of them; a month counts beside a number alone, for "may" is a verb.
_NAMES = {"WEEKDAY": "|".join(WEEKDAYS), "MONTH": "|".join(MONTHS)} | WORDS["names"]
_CLAIMS, _DENIALS, _SAYS = (
    {name: re.compile(re.sub("|".join(_NAMES), lambda x: _NAMES[x[0]], each)) for name, each in WORDS[kind].items()}
    for kind in ("claims", "denials", "patterns")
)


def persona_points(reply: str, item: Item) -> dict[str, int]:
    """Points from 0 to 2 for each rule of the persona; their sum, 0 to 10, is the reply's persona consistency.

    - acknowledge: 2 if the text takes up a word of the request or of the task that the request is about, 1 if only a
      word of another open task.
    - deliver: 1 for exactly one valid call, on a line of its own, of the right action and of a task that exists; 1 if
      the text says what the call does: it names what it acts on; for a list its day, a task, or that there is none.
    - propose: 2 if the last sentence asks or offers something about the matter at hand, 1 if about anything.
    - vocabulary: 2, less 1 for each kind of lapse: a banned phrase, an exclamation mark, more than 60 words or four
      sentences, or three words in a row that come twice.
    - boundaries: 2 where the reply acts if the reference acts and holds back if it holds back; a refusal of a request
      that can be met, or action where none was called for, gives 0.

    A text that contradicts its call loses the points for acknowledge, deliver and boundaries: one that claims what the
    call does not do, that says of another task what the call does to this one, that names another day, time or
    priority, or that asks alone where the call acts. A reply with fewer than four words of text gets no points for
    vocabulary and boundaries.
    """
    system, user = item["messages"][0]["content"], item["messages"][-2]["content"]
    call, expected = find_call(reply) or {}, reference_call(item)
    call |= {"task": str(call["task"]).strip("# ")} if "task" in call else {}
    text = reply_text(reply)
    lowered = "\n".join(text_lines(reply)).lower().replace("\u2019", "'")
    parts = re.split(r"(?<=[.?!…])\s+|;\s+|\s+[-–—]\s+|\n+", lowered)
    sentences = [part for part in parts if re.search(r"\w", part)]
    stated = [s for s in sentences if not _SAYS["asks"].search(s)]  # an offer claims nothing
    stems, tasks = stems_of(text), dict(re.findall(r"^(\d+)\. (.+)$", system, flags=re.M))
    titles = {number: _title(line) for number, line in tasks.items()}
    request_words = stems_of(user) | stems_of(_subject(expected, titles))
    all_words = request_words | {stem for title in titles.values() for stem in stems_of(title)}
    says_it = _says_what_it_does(call, lowered, stems & all_words, titles)
    shows_tasks = says_it and expected["action"] == call.get("action") == "list"
    taken_up = bool(stems & request_words) or not request_words or shows_tasks
    points = {"acknowledge": 2 if taken_up else int(bool(stems & all_words))}
    valid = len(call_lines(reply)) == 1 and validate_call(call) is None and call["action"] == expected["action"]
    valid = valid and ("task" not in call or str(call["task"]) in titles)
    points["deliver"] = int(valid) + int(says_it)
    last = sentences[-1] if sentences else ""
    offers = bool(_SAYS["asks"].search(last)) or bool(_SAYS["offer"].match(last))
    about = stems & (all_words if expected["action"] in ("list", "none") else request_words)
    points["propose"] = (1 + bool(about or shows_tasks or not titles)) if offers else 0
    words = len(text.split())
    threes = list(zip(lowered.split(), lowered.split()[1:], lowered.split()[2:], strict=False))
    lapses = any(phrase in lowered for phrase in BANNED) + ("!" in text) + (len(threes) > len(set(threes)))
    lapses += words > 60 or len(sentences) > 4
    points["vocabulary"] = max(0, 2 - lapses) if words >= 4 else 0
    acts = call.get("action", "none") != "none"
    refuses = any(map(_SAYS["refusal"].search, stated))
    acts_as_expected = not acts if expected["action"] == "none" else acts and not refuses
    points["boundaries"] = 2 if acts_as_expected and words >= 4 else 0
    # Where it acts, to ask alone is a contradiction too.
    if (acts and text and not stated) or contradicts(stated, call or {"action": "none"}, user, tasks, _today(system)):
        points |= dict.fromkeys(("acknowledge", "deliver", "boundaries"), 0)
    return points


def contradicts(
    sentences: list[str], call: Call, request: str, tasks: dict[str, str], today: datetime.date | None = None
) -> bool:
    """Whether a sentence that a reply states, in lower case and no question, disagrees with the reply's call.

    `tasks` are the lines of the list, by number; without `today`, "saturday" and "tomorrow" are never the same day.
    """
    titles = {number: _title(line) for number, line in tasks.items()}
    action, own, subject = str(call.get("action")), str(call.get("task")), _subject(call, titles)
    stems, others = stems_of(" ".join(sentences)), [line for number, line in tasks.items() if number != own]
    of_others = stems_of(" ".join(map(_title, others))) - stems_of(subject)
    if own in titles and not stems_of(titles[own]) & stems and (of_others & stems) - stems_of(request):
        return True
    denials = [denial for actions, denial in _DENIALS.items() if action in actions.split()]
    claims = [claim for actions, claim in _CLAIMS.items() if action not in actions.split()]
    for sentence in sentences:
        if action not in ("list", "search"):  # these two show tasks, in whatever state they are
            said = _SAYS["done"].sub("", sentence) if len(sentences) > 1 or "," in sentence else sentence
            for title in filter(None, [*titles.values(), call.get("title"), call.get("query")]):  # these claim nothing
                said = said.replace(str(title).lower(), "it")
            clauses = [part for part in re.split(r",| and | but ", said) if not stems_of(part) & of_others]
            said = _SAYS["less"].sub("", _SAYS["condition"].sub("", said))
            said = _SAYS["on the list"].sub("", said) if action == "none" and stems_of(sentence) & of_others else said
            if any(d.search(part) for d in denials for part in clauses) or any(c.search(said) for c in claims):
                return True
        elif _SAYS["acts"].search(sentence):
            return True
        known = [line for line in others if stems_of(_title(line)) - stems_of(subject) & stems_of(sentence)]
        known += [*map(str, call.values()), titles.get(own, "")]
        if action not in ("create", "update") or not stems_of(subject) & stems_of(sentence):
            known.append(request)
        as_it_was = action in ("complete", "delete") or _SAYS["as it was"].search(sentence)
        of_any_task = action in ("search", "none") or call == {"action": "list"}
        known += tasks.values() if of_any_task else ["today"] if as_it_was else []
        for changed, named in (("due", _named_days), ("time", _named_times), ("priority", _named_priorities)):
            line = tasks.get(own, "") if as_it_was or changed not in call else ""
            meant = set().union(*named(" ".join([*known, line]).lower()))
            if changed == "due":
                meant = _all_names(meant | {str(call[key]) for key in ("due", "until") if call.get(key)}, today)
            if any(not readings & meant for readings in named(sentence)):
                return True
    return False


def _today(system: str) -> datetime.date | None:
    """The day that a system message says it is, in a year in which it has that weekday."""
    if found := re.search(r"today is (\w+),? (\d{1,2}) (\w+)", system.lower()):
        for year in range(2024, 2052):
            with contextlib.suppress(ValueError):
                day = datetime.date(year, MONTHS.index(found[3]) + 1, int(found[2]))
                if WEEKDAYS[day.weekday()] == found[1]:
                    return day
    return None


def _named_days(text: str) -> list[set[str]]:
    """The days that a text in lower case names: "friday", "14", "14 march"."""
    text = _SAYS["short day"].sub(lambda day: next(name for name in WEEKDAYS if name.startswith(day[0][:3])), text)
    named = [re.sub(r"(?<=\d)[a-z]+", "", day) for day in _SAYS["day"].findall(text)]
    return [{re.sub(r"^([a-z]+) (\d+)$", r"\2 \1", day)} for day in named]


def _all_names(days: set[str], today: datetime.date | None) -> set[str]:
    """These days, in all words in which they may be said today."""
    names = {*days}
    if today is None:
        return names
    for day in days:
        with contextlib.suppress(ValueError):
            date = resolve(day, today)
            ahead = (date - today).days + today.weekday()  # from Monday of this week
            weekday, month = WEEKDAYS[date.weekday()], MONTHS[date.month - 1]
            names |= {day_word(date, today), weekday, f"{date.day}", f"{date.day} {month}"}
            names |= {5: {"weekend"}, 6: {"weekend"}, 12: {"next weekend"}, 13: {"next weekend"}}.get(ahead, set())
            names |= {"next week", f"next {weekday}"} if 7 <= ahead < 14 else set()
    return names


def _named_times(text: str) -> list[set[str]]:
    """For each time that a text in lower case names, what it may mean: 3:15 is in the night or after noon."""
    named = []
    for words, digits in WORDS["hours"].items():
        text = re.sub(words, digits, text)
    for time in _SAYS["time"].findall(text):
        readings = set()
        for half in ("", " am", " pm"):
            with contextlib.suppress(ValueError):
                readings.add(clock(time + half))
        named.append(readings or {time})
    return named


def _named_priorities(text: str) -> list[set[str]]:
    return [{priority} for priority in _SAYS["priority"].findall(text)]


def _says_what_it_does(call: Call, low: str, stems: set[str], titles: dict[str, str]) -> bool:
    action = call.get("action")
    if action == "none":
        return bool(stems or not titles)
    if action == "list":
        asked = [str(call[key]).lower() for key in ("due", "until", "priority") if call.get(key)]
        shown = any(words in low for words in asked or ["your list", "your tasks"])
        return bool(shown or stems & stems_of(" ".join(titles.values())) or _SAYS["empty"].search(low))
    return bool(stems & stems_of(_subject(call, titles)))


def _title(line: str) -> str:
    """A task's title, out of its line."""
    return re.sub(r" \([^()]*\)$", "", line)


def _subject(call: Call, titles: dict[str, str]) -> str:
    """What a call is about, in words: a title, a query, or the title of the task that it names."""
    task = titles.get(str(call.get("task")), "")
    return " ".join(str(part) for part in (call.get("title"), call.get("query"), task) if part)
