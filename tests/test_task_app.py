"""Days as people say them, the task list that executes calls, the assistant and the widget in front of them."""

from __future__ import annotations

import datetime
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_lesson import Assistant, Task, TaskList, resolve, widgets
from dora_lesson.task_api.calls import call_schema, validate_call
from dora_lesson.task_api.days import clock, day_word
from tests.conftest import ROOT

THURSDAY = datetime.date(2026, 3, 12)


@pytest.mark.parametrize(
    ("due", "date"),
    [
        ("today", "2026-03-12"),
        ("this evening", "2026-03-12"),
        ("Later today", "2026-03-12"),
        ("tmrw", "2026-03-13"),
        (" Tomorrow ", "2026-03-13"),
        ("Tomorrow!", "2026-03-13"),
        ("today?!", "2026-03-12"),
        ("until friday", "2026-03-13"),
        ("till the 14th;", "2026-03-14"),
        ("due next friday.", "2026-03-20"),
        ("at the weekend", "2026-03-14"),
        ("yesterday", "2026-03-11"),
        ("the day after tomorrow", "2026-03-14"),
        ("friday", "2026-03-13"),
        ("Fri", "2026-03-13"),
        ("on monday", "2026-03-16"),
        ("this saturday", "2026-03-14"),
        ("thursday", "2026-03-19"),
        ("next thursday", "2026-03-19"),
        ("next friday", "2026-03-20"),
        ("the weekend", "2026-03-14"),
        ("next week", "2026-03-16"),
        ("in 3 days", "2026-03-15"),
        ("in a week", "2026-03-19"),
        ("in two weeks", "2026-03-26"),
        ("the 14th", "2026-03-14"),
        ("the 2nd", "2026-04-02"),
        ("the 31st", "2026-03-31"),
        ("14 march", "2026-03-14"),
        ("March 14th", "2026-03-14"),
        ("the 1st of february", "2027-02-01"),
        ("29 february", "2028-02-29"),
        ("14 march 2027", "2027-03-14"),
        ("end of the month", "2026-03-31"),
        ("in one week", "2026-03-19"),
        ("friday next week", "2026-03-20"),
        ("next weekend", "2026-03-21"),
        ("2026-12-24", "2026-12-24"),
        ("Thursday 12 March", "2026-03-12"),
        ("Friday, 20 March 2026", "2026-03-20"),
        ("saturday march 14th", "2026-03-14"),
        ("friday the 13th", "2026-03-13"),
        ("weds", "2026-03-18"),
        ("tomorrow morning", "2026-03-13"),
        ("friday evening", "2026-03-13"),
        ("by 14th", "2026-03-14"),
        ("on 14", "2026-03-14"),
    ],
)
def test_a_day_is_read_as_it_is_said(due, date):
    assert resolve(due, THURSDAY) == datetime.date.fromisoformat(date)


def test_days_are_in_english_whatever_the_computers_locale():
    """Another locale is not on every machine, so the code is read: nothing in it asks for names that follow one."""
    for path in (ROOT / "dora_lesson").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"%[aAbBpcxX]\b|(day|month)_(name|abbr)", code), path
    assert (
        TaskList([], THURSDAY).messages("x")[0]["content"].startswith("You are TaskMaster. Today is Thursday 12 March.")
    )
    assert TaskList([Task("call", THURSDAY)]).table().loc["1", "due"] == "Thursday 12 March 2026"


@pytest.mark.parametrize(
    ("today", "days"), [("2026-03-05", "07 08"), ("2026-03-07", "07 08"), ("2026-03-08", "08"), ("2026-03-09", "14 15")]
)
def test_this_weekend_is_the_one_that_one_is_in(today, days):
    said_on = datetime.date.fromisoformat(today)
    tasks = TaskList([Task(f"{day:02}", datetime.date(2026, 3, day)) for day in range(1, 30)], said_on)
    found = tasks.execute({"action": "list", "due": "this weekend"})
    assert " ".join(task.title for task in found) == days
    assert resolve("the weekend", said_on) == found[0].due


@pytest.mark.parametrize(
    "due", ["31 february", "the 32nd", "30 february 2028", "2026-02-30", "0", "in 99999999 weeks", "saturday 13 march"]
)
def test_a_day_that_no_calendar_has_is_named(due):
    with pytest.raises(ValueError, match=f"The calendar has no day '{due}'"):
        resolve(due, THURSDAY)


