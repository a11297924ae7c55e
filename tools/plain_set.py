"""The plain level of the Task API set, from `data/task_api/source/plain.yaml`: phrasings × objects × lists of tasks.

Each item is drawn: a kind of request, a phrasing and an object that its split may use, a list of tasks around it, then
the call and the reply that follow from them.
"""

from __future__ import annotations

import datetime
import random
import re
from typing import Any

from dora_lesson.task_api.app import Task, TaskList
from dora_lesson.task_api.days import MONTHS, WEEKDAYS

SIZES = {"train": 2400, "validation": 200, "test": 400}
KINDS = {  # how many of a hundred chats are of a kind, and its category
    "create": (18, "creation"),
    "complete": (16, "completion"),
    "move": (12, "updates"),
    "delete": (14, "updates"),
    "time": (3, "updates"),
    "high": (4, "updates"),
    "low": (1, "updates"),
    "undate": (1, "updates"),
    "rename": (1, "updates"),
    "list": (14, "queries"),
    "search": (10, "queries"),
    "absent": (2, "edge cases"),
    "talk": (4, "boundaries"),
}
CALLS: dict[str, dict[str, Any]] = {"undate": {"due": None}, "high": {"priority": "high"}, "low": {"priority": "low"}}
PROPER = ("mum", "dad", "grandma", "grandpa", "grandad", "aunt", "uncle", "cousin", "great-aunt")  # take no article
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
Item = dict[str, Any]


class Title:
    """One object: what is done to what."""

    def __init__(self, verb: str, past: str, noun: str) -> None:
        self.text, self.past, self.noun = f"{verb} {noun}", f"{past} {noun}", noun
        self.verb = verb
        proper = noun[0].isupper() or noun.split()[0] in PROPER
        bare = re.sub(r"^(the|a|an|new|some) ", "", noun)
        self.named = noun if proper else f"the {bare}"
        self.query = noun if proper else bare


class PlainLevel:
    """The source file, and what a split may use of it."""

    def __init__(self, source: dict[str, Any]) -> None:
        self.source = source
        self.titles: dict[str, list[Title]] = {
            split: [Title(o["verb"], o["past"], noun) for o in source["objects"] for noun in o.get(split, [])]
            for split in SIZES
        }

    def phrasings(self, kind: str, split: str) -> list[tuple[str, bool]]:
        """The phrasings that a split may use, and whether each is its own."""
        lists = self.source["phrasings"][kind]
        own = lists.get(split, []) if split != "train" else []
        return [(text, False) for text in lists["train"]] + [(text, True) for text in own]


