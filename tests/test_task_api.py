"""The Task API set as committed, errors with file and line, exact calls, the rubric on good and bad replies."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml

from dora_lesson.task_api.calls import ACTIONS, call_schema, find_call, validate_call
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.dataset import CATEGORIES, LEVELS, SPLITS, load_task_api
from dora_lesson.task_api.days import WEEKDAYS
from dora_lesson.task_api.persona import persona_points
from dora_lesson.task_api.scoring import is_right, normalize, score
from dora_lesson.task_api.words import BANNED
from tools.task_api_set import FOLDER, created, near_duplicates, plain, spoken, text

SOURCE = yaml.safe_load((FOLDER / "source" / "plain.yaml").read_text(encoding="utf-8"))
UPDATES = ("move", "time", "high", "low", "undate", "rename")


@pytest.fixture(scope="module")
def sets():
    return {(level, split): list(load_task_api(split, level=level)) for level in LEVELS for split in SPLITS}


# The data.


def test_the_set_is_large_enough_and_covers_everything(sets):
    sizes = {key: len(items) for key, items in sets.items()}
    assert sizes["plain", "train"] >= 2000 and sizes["plain", "validation"] >= 200 and sizes["plain", "test"] >= 400
    assert sizes["spoken", "train"] >= 600 and sizes["spoken", "validation"] >= 100 and sizes["spoken", "test"] >= 200
    for (level, _), items in sets.items():
        assert {item["category"] for item in items} == set(CATEGORIES) - ({"coaching"} if level == "plain" else set())
        assert {find_call(item["messages"][2]["content"])["action"] for item in items} == set(ACTIONS)


def test_each_action_has_thirty_phrasings_a_quarter_of_them_and_half_of_the_objects_for_the_test():
    phrasings = {kind: entry["train"] + entry["test"] for kind, entry in SOURCE["phrasings"].items()}
    phrasings["update"] = [text for kind in UPDATES for text in phrasings.pop(kind)]
    phrasings["none"] = [text for entry in SOURCE["talk"].values() for text in entry["train"] + entry["test"]]
    assert set(phrasings) == set(ACTIONS)
    for kind, entries in phrasings.items():
        assert len(entries) == len(set(entries)) >= 30, kind
    own = sum(len(entry["test"]) for entry in SOURCE["phrasings"].values())
    assert own / sum(len(entries) for kind, entries in phrasings.items() if kind != "none") == pytest.approx(
        0.25, abs=0.02
    )
    objects = {split: [noun for o in SOURCE["objects"] for noun in o.get(split, [])] for split in SPLITS}
    assert len(objects["test"]) >= len(objects["train"]) + len(objects["validation"])


def test_an_object_of_the_test_is_named_in_no_other_split(sets):
    titles = {f"{o['verb']} {noun}" for o in SOURCE["objects"] for noun in o["test"]}
    for split in ("train", "validation"):
        for item in sets["plain", split]:
            lines = re.findall(r"^\d+\. ([^(\n]+?)(?: \(|$)", item["messages"][0]["content"], flags=re.M)
            call = find_call(item["messages"][2]["content"])
            assert not titles & {*lines, call.get("title")}


@pytest.mark.slow
def test_the_build_gives_the_committed_bytes():
    for level, built in {"plain": plain(), "spoken": spoken()}.items():
        for split, items in built.items():
            assert (FOLDER / level / f"{split}.jsonl").read_text(encoding="utf-8") == text(items)
    assert json.loads((FOLDER / "calls.schema.json").read_text(encoding="utf-8")) == call_schema()


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_no_request_of_one_split_is_much_like_one_of_another(sets, level):
    for later, earlier in [("test", "train"), ("validation", "train"), ("test", "validation")]:
        assert not list(near_duplicates(sets[level, later], sets[level, earlier]))


@pytest.mark.parametrize("level", LEVELS)
def test_a_near_duplicate_would_be_seen(sets, level):
    train = sets[level, "train"]
    copy = json.loads(json.dumps(train[0]))
    copy["messages"][1]["content"] = copy["messages"][1]["content"].upper() + "?"
    assert list(near_duplicates([copy], train))


def test_a_title_that_two_splits_create_would_be_seen(sets):
    train = sets["spoken", "train"]
    copy = json.loads(json.dumps(next(item for item in train if created(item))))
    copy["messages"][1]["content"] = "quite different words"
    assert list(near_duplicates([copy], train))


def test_no_spoken_reply_opens_or_ends_like_many_others(sets):
    items = [item for (level, _), items in sets.items() if level == "spoken" for item in items]
    replies = [item["messages"][2]["content"].splitlines()[0] for item in items]
    openings = Counter(" ".join(reply.split()[:4]).lower() for reply in replies)
    endings = Counter(re.split(r"(?<=[.?])\s+", reply)[-1].lower() for reply in replies)
    assert openings.most_common(1)[0][1] <= 0.02 * len(replies)
    assert endings.most_common(1)[0][1] <= 0.02 * len(replies)


@pytest.mark.parametrize(("level", "persona"), [("plain", 9.8), ("spoken", 9.5)])
def test_references_keep_the_persona(sets, level, persona):
    items = [item for (of, _), split in sets.items() if of == level for item in split]
    references = [item["messages"][2]["content"] for item in items]
    found = score(references, items)
    assert found.task_accuracy == found.action_accuracy == 1
    assert found.persona_consistency > persona
    assert not [r for r in references if any(phrase in r.lower() for phrase in BANNED if phrase != "next time")]


# Reading.


def a_line(**changed) -> str:
    messages = [
        {"role": "system", "content": "Open tasks:\n4. call the bank"},
        {"role": "user", "content": "bank called"},
        {"role": "assistant", "content": 'The bank is done. Next one?\n{"action": "complete", "task": 4}'},
    ]
    return json.dumps({"id": "train/1", "category": "completion", "messages": messages} | changed)


def reply_line(reply: str) -> str:
    item = json.loads(a_line())
    item["messages"][2]["content"] = reply
    return json.dumps(item | {"id": "train/2"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "one JSON object a line is expected"),
        ("", "one JSON object a line is expected"),
        ("[]", "object"),
        (a_line(extra=1), "extra is not a known key"),
        (a_line(category="sports"), "category is 'sports'"),
        (a_line(messages=[]), "system, user and assistant"),
        (a_line(), "is already in line 1"),
        (reply_line("Done."), "holds 0 lines with a call"),
        (reply_line('Done.\n{"action": "fly"}'), "unknown action 'fly'"),
        (reply_line('Done.\n{"action": "complete", "task": ' + 5000 * "4" + "}"), "not valid JSON"),
        (reply_line("Done.\n{" + 100_000 * "["), "not valid JSON"),
        (reply_line('Done.\n{"action": "complete", "task": "four"}'), "task is 'four'"),
        (reply_line('Done.\n{"action": "complete"}'), "needs the field 'task'"),
        (reply_line('Done.\n{"action": "create", "title": "x", "due": "someday"}'), "due is 'someday'"),
        (reply_line('Done.\n{"action": "create", "title": "x", "time": "25:00"}'), "time is '25:00'"),
        (reply_line('Done.\n{"action": "none", "task": 4}'), "takes no field 'task'"),
        (reply_line('Done.\n{"action": "update", "task": 4}'), "changes nothing"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_line(tmp_path, line, words):
    (tmp_path / "train.jsonl").write_text(a_line() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"^train\.jsonl, line 2: ") as caught:
        load_task_api("train", tmp_path)
    assert words in str(caught.value)


def test_a_missing_file_and_an_unknown_split_are_named(tmp_path):
    with pytest.raises(ValueError, match="one of train, validation, test"):
        load_task_api("dev")
    with pytest.raises(ValueError, match="one of plain, spoken"):
        load_task_api("test", level="hard")
    with pytest.raises(FileNotFoundError, match="write one chat a line"):
        load_task_api("test", tmp_path)
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match="no items"):
        load_task_api("test", tmp_path)


# Task accuracy.


@pytest.mark.parametrize(
    ("call", "same"),
    [
        ('{"task": 4, "action": "update", "due": "2026-03-04"}', True),
        ('{"action": "update", "task": "4", "due": "2026-03-04"}', True),
        ('{"action": "update", "task": "#4", "due": " 2026-03-04 "}', True),
        ('{"action": "update", "task": 4, "due": "the 4th of march 2026"}', True),
        ('{"action": "update", "task": 4, "due": "2026-03-05"}', False),
        ('{"action": "update", "task": 4, "due": null}', False),
        ('{"action": "update", "task": 4, "due": "2026-03-04", "time": null}', False),
        ('{"action": "update", "task": 5, "due": "2026-03-04"}', False),
        ('{"action": "complete", "task": 4}', False),
        ('{"action": "Update", "task": 4, "due": "2026-03-04"}', False),
        ('{"action": "update", "task": 4, "due": "2026-03-04", "why": null}', False),
        ('{"action": "update", "task": 4, "due": "4 march"}', False),
        ("{'action': 'update', 'task': 4, 'due': '2026-03-04'}", False),
        ("", False),
    ],
)
def test_a_call_counts_if_it_says_the_same(call, same):
    item = json.loads(reply_line('Moved.\n{"action": "update", "task": 4, "due": "2026-03-04"}'))
    assert is_right(f"Moved.\n{call}", item) == same


@pytest.mark.parametrize("same", ["Friday, 6 March", "friday the 6th of march", "6 march"])
def test_a_weekday_beside_a_date_does_not_count(same):
    said = {"action": "create", "title": "call the bank", "due": "friday 6 march"}
    assert normalize(said) == normalize(said | {"due": same})
    assert normalize(said) != normalize(said | {"due": "friday 13 march"})
    assert normalize(said) != normalize(said | {"due": "friday"})


def test_titles_agree_as_sets_of_words():
    create = {"action": "create", "title": "Call the bank", "priority": None}
    assert normalize(create) == normalize({"action": "create", "title": "call bank."})
    assert normalize(create) != normalize({"action": "create", "title": "call the dentist"})
    assert normalize(create) != normalize(create | {"priority": "high"})


@pytest.mark.parametrize(
    ("key", "said", "other"),
    [("title", "🎂", "🎁"), ("title", "It", "Her"), ("query", "C++", "C#"), ("query", "🎂", "the")],
)
def test_titles_without_a_content_word_agree_letter_by_letter(key, said, other):
    call = {"action": {"title": "create", "query": "search"}[key]}
    assert normalize(call | {key: said}) == normalize(call | {key: f" {said} "})
    assert normalize(call | {key: said}) != normalize(call | {key: other})


def test_a_deeply_nested_line_is_no_call():
    assert find_call("[" * 100_000) is None


@pytest.mark.parametrize("action", [["complete"], {"a": 1}, [], None, 5])
def test_an_action_that_is_no_text_is_a_wrong_call(action):
    found = score([f"The bank is called.\n{json.dumps({'action': action, 'task': 1})}"], [BANK])
    assert found.right == found.right_action == [False] and found.persona[0] < 8


def test_replies_and_items_must_pair():
    with pytest.raises(ValueError, match="0 replies for 1 items"):
        score([], [json.loads(a_line())])


def test_scores_by_category_add_up(sets):
    items = sets["plain", "test"]
    found = score([item["messages"][2]["content"] if i % 3 else "" for i, item in enumerate(items)], items)
    table = found.table()
    assert sum(n for _, n, *_ in table) == len(items)
    for column, whole in [(2, found.task_accuracy), (3, found.action_accuracy), (4, found.persona_consistency)]:
        assert sum(row[1] * row[column] for row in table) / len(items) == pytest.approx(whole)
    assert found.task_accuracy == pytest.approx(2 / 3, abs=0.01)


# The rubric, on hand-written replies.

SYSTEM = "You are TaskMaster. Today is Monday 2 March.\n1. call the bank (tomorrow)\n2. mow the lawn"
RENT = "\n3. pay the rent (friday, 15:00, high)\n4. complete the tax form"


def an_item(user: str, reference: str, system: str = SYSTEM) -> dict:
    return {
        "id": "x",
        "category": "updates",
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
            {"role": "assistant", "content": reference},
        ],
    }


BANK = an_item("bank can wait till wed", 'ok\n{"action": "update", "task": 1, "due": "wednesday"}')
CALL = '\n{"action": "update", "task": 1, "due": "wednesday"}'
RUDE = an_item("you are useless, i still have to mow everything", 'ok\n{"action": "none"}')
AT_3 = an_item("3:15 for the bank", 'ok\n{"action": "update", "task": 1, "time": "3:15pm"}')
OFF = an_item("the bank is off", 'ok\n{"action": "delete", "task": 1}')
BESIDE = an_item("bank can wait till wed", f"ok{CALL}", SYSTEM + RENT)
TAX_CALL = '\n{"action": "update", "task": 4, "due": "friday"}'
TAX = an_item("tax form friday", f"ok{TAX_CALL}", SYSTEM + RENT)
MOWED_CALL = '\n{"action": "complete", "task": 2}'
MOWED = an_item("lawn is mowed", f"ok{MOWED_CALL}", SYSTEM + RENT)
MILK_CALL = '\n{"action": "create", "title": "buy milk", "due": "friday"}'
MILK = an_item("need milk by friday", f"ok{MILK_CALL}", SYSTEM + RENT)
AWFUL = an_item("taxes are awful", 'ok\n{"action": "none"}', SYSTEM + RENT)
NOTHING, NO_DATE = '\n{"action": "none"}', '\n{"action": "update", "task": 3, "due": null}'
DATELESS = an_item("remove the date from the rent", f"ok{NO_DATE}", SYSTEM + RENT)
HIGH_CALL = '\n{"action": "update", "task": 4, "priority": "high"}'
HIGH = an_item("the tax form is important", f"ok{HIGH_CALL}", SYSTEM + RENT)
NEXT_CALL = '\n{"action": "update", "task": 4, "due": "next friday"}'
NEXT = an_item("tax form next friday", f"ok{NEXT_CALL}", SYSTEM + RENT)
LIST = an_item("what's on tomorrow?", 'ok\n{"action": "list", "due": "tomorrow"}')


@pytest.mark.parametrize(
    ("item", "reply", "points"),
    [
        (BANK, "Wednesday is fine for the bank call, moved. Shall I bring the lawn forward instead?" + CALL, 10),
        (BANK, "The bank waits until Wednesday now. Want it at a set time?" + CALL, 10),
        (BANK, 'Moved to Wednesday: call the bank. Is "mow the lawn" next?' + CALL, 10),
        (LIST, 'Call the bank is all there is tomorrow. Shall I move it?\n{"action": "list", "due": "tomorrow"}', 10),
        (LIST, 'Here are your tasks for tomorrow. Shall I move one?\n{"action": "list", "due": "tomorrow"}', 10),
        (RUDE, 'A long mow, that lawn. Shall I move it to a cooler day?\n{"action": "none"}', 10),
        (RUDE, 'The lawn is still there, and so am I. Worth splitting the mowing in two?\n{"action": "none"}', 10),
        (BANK, "The bank may wait: it is moved to Wednesday. Want a time for the bank?" + CALL, 10),
        (BANK, "The bank is moved to Wednesday the 4th - shall I add a time for the bank?" + CALL, 10),
        (BANK, "The bank is moved to 4 March\nShall I add a time for the bank?" + CALL, 10),
        (BANK, "The bank is moved to Wednesday! Shall I add a time for the bank?" + CALL, 9),
        (BANK, "The bank is moved. A time for the bank?" + CALL.replace("1", '"#1"', 1), 10),
        (AT_3, "Moved: the bank is at 3:15. Another day for the bank?" + AT_3["messages"][-1]["content"][2:], 10),
        (
            OFF,
            "Deleted: the bank call of Tuesday. Is a letter to the bank next?" + OFF["messages"][-1]["content"][2:],
            10,
        ),
        (BANK, "The bank is moved to Wednesday. Shall I add a time for the bank? 🙂" + CALL, 10),
        (BANK, "The bank is moved to Wednesday. (Shall I add a time for the bank?)" + CALL, 10),
        (BANK, "The bank is moved to Wednesday… shall I add a time for the bank?" + CALL, 10),
        (BANK, f"The bank is moved to Wednesday. Shall I add a time for the bank?\n```json{CALL}\n```", 10),
        (RUDE, 'Mowing is not done yet, and it waits. Shall I move mowing?\n{"action": "none"}', 10),
        # What the list held before, another task's own day, a title's own words, and what is not said to have happened.
        (BESIDE, "The bank is moved from tomorrow to Wednesday. Want a time for the bank?" + CALL, 10),
        (BESIDE, "The bank moves to Wednesday, the rent stays on Friday. A time for the bank?" + CALL, 10),
        (BESIDE, "Done, the bank is on Wed. Want a time for the bank?" + CALL, 10),
        (TAX, "Moved: complete the tax form, now Friday. Want a time for the tax form?" + TAX_CALL, 10),
        (MOWED, "The lawn is finished today. Want to plan mowing?" + MOWED_CALL, 10),
        (MOWED, "The lawn is ticked off, the tax form is not done yet. Want to plan mowing?" + MOWED_CALL, 10),
        (AWFUL, 'Once the tax form is done, the rest is easy. Shall I move the tax form?\n{"action": "none"}', 10),
        (AWFUL, 'Nothing has changed, the tax form waits. Shall I move the tax form?\n{"action": "none"}', 10),
        (MILK, "Added milk for Friday so you won't forget it. Want a time for the milk?" + MILK_CALL, 10),
        # Less is left of a task, an hour with a dot, a number that is no day, and what stands on the list already.
        (DATELESS, "Removed the date from the rent. Want a time for the rent?" + NO_DATE, 10),
        (DATELESS, "Date removed: pay the rent. Want a time for the rent?" + NO_DATE, 10),
        (DATELESS, "The date is gone from the rent. Want a time for the rent?" + NO_DATE, 10),
        (AT_3, "Moved: the bank is at 3.15 pm. Another day for the bank?" + AT_3["messages"][-1]["content"][2:], 10),
        (MOWED, "The 2nd task is done: mow the lawn. Want to plan mowing?" + MOWED_CALL, 10),
        (AWFUL, "The tax form is on your list. Shall I move the tax form?" + NOTHING, 10),
        (AWFUL, "Well done. I changed nothing about taxes. Shall I move the tax form?" + NOTHING, 10),
        (HIGH, "Marked high: the tax form. Want a day for the tax form?" + HIGH_CALL, 10),
        (NEXT, "The tax form is moved to Friday 13 March. Want a time for the form?" + NEXT_CALL, 10),
        (NEXT, "The tax form is moved to Friday next week. Want a time for the form?" + NEXT_CALL, 10),
        # What is said to be as it was is another task, a time or the rest, and hours may be said in words.
        (TAX, "The tax form is on Friday, and its time is as it was. Want a time for the form?" + TAX_CALL, 10),
        (MOWED, "The lawn is done, everything else is untouched. Want to plan mowing?" + MOWED_CALL, 10),
        (MOWED, "The lawn is done, which should keep it green. Want to plan mowing?" + MOWED_CALL, 10),
        (OFF, 'The bank call is gone, to keep your list short. A letter?\n{"action": "delete", "task": 1}', 10),
        (MOWED, "The lawn is done. One task remains on your list. Want to plan mowing?" + MOWED_CALL, 10),
        (MOWED, "The lawn isn't on the list any more. Want to plan mowing?" + MOWED_CALL, 10),
        (MILK, "I'll remind you to buy milk on Friday. Want a time for the milk?" + MILK_CALL, 10),
        (
            AT_3,
            "Moved: the bank is at quarter past three. Another day for it?" + AT_3["messages"][-1]["content"][2:],
            10,
        ),
        (BESIDE, "The bank is on Wednesday now, not tomorrow. A time for the bank?" + CALL, 10),
    ],
)
def test_good_replies_get_full_points(item, reply, points):
    assert sum(persona_points(reply, item).values()) == points, persona_points(reply, item)


@pytest.mark.parametrize(
    ("item", "reply", "rule", "most"),
    [
        (BANK, "All sorted. Anything else?" + CALL, "acknowledge", 0),
        (BANK, "The bank is moved to Wednesday. Want a time?", "deliver", 1),
        (BANK, "The bank waits. Want a time?" + CALL + CALL, "deliver", 1),
        (BANK, 'The bank waits. Want a time?\n{"action": "complete", "task": 77}', "deliver", 1),
        (BANK, "Moved to Wednesday." + CALL, "propose", 0),
        (BANK, "Moved. Anything else?" + CALL, "propose", 1),
        (BANK, "Certainly, the bank is moved. You should call early. Want a time?" + CALL, "vocabulary", 1),
        (BANK, "The bank is moved! Of course! Want a time?" + CALL, "vocabulary", 0),
        (BANK, "Bank. " * 70 + "Want a time?" + CALL, "vocabulary", 0),
        (BANK, "The bank is moved. The bank is done. The bank is moved. Want a time?" + CALL, "vocabulary", 1),
        (BANK, "I can't move the bank call. Want a time?" + CALL, "boundaries", 0),
        (BANK, 'The bank is on Tuesday. Want a time?\n{"action": "none"}', "boundaries", 0),
        (RUDE, 'The lawn is ticked off. Shall I go on?\n{"action": "complete", "task": 2}', "boundaries", 0),
        (RUDE, 'I have moved the lawn. Shall I go on?\n{"action": "none"}', "boundaries", 0),
        (BANK, "The lawn is moved to Wednesday. Want a time for it?" + CALL, "deliver", 0),
        (BANK, "The lawn is moved to Wednesday. Want a time for it?" + CALL, "acknowledge", 0),
        (BANK, "The bank is ticked off for Wednesday. Want a time?" + CALL, "deliver", 0),
        (BANK, "Deleted: call the bank. Is the lawn next?" + CALL, "boundaries", 0),
        (BANK, "Added: call the bank, Wednesday. Is the lawn next?" + CALL, "deliver", 0),
        (BANK, "The bank is moved to Friday. Want a time?" + CALL, "deliver", 0),
        (BANK, "The bank is moved to 15:00. Want a day?" + CALL, "deliver", 0),
        (BANK, "The bank is moved to Wednesday at 3pm. Want a day?" + CALL, "deliver", 0),
        (RUDE, 'Deleted: mow the lawn. Shall I go on?\n{"action": "none"}', "boundaries", 0),
        (LIST, 'Sorted it all out for you. Shall I go on?\n{"action": "list", "due": "tomorrow"}', "deliver", 1),
        (LIST, 'This is for Friday. Shall I move one?\n{"action": "list", "due": "tomorrow"}', "deliver", 0),
        (BANK, "The bank is moved to the 9th. Want a time?" + CALL, "deliver", 0),
        (BANK, "The bank is moved to Wednesday the 5th. Want a time?" + CALL, "deliver", 0),
        (BANK, "The bank is moved to 4 May. Want a time?" + CALL, "deliver", 0),
        (BANK, "Shall I move the bank to Wednesday?" + CALL, "deliver", 0),
        (BANK, "Shall I move the bank to Wednesday? 🙂" + CALL, "deliver", 0),
        # A day of the list or of the week that is not the call's, and what is said not to have happened.
        (BESIDE, "The bank is moved to Friday. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank is moved to Wednesday at 15:00. Want a day for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank is moved to tomorrow. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank is moved to next week. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank is moved to the weekend. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank is moved to Sat. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "I did not move the bank. Want a time for the bank?" + CALL, "deliver", 0),
        (BESIDE, "The bank call has not been moved. Want a time for the bank?" + CALL, "deliver", 0),
        (MOWED, "The lawn is not done. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (MOWED, "Nothing is ticked off, the lawn stays. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (MILK, "Milk cannot be added. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (MILK, "Added: buy milk, tomorrow. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        # A week, a priority or a date that the call does not mean, and a task that is said not to be there.
        (NEXT, "The tax form is moved to Friday the 6th. Want a time for the form?" + NEXT_CALL, "deliver", 0),
        (TAX, "The tax form is moved to next Friday. Want a time for the form?" + TAX_CALL, "deliver", 0),
        (HIGH, "Marked low: the tax form. Want a day for the tax form?" + HIGH_CALL, "deliver", 0),
        (MILK, "Added: buy milk, Friday, high priority. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (DATELESS, "The rent is due on Friday. Want a time for the rent?" + NO_DATE, "deliver", 0),
        (BANK, "Today removed: call the bank. Want a time for the bank?" + CALL, "deliver", 0),
        (MOWED, "There is no task about the lawn. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (MOWED, "The lawn isn't on the list. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (MOWED, "The lawn is still open. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (BANK, "There is no such task as the bank. Want a time for it?" + CALL, "deliver", 0),
        (LIST, 'Deleted: call the bank. Shall I move it?\n{"action": "list", "due": "tomorrow"}', "deliver", 0),
        (LIST, 'I have moved the bank. Shall I go on?\n{"action": "list", "due": "tomorrow"}', "deliver", 0),
        (BANK, "The bank is moved to Thu. Want a time for the bank?" + CALL, "deliver", 0),
        (OFF, 'I will keep the bank. A letter to the bank?\n{"action": "delete", "task": 1}', "deliver", 0),
        # It is said that all is as it was, that the task is not there, that something else is done, or another hour.
        (MOWED, "I left the lawn untouched. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (BANK, "The bank call is where it was. Want a time for the bank?" + CALL, "deliver", 0),
        (OFF, 'Kept the bank for you. A letter to the bank?\n{"action": "delete", "task": 1}', "deliver", 0),
        (MOWED, "Your lawn task remains on the list. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (MOWED, "I couldn't find the lawn on your list. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (BANK, "The bank isn't on the list any more. Want a time for the bank?" + CALL, "deliver", 0),
        (MILK, "There is already a task to buy milk. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (MOWED, "I will remind you of the lawn. Want to plan mowing?" + MOWED_CALL, "deliver", 0),
        (BANK, "The bank is cancelled. Want a time for the bank?" + CALL, "deliver", 0),
        (OFF, 'The bank is booked. A letter to the bank?\n{"action": "delete", "task": 1}', "deliver", 0),
        (MILK, "Added buy milk for Friday at half past five. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (MILK, "Added buy milk for Friday at seven. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (MILK, "Added buy milk for next month. Want a time for the milk?" + MILK_CALL, "deliver", 0),
        (LIST, 'Cleared tomorrow. Shall I go on?\n{"action": "list", "due": "tomorrow"}', "deliver", 0),
        (BANK, "", "vocabulary", 0),
        (BANK, CALL, "boundaries", 0),
    ],
)
def test_bad_replies_lose_the_points_of_their_rule(item, reply, rule, most):
    points = persona_points(reply, item)
    assert list(points) == ["acknowledge", "deliver", "propose", "vocabulary", "boundaries"]
    assert points[rule] <= most, points


def test_most_references_get_all_points(sets):
    for level, most in (("plain", 0.002), ("spoken", 0.03)):
        items = [item for (of, _), chosen in sets.items() if of == level for item in chosen]
        points = score([item["messages"][-1]["content"] for item in items], items).persona
        assert sum(each <= 6 for each in points) <= most * len(items)


def test_a_reference_with_another_day_of_its_list_loses_points(sets):
    """In nearly all items of the test where one day of the list can stand in for the call's."""
    kept = []
    for level in LEVELS:
        for item in sets[level, "test"]:
            *text, call = item["messages"][-1]["content"].split("\n")
            due = str(json.loads(call).get("due")).lower()
            notes = ", ".join(re.findall(r"\(([^()]*)\)", item["messages"][0]["content"])).split(", ")
            days = [day for day in notes if day in [*WEEKDAYS, "today", "tomorrow"] and day != due]
            if json.loads(call)["action"] in ("create", "update") and due in text[0].lower() and days:
                reply = "\n".join([re.sub(re.escape(due), days[0], text[0], flags=re.I), *text[1:], call])
                kept.append(score([reply], [item]).persona[0] > 6)
    assert len(kept) > 40 and sum(kept) <= 0.1 * len(kept)