@pytest.mark.parametrize(
    "due", [None, "", "someday", "soon", "friday or so", "15:00", "the dentist", "at 3", "by 12", "until 10"]
)
def test_what_is_no_day_is_refused_with_an_example(due):
    with pytest.raises(ValueError, match="is not a day: say one such as tomorrow"):
        resolve(due, THURSDAY)


@pytest.mark.parametrize(
    ("time", "clock_time"),
    [("3pm", "15:00"), ("3 PM", "15:00"), ("at 3:15pm", "15:15"), ("3:05 p.m.", "15:05"), ("12am", "00:00"),
     ("12:30pm", "12:30"), ("noon", "12:00"), ("9:30", "09:30"), ("15:00", "15:00"), ("23:59", "23:59"),
     ("at noon", "12:00"), ("3.30pm", "15:30"), ("Noon!", "12:00"), ("midday", "12:00"), ("12 noon", "12:00"),
     ("3  pm.", "15:00"), ("by 3pm", "15:00"), (datetime.time(15), "15:00"), (datetime.time(9, 5, 7), "09:05")],
)  # fmt: skip
def test_a_time_is_read_as_it_is_said(time, clock_time):
    assert clock(time) == clock_time


@pytest.mark.parametrize("time", ["", "3", "25:00", "15:60", "15:00:..", "13pm", "0am", "3pm 4pm", "soon", "tomorrow"])
def test_what_is_no_time_is_refused_with_an_example(time):
    with pytest.raises(ValueError, match="is not a time: say one such as 3pm or 15:00"):
        clock(time)


@given(st.dates(datetime.date(2020, 1, 1), datetime.date(2039, 1, 1)), st.integers(-400, 800))
def test_a_date_and_its_word_mean_the_same(today, days):
    date = today + datetime.timedelta(days)
    assert resolve(day_word(date, today), today) == date


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskList("call the bank"), "a list of titles or tasks is expected"),
        (lambda: TaskList(["call the bank", " "]), "title is ' ', but a text is expected"),
        (lambda: Task("call the bank", due="friday"), "due is 'friday', but a date is expected"),
    ],
)
def test_a_list_that_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_title_of_two_lines_is_one_task():
    (system, _) = TaskList(["call\n2. the bank"], THURSDAY).messages("hi")
    assert system["content"].splitlines()[1:] == ["1. call 2. the bank"]


def test_the_schema_names_all_actions_and_fields():
    schema = call_schema()
    assert set(schema["discriminator"]["mapping"]) == {
        "create",
        "complete",
        "update",
        "delete",
        "list",
        "search",
        "none",
    }
    assert set(schema["$defs"]["Create"]["properties"]) == {"action", "title", "due", "time", "priority"}


@pytest.mark.parametrize("due", [5, ["friday"], {"day": 1}, True])
def test_a_day_of_another_type_is_no_call(due):
    assert "a day such as" in validate_call({"action": "create", "title": "x", "due": due})


# The list.


def a_list() -> TaskList:
    return TaskList([Task("call the bank", datetime.date(2026, 3, 13), "15:00", "high"), "mow the lawn"], THURSDAY)


def test_calls_change_the_list():
    tasks = a_list()
    assert tasks.execute({"action": "create", "title": "buy milk", "due": "monday"})[0].due == datetime.date(
        2026, 3, 16
    )
    tasks.execute({"action": "update", "task": 1, "due": None, "time": "4 pm"})
    assert tasks.open[0] == Task("call the bank", None, "16:00", "high")
    tasks.execute({"action": "complete", "task": 2})
    assert [task.title for task in tasks.open] == ["call the bank", "buy milk"]
    assert [task.title for task in tasks.done] == ["mow the lawn"]
    tasks.execute({"action": "delete", "task": 1})
    assert [task.title for task in tasks.open] == ["buy milk"]
    assert [*tasks.table().index] == ["1", "done"]


def test_undo_takes_back_one_change_at_a_time_and_looking_is_none():
    tasks = a_list()
    before = str(tasks)
    tasks.execute({"action": "delete", "task": 1})
    after = str(tasks)
    tasks.execute({"action": "complete", "task": 1})
    tasks.execute({"action": "list"})
    tasks.execute({"action": "none"})
    assert tasks.undo() and str(tasks) == after
    assert tasks.undo() and str(tasks) == before
    assert not tasks.undo() and str(tasks) == before