class Draw:
    """One item in the making."""

    def __init__(self, level: PlainLevel, split: str, kind: str, chance: random.Random) -> None:
        self.level, self.split, self.kind, self.chance = level, split, kind, chance
        self.today = datetime.date(2026, 1, 1) + datetime.timedelta(chance.randrange(730))
        self.tasks: list[tuple[Title, Task]] = []
        self.titles = level.titles[split]
        self.new = split == "train"  # whether the request has a phrasing or names an object that training never has

    def made(self) -> tuple[str, list[dict[str, str]], Item] | None:
        """Category, messages and call; None where training may have the same request."""
        request, call, reply = getattr(self, f"_{self.kind}", self._about_a_task)()
        if not self.new:
            return None
        messages = TaskList([task for _, task in self.tasks], self.today).messages(self._typed(request))
        return KINDS[self.kind][1], [*messages, {"role": "assistant", "content": reply}], call

    # The list, and what is taken from the source.

    def _fill(self, least: int = 0, most: int = 3, beside: Title | None = None) -> None:
        """Fill the list with tasks; `beside` is not among them, and neither is its noun."""
        nouns = {beside.named} if beside else set()
        for title in self.chance.sample(self.titles, self.chance.randint(least, most)):
            if title.named not in nouns:
                nouns.add(title.named)
                self.tasks.append((title, self._task(title)))

    def _task(self, title: Title) -> Task:
        due = self.today + datetime.timedelta(self.chance.choice([-1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 9, 20]))
        dated, timed, marked = (self.chance.random() for _ in range(3))
        return Task(
            title.text,
            due if dated < 0.4 else None,
            f"{self.chance.randint(8, 20):02}:{self.chance.choice(['00', '30'])}" if timed < 0.1 else None,
            ("high" if marked < 0.06 else "low") if marked < 0.1 else None,
        )

    def _phrasing(self, kind: str | None = None, needs: str = "") -> str:
        choice = [(text, own) for text, own in self.level.phrasings(kind or self.kind, self.split) if needs in text]
        text, own = self.chance.choice(choice)
        self.new |= own
        return text

    def _say(self, kind: str, **parts: str) -> str:
        """A first sentence of a reply."""
        parts |= {key.upper(): parts[key][:1].upper() + parts[key][1:] for key in ("t", "x") if key in parts}
        return self.chance.choice(self.level.source["replies"][kind]).format(**parts)

    def _next(self, kind: str, **parts: str) -> str:
        return self.chance.choice(self.level.source["next"][kind]).format(**parts)

    def _next_task(self, but: Task | None = None) -> str:
        """A question about another task, or about a new one where there is none."""
        others = [task.title for _, task in self.tasks if task is not but]
        return self._next("other", o=self.chance.choice(others)) if others else self._next("nothing_left")

    # Days and times, as they are said and as the call has them.

    def _day(self) -> str:
        ahead = self.today + datetime.timedelta(self.chance.randint(2, 25))
        return self.chance.choices(
            [
                "today",
                "tomorrow",
                self.chance.choice(WEEKDAYS),
                f"next {self.chance.choice(WEEKDAYS)}",
                f"the {ordinal(ahead.day)}",
                f"{ahead.day} {MONTHS[ahead.month - 1]}",
                "in 3 days",
            ],
            [15, 27, 44, 4, 4, 4, 2],
        )[0]

    def _hour(self) -> str:
        hour, minute = self.chance.randint(7, 21), self.chance.choice([0, 0, 0, 30, 15])
        short = f"{(hour - 1) % 12 + 1}" + (f":{minute:02}" if minute else "")
        said = [
            f"{short}{'am' if hour < 12 else 'pm'}",
            f"{short} {'am' if hour < 12 else 'pm'}",
            f"{hour}:{minute:02}",
        ]
        if (hour, minute) == (12, 0):
            said.append("noon")
        return self.chance.choice(said)

    def _said(self, day: str, opens: bool = False) -> str:
        """A day after or before the rest of a request."""
        if day in ("today", "tomorrow", "in 3 days"):
            forms = ["{}", "{}", "{}"] if opens or day == "in 3 days" else ["{}", "{}", "for {}", "by {}"]
        elif day in WEEKDAYS:
            forms = ["{}", "on {}"] if opens else ["{}", "on {}", "on {}", "for {}", "by {}"]
        else:
            forms = ["{}", "on {}"] if opens or day.startswith("next") else ["on {}", "for {}", "by {}"]
        return self.chance.choice(forms).format(day)

    # The kinds of request: each returns the request, the call and the reply.

    def _create(self) -> tuple[str, Item, str]:
        title, phrasing, self.new = self.chance.choice(self.titles), self._phrasing(), True
        self._fill(beside=title)
        call: Item = {"action": "create", "title": title.text}
        after, when = "", ""
        shape = self.chance.random()
        if "{W}" in phrasing or shape < 0.6:
            call["due"] = self._day()
            opening, after = self._said(call["due"], opens=True), " " + self._said(call["due"])
            phrasing, when = phrasing.replace("{W}", opening), _shown(call["due"])
            after = "" if "{w}" not in phrasing else after
        if "{w}" in phrasing and (0.42 < shape < 0.6 or shape > 0.97):
            call["time"] = self._hour()
            after, when = f"{after} at {call['time']}", f"{when} at {call['time']}".strip()
        if "{w}" in phrasing and self.chance.random() < 0.08:
            call["priority"] = self.chance.choice(["high", "high", "low"])
            words = (
                ["high priority", "urgent", "it's urgent"]
                if call["priority"] == "high"
                else ["low priority", "not urgent"]
            )
            after = f"{after}, {self.chance.choice(words)}"
        request = phrasing.format(t=title.text, w=after)
        said = self._say("create", t=title.text) + (f", {when}" if when else "")
        said += f", {call['priority']} priority" if "priority" in call else ""
        lacking = "undated" if "due" not in call else "untimed" if "time" not in call else "plain"
        if "priority" in call and lacking == "plain":
            return request, call, f"{said}. {self._next_task()}"
        return request, call, f"{said}. {self._next(lacking)}"

    def _about_a_task(self) -> tuple[str, Item, str]:
        """Complete, delete, and all that updates."""
        phrasing = self._phrasing()
        title = self.chance.choice(self.titles)
        self._fill(0, 3, beside=title)
        named = self._look_alike(title)
        task = self._task(title)
        place = self.chance.randint(0, len(self.tasks))
        self.tasks.insert(place, (title, task))
        parts = {"p": title.past}
        if "{r}" in phrasing:
            parts["r"] = self._reference(title, place + 1, named)
        call: Item = {"action": "update" if self.kind not in ("complete", "delete") else self.kind, "task": place + 1}
        call |= CALLS.get(self.kind, {})
        if self.kind == "move":
            call["due"] = self._day()
            parts["d"] = call["due"]
            if self.chance.random() < 0.2 and phrasing.endswith("{d}"):
                call["time"] = self._hour()
                parts["d"] += f" at {call['time']}"
        if self.kind == "time":
            parts["h"] = call["time"] = self._hour()
        shown = task.title
        if self.kind == "rename":
            (new,) = self.chance.sample(self.titles, 1)
            parts["t"] = call["title"] = shown = new.text
        self.new |= "{p}" in phrasing
        when = " at ".join(part for part in (_shown(call.get("due") or ""), call.get("time", "")) if part)
        said = self._say(self.kind, t=shown, when=when, time=call.get("time", ""))
        if self.kind in ("complete", "delete"):
            return phrasing.format(**parts), call, f"{said}. {self._next_task(task)}"
        follow = {"move": "plain" if "time" in call else "untimed", "undate": "plain", "time": "plain"}.get(self.kind)
        changed = follow if follow != "plain" or not task.priority else None
        return phrasing.format(**parts), call, f"{said}. {self._next(changed) if changed else self._next_task(task)}"

    def _look_alike(self, title: Title) -> bool:
        """Perhaps add a task like this one; return whether the noun still tells them apart."""
        like = [t for t in self.titles if t.verb == title.verb and t.named != title.named]
        if like and self.chance.random() < 0.15:
            other = self.chance.choice(like)
            if all(t.named != other.named for t, _ in self.tasks):
                self.tasks.append((other, self._task(other)))
        if title.verb in ("call", "email", "visit") and self.chance.random() < 0.2:
            verb = self.chance.choice([v for v in ("call", "email", "visit") if v != title.verb])
            twin = Title(verb, verb, title.noun)
            self.tasks.append((twin, self._task(twin)))
            return False
        return True

    def _reference(self, title: Title, number: int, named: bool) -> str:
        """How people name a task: by number, by title, or by what it is about."""
        way = self.chance.random()
        if way < 0.3 and self.split != "validation":  # where nothing but the list tells two requests apart
            forms = [f"task {number}", f"number {number}", f"{number}", f"#{number}", f"the {ORDINALS[number - 1]} one"]
            return self.chance.choice(forms)
        self.new = True
        return title.text if way < 0.7 or not named else title.named

    def _list(self) -> tuple[str, Item, str]:
        self._fill()
        call: Item = {"action": "list"}
        way, said, shown = self.chance.random(), "", ""
        if way < 0.45:
            call["due"] = self._day()
            said = " " + (call["due"] if self.chance.random() < 0.4 else self._on(call["due"]))
            shown = f" for {_shown(call['due'])}"
        elif way < 0.55:
            call["until"] = self.chance.choice([*WEEKDAYS, "tomorrow"])
            said, shown = (
                f" {self.chance.choice(['until', 'up to'])} {call['until']}",
                f" until {_shown(call['until'])}",
            )
        elif way < 0.65:
            call["priority"] = self.chance.choice(["high", "high", "low"])
            said, shown = f" with {call['priority']} priority", f" with {call['priority']} priority"
        request = self._phrasing().format(l=said)
        if not self.tasks:
            return request, call, f"{self._say('empty')}. {self._next('nothing_left')}"
        return request, call, f"{self._say('list', l=shown)}. {self._next('listed')}"

    def _on(self, day: str) -> str:
        return f"{'on' if day in WEEKDAYS or day[0].isdigit() or day.startswith('the') else 'for'} {day}"

    def _search(self) -> tuple[str, Item, str]:
        title, self.new = self.chance.choice(self.titles), True
        self._fill(0, 3, beside=title)
        if self.chance.random() < 0.8:
            self.tasks.insert(self.chance.randint(0, len(self.tasks)), (title, self._task(title)))
        query = title.query
        request = self._phrasing().format(q=self.chance.choice([title.named, title.query]))
        follow = self._next("found" if any(t is title for t, _ in self.tasks) else "absent")
        return request, {"action": "search", "query": query}, f"{self._say('search', x=query)}. {follow}"

    def _absent(self) -> tuple[str, Item, str]:
        kind = self.chance.choice(["complete", "delete", "move", "high"])
        title = self.chance.choice(self.titles)
        self._fill(0 if self.chance.random() < 0.2 else 1, 3, beside=title)
        if self.chance.random() < 0.3 and self.split != "validation":
            number = len(self.tasks) + self.chance.randint(1, 6)
            named = self.chance.choice([f"task {number}", f"number {number}", f"{number}"])
            request = self._phrasing(kind, needs="{r}").format(r=named, d=self._day())
            return request, {"action": "none"}, f"{self._say('number', x=str(number))}. {self._next('number')}"
        self.new = True
        request = self._phrasing(kind).format(
            r=self.chance.choice([title.text, title.named]), p=title.past, d=self._day()
        )
        return request, {"action": "none"}, f"{self._say('absent', x=title.named)}. {self._next('absent')}"

    def _talk(self) -> tuple[str, Item, str]:
        kinds = self.level.source["talk"]
        kind = self.chance.choices([*kinds], [len(entry["train"]) for entry in kinds.values()])[0]
        request = self.chance.choice(kinds[kind][self.split])
        self.new = True
        self._fill(2 if kind == "vague" else 0)
        said = self.chance.choice(kinds[kind]["replies"])
        if kind == "vague":
            number, (_, task) = self.chance.choice([*enumerate(self.tasks, start=1)])
            return request, {"action": "none"}, f"{said} {self._next('which', o=task.title, n=str(number))}"
        return request, {"action": "none"}, f"{said} {self._next_task()}"

    # How it is typed.

    def _typed(self, request: str) -> str:
        """In small letters or as a sentence, now and then with a slip of the fingers or a word of thanks."""
        if self.chance.random() < 0.06:
            slips = [word for word in self.level.source["typos"] if re.search(rf"\b{word}\b", request)]
            if slips:
                slip = self.chance.choice(slips)
                request = re.sub(rf"\b{slip}\b", self.level.source["typos"][slip], request, count=1)
        if self.chance.random() < 0.05 and "please" not in request and not request.endswith("?"):
            request += self.chance.choice([" please", " pls", ", thanks"])
        if self.chance.random() < 0.4:
            request = request[0].upper() + request[1:]
            request += "" if request[-1] in "?.!" or self.chance.random() < 0.4 else "."
        return request


def ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day if day < 20 else day % 10, "th")
    return f"{day}{ending}"


def _shown(day: str) -> str:
    """A day as a reply writes it: names of days and months with a capital."""
    return " ".join(word.capitalize() if word in (*WEEKDAYS, *MONTHS) else word for word in day.split())
