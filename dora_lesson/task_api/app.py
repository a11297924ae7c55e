"""The assistant at work: a task list that executes calls, and a model that is asked and makes them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dora_lesson.task_api.calls import Call, find_call, read_call, reply_text
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.days import as_date, clock, day_word, first_and_last, long_date
from dora_lesson.task_api.words import content_words


@dataclass(frozen=True)
class Task:
    """One line of the list."""

    title: str
    due: datetime.date | None = None
    time: str | None = None
    priority: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ValueError(f"A task's title is {self.title!r}, but a text is expected.")
        if self.due is not None:
            object.__setattr__(self, "due", as_date(self.due, "due"))
        if self.time is not None:
            object.__setattr__(self, "time", clock(self.time))
        if self.priority not in (None, "high", "low"):
            raise ValueError(f"A task's priority is {self.priority!r}, but high or low is expected.")

    def line(self, today: datetime.date) -> str:
        """The task as the assistant reads it: "call the bank (thursday, 15:00, high)"."""
        notes = [day_word(self.due, today) if self.due else None, self.time, self.priority]
        said = ", ".join(note for note in notes if note)
        title = " ".join(self.title.split())  # a line break would begin another task
        return f"{title} ({said})" if said else title


class TaskList:
    """Open tasks, numbered from 1, and those that are done.

    Args:
        tasks: titles, or `Task` objects.
        today: the day on which the list is looked at; None is the day of the computer's clock.
    """

    def __init__(self, tasks: Iterable[str | Task] = (), today: datetime.date | None = None) -> None:
        self.today = datetime.date.today() if today is None else as_date(today, "today")
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ValueError(f"tasks is {tasks!r}, but a list of titles or tasks is expected.")
        self.open = [task if isinstance(task, Task) else Task(task) for task in tasks]
        self.done: list[Task] = []
        self._before: list[tuple[list[Task], list[Task]]] = []

    def messages(self, request: str) -> list[dict[str, str]]:
        """The chat in which the assistant is asked: who it is, today, the numbered list, and the request."""
        lines = [f"You are TaskMaster. Today is {long_date(self.today)}."]
        lines += [f"{number}. {task.line(self.today)}" for number, task in enumerate(self.open, start=1)]
        system = "\n".join(lines if self.open else [*lines, "No open tasks."])
        return [{"role": "system", "content": system}, {"role": "user", "content": request}]

    def execute(self, call: Call | None) -> list[Task]:
        """Do what a call says, and return the tasks that it is about: those changed, found or gone.

        Raises:
            ValueError: it cannot be done, and nothing has changed; the message is a sentence for the person.
        """
        if call is None:
            raise ValueError("I found no call in that reply, so the list is as it was. Will you say it in other words?")
        try:
            read = read_call(call)
            days = {key: first_and_last(call[key], self.today) for key in ("due", "until") if call.get(key) is not None}
        except ValueError as error:
            problem = f"I can't do that: {str(error).rstrip('.')}"
            raise ValueError(f"{problem}. The list is as it was; will you say it again?") from None
        number: int = getattr(read, "task", 0)
        if number > len(self.open):
            have = {0: "is empty", 1: "has one task"}.get(len(self.open), f"has {len(self.open)} tasks")
            raise ValueError(f"There is no task {number}: the list {have}. Which one do you mean?")
        before = ([*self.open], [*self.done])
        given = read.model_dump(include={"title", "time", "priority", "due"}, exclude_unset=True)
        given |= {"due": days["due"][0]} if "due" in days else {}
        match read.action:
            case "create":
                self.open.append(Task(**given))
                about = self.open[-1:]
            case "complete" | "delete":
                about = [self.open.pop(number - 1)]
                self.done += about if read.action == "complete" else []
            case "update":
                self.open[number - 1] = replace(self.open[number - 1], **given)
                about = [self.open[number - 1]]
            case "list" | "search":
                return [task for task in self.open if _is_asked_for(task, call, days)]
            case _:
                return []
        self._before.append(before)
        return about

    def undo(self) -> bool:
        """Take the last change back; False if there is none."""
        if not self._before:
            return False
        self.open, self.done = self._before.pop()
        return True

    def table(self) -> Any:
        """The list as a `pandas.DataFrame`: the open tasks by number, then those that are done."""
        import pandas as pd

        numbered = [*((str(i), task) for i, task in enumerate(self.open, start=1)), *(("done", t) for t in self.done)]
        due = [f"{long_date(t.due)} {t.due.year}" if t.due else "" for _, t in numbered]
        rows = [[n, t.title, day, t.time or "", t.priority or ""] for (n, t), day in zip(numbered, due, strict=True)]
        return pd.DataFrame(rows, columns=["task", "title", "due", "time", "priority"]).set_index("task")

    def __repr__(self) -> str:
        return self.table().to_string() if self.open or self.done else "no tasks"


def _is_asked_for(task: Task, call: Call, days: dict[str, tuple[datetime.date, datetime.date]]) -> bool:
    """Whether a list or a search is about this task. A word of a search may be the beginning of one in the title."""
    query = str(call.get("query", ""))
    asked = [re.sub(r"(?<=\w\w\w)(ies|es|s)$", "", word) for word in content_words(query)]
    asked = asked or query.lower().split()  # stop words alone, such as "IT", or signs
    words = content_words(task.title) + task.title.lower().split()
    found = all(any(word.startswith(part) for word in words) for part in asked)
    first = days["due"][0] if "due" in days else datetime.date.min
    last = days["until" if "until" in days else "due"][1] if days else datetime.date.max
    due_then = not days or (task.due is not None and first <= task.due <= last)
    return found and due_then and call.get("priority") in (None, task.priority)


@dataclass(frozen=True)
class Turn:
    """One request and what came of it: the assistant's sentences, its call, and the tasks that the call is about."""

    request: str
    text: str
    call: Call | None
    about: list[Task]

    @property
    def call_line(self) -> str:
        """The call as a line to show, after a list or a search with the tasks that it found."""
        shows = self.about and self.call is not None and self.call["action"] in ("list", "search")
        found = " → " + "; ".join(task.title for task in self.about) if shows else ""
        return json.dumps(self.call, ensure_ascii=False) + found if self.call else "no call"

    def __str__(self) -> str:
        return f"> {self.request}\n{self.text}\n{self.call_line}"


class Assistant:
    """A model in front of a task list.

    Args:
        model, tokenizer: a causal language model, best with its adapters merged, and its tokenizer.
        tasks: the list; calls change it.
    """

    def __init__(self, model: Any, tokenizer: Any, tasks: TaskList) -> None:
        if not isinstance(tasks, TaskList):
            raise ValueError(f"tasks is {tasks!r}, but a TaskList is expected, such as TaskList(['call the bank']).")
        self.model, self.tokenizer, self.tasks = model, tokenizer, tasks

    def ask(self, request: str) -> Turn:
        """Let the model reply to a request and do what its call says.

        A call that cannot be done changes nothing: the text of the turn then says why, in place of the model's.
        """
        if not isinstance(request, str) or not request.strip():
            return Turn(request, "What shall I do? Type a request, such as: call the bank on friday.", None, [])
        chat = [*self.tasks.messages(request.strip()), {"role": "assistant", "content": ""}]
        reply = answer(self.model, self.tokenizer, [{"messages": chat}], label="thinking")[0]
        call = find_call(reply)
        try:
            about = self.tasks.execute(call)
        except ValueError as problem:
            return Turn(request, str(problem), call, [])
        return Turn(request, reply_text(reply), call, about)