@pytest.mark.parametrize(
    ("call", "titles"),
    [
        ({"action": "list"}, ["call the bank", "mow the lawn"]),
        ({"action": "list", "due": "tomorrow"}, ["call the bank"]),
        ({"action": "list", "due": "today"}, []),
        ({"action": "list", "until": "sunday"}, ["call the bank"]),
        ({"action": "list", "priority": "high"}, ["call the bank"]),
        ({"action": "list", "due": None}, ["call the bank", "mow the lawn"]),
        ({"action": "search", "query": "Lawn"}, ["mow the lawn"]),
        ({"action": "search", "query": "bank call"}, ["call the bank"]),
        ({"action": "search", "query": "'lawns.'"}, ["mow the lawn"]),
        ({"action": "search", "query": "ow"}, []),
        ({"action": "search", "query": "bans"}, ["call the bank"]),
        ({"action": "search", "query": "las"}, []),
        ({"action": "search", "query": "!!"}, []),
        ({"action": "search", "query": "it"}, []),
        ({"action": "search", "query": "the"}, ["call the bank", "mow the lawn"]),
    ],
)
def test_lists_and_searches_find_their_tasks(call, titles):
    assert [task.title for task in a_list().execute(call)] == titles


@pytest.mark.parametrize(
    ("call", "days"),
    [
        ({"action": "list", "due": "the weekend"}, [14, 15]),
        ({"action": "list", "due": "next week"}, [16, 22]),
        ({"action": "list", "due": "monday next week"}, [16]),
        ({"action": "list", "until": "the weekend"}, [12, 14, 15]),
        ({"action": "list", "until": "next week"}, [12, 14, 15, 16, 22]),
        ({"action": "list", "due": "the weekend", "until": "saturday"}, [14]),
        ({"action": "list", "due": "saturday", "until": "monday"}, [14, 15, 16]),
    ],
)
def test_a_list_for_several_days_holds_them_all(call, days):
    dated = [Task(f"task of the {day}th", datetime.date(2026, 3, day)) for day in (12, 14, 15, 16, 22, 23)]
    assert [task.due.day for task in TaskList(dated, today=THURSDAY).execute(call)] == days


@pytest.mark.parametrize("asked", ["taxes", "dishes", "batteries", "movies", "bosses"])
def test_a_search_for_several_finds_one(asked):
    tasks = TaskList(["file the tax return", "wash the dish", "buy a battery", "see a movie", "write to the boss"])
    assert len(tasks.execute({"action": "search", "query": asked})) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (None, "no call"),
        ({"action": "complete", "task": 7}, "There is no task 7: the list has 2 tasks. Which one"),
        ({"action": "delete", "task": 0}, "task is 0"),
        ({"action": "create", "title": "pay", "due": "31 february"}, "no day '31 february'"),
        ({"action": "update", "task": 1, "due": "someday"}, "due is 'someday'"),
        ({"action": "create"}, "needs the field 'title'"),
        ({"action": "fly"}, "unknown action 'fly'"),
        ('{"action": "list"}', "a dict is expected"),
        ({"action": "update", "task": 1}, "changes nothing"),
    ],
)
def test_a_call_that_cannot_be_done_changes_nothing_and_gets_a_sentence(call, words):
    tasks = a_list()
    before = str(tasks)
    with pytest.raises(ValueError) as caught:
        tasks.execute(call)
    assert words in str(caught.value) and str(caught.value)[0].isupper() and str(caught.value).endswith("?")
    assert str(tasks) == before and not tasks.undo()


def test_the_model_reads_the_list_numbered_and_in_words():
    system, user = a_list().messages("hello")
    assert system["content"] == (
        "You are TaskMaster. Today is Thursday 12 March.\n1. call the bank (tomorrow, 15:00, high)\n2. mow the lawn"
    )
    assert user == {"role": "user", "content": "hello"}
    assert TaskList(today=THURSDAY).messages("x")[0]["content"].endswith("No open tasks.")


# The assistant and its widget, with a model that says what it is told.


@pytest.fixture
def says(monkeypatch):
    replies: list[str] = []
    monkeypatch.setattr("dora_lesson.task_api.app.answer", lambda *_, **__: [replies.pop(0)])
    return replies