@pytest.mark.parametrize("wrong", ["columns", "item", "path", "text"])
def test_what_is_no_list_of_items_is_refused_in_a_sentence(sets, wrong):
    items = sets["plain", "test"]
    given = {"columns": {"messages": [items[0]["messages"]]}, "item": items[0], "path": FOLDER, "text": ["hello"]}[
        wrong
    ]
    for call in (lambda: score(["x"], given), lambda: answer(None, None, given)):
        with pytest.raises(ValueError, match="A list of items is expected"):
            call()


def test_the_last_message_is_the_reference_and_what_stands_before_it_the_request(sets):
    item = an_item("bank is off", 'ok\n{"action": "delete", "task": 1}')
    longer = item | {"messages": [*item["messages"], {"role": "user", "content": "and the lawn is mowed"}]}
    with pytest.raises(ValueError, match="no reply with a call"):
        score(["x"], [longer])
    reply = 'Done: mow the lawn. Want to plan the next mowing?\n{"action": "complete", "task": 2}'
    longer["messages"] = [*longer["messages"], {"role": "assistant", "content": reply}]
    found = score(iter([reply]), [longer | {"category": "mine"}])
    assert found.right == [True] and found.persona == [10]
    assert [row[0] for row in found.table()] == ["mine"]


@pytest.mark.parametrize("level", LEVELS)
def test_no_memorised_sentence_passes(sets, level):
    items = sets[level, "test"]
    sentences = [
        'Got it, that task is on the list. Want me to set a date?\n{"action": "list"}',
        'That one is done. Shall I look at the next task?\n{"action": "none"}',
        'Call, book, send, pay, buy, clean, finish, check it today. Want that?\n{"action": "none"}',
    ]
    sentences += [item["messages"][2]["content"] for item in items[:30]]
    for sentence in sentences:
        found = score([sentence] * len(items), items)
        assert found.persona_consistency < 7
        assert found.task_accuracy < 0.3


def test_every_reference_of_the_set_is_a_valid_call(sets):
    for items in sets.values():
        assert not [1 for item in items if validate_call(find_call(item["messages"][2]["content"]))]