def test_the_assistant_does_what_its_call_says(says):
    says.append('Added: buy milk, Friday. Want a time?\n{"action": "create", "title": "buy milk", "due": "friday"}')
    assistant = Assistant(None, None, a_list())
    turn = assistant.ask("buy milk friday")
    assert turn.text == "Added: buy milk, Friday. Want a time?"
    assert turn.about == [Task("buy milk", datetime.date(2026, 3, 13))] == assistant.tasks.open[2:]
    assert str(turn).startswith("> buy milk friday\n")
    assert str(turn).endswith(turn.call_line) and json.loads(turn.call_line) == turn.call


def test_a_search_says_what_it_found(says):
    says += ['Searching for lawn.\n{"action": "search", "query": "lawn"}', 'Here.\n{"action": "list", "due": "sunday"}']
    assistant = Assistant(None, None, a_list())
    assert assistant.ask("find lawn").call_line.endswith("} → mow the lawn")
    assert assistant.ask("sunday?").call_line.endswith('"sunday"}')


@pytest.mark.parametrize("reply", ["Hello.", 'Done.\n{"action": "complete", "task": 9}', ""])
def test_a_reply_that_cannot_be_carried_out_is_replaced_by_a_sentence(says, reply):
    says.append(reply)
    assistant = Assistant(None, None, a_list())
    before = str(assistant.tasks)
    assert assistant.ask("do it").text.endswith("?")
    assert str(assistant.tasks) == before


@pytest.mark.parametrize("tasks", [["call the bank"], None, "call the bank"])
def test_an_assistant_needs_a_task_list(tasks):
    with pytest.raises(ValueError, match="a TaskList is expected"):
        Assistant(None, None, tasks)


def test_an_empty_request_asks_no_model(says):
    assert "Type a request" in Assistant(None, None, a_list()).ask("  ").text


def test_a_conversation_shows_reply_call_and_list_and_takes_back(says):
    says += ['Deleted: mow the lawn.\n{"action": "delete", "task": 2}', "<b>no</b>"]
    talk = widgets.Conversation({"base": None, "DoRA": None}, None, a_list())
    talk.request.value = "drop the lawn"
    assert "Deleted: mow the lawn." in talk.said.value and "&quot;delete&quot;" in talk.said.value
    assert "mow the lawn" not in talk.table.value and talk.request.value == ""
    talk.undo.click()
    assert "mow the lawn" in talk.table.value
    talk.undo.click()
    assert "nothing to take back" in talk.said.value
    talk.request.value = "<script>"
    assert "&lt;script&gt;" in talk.said.value and "no call" in talk.said.value


def test_a_request_is_not_lost_when_the_model_fails(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("dora_lesson.task_api.app.answer", fails)
    talk = widgets.Conversation({"base": None}, None, a_list())
    with pytest.raises(RuntimeError):
        talk.request.value = "drop the lawn"
    assert "drop the lawn" in talk.said.value and "out of memory" in talk.said.value


# A day that is more than a date.


def test_a_moment_of_today_is_today():
    now = datetime.datetime(2026, 3, 2, 15, 30)
    tasks = TaskList(["call the bank"], today=now)
    tasks.execute({"action": "update", "task": 1, "due": "friday"})
    assert tasks.open[0].due == datetime.date(2026, 3, 6) and type(tasks.open[0].due) is datetime.date
    assert tasks.execute({"action": "list", "due": "friday"}) == tasks.open
    assert resolve("tomorrow", now) == datetime.date(2026, 3, 3)
    assert Task("mow", due=now).due == datetime.date(2026, 3, 2)


@pytest.mark.parametrize("today", ["2026-03-02", 5])
def test_a_today_that_is_no_date_is_refused(today):
    for ask in (lambda: TaskList([], today=today), lambda: resolve("friday", today)):
        with pytest.raises(ValueError, match="but a date is expected"):
            ask()


@pytest.mark.parametrize("due", ["in 1.5 days", "1.5", "in 1,5 weeks", "14.5 march"])
def test_a_part_of_a_day_is_no_day(due):
    with pytest.raises(ValueError, match="is not a day"):
        resolve(due, datetime.date(2026, 3, 2))


def test_a_task_has_a_time_of_the_clock_and_a_known_priority():
    assert Task("mow", time="3pm").time == "15:00"
    for changed in ({"time": "25:00"}, {"priority": "urgent"}):
        with pytest.raises(ValueError, match=r"25:00|urgent"):
            Task("mow", **changed)
