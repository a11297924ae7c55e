"""The Task API set as committed, errors with file and line, task accuracy, the rubric on good and bad replies."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from dora_lesson.task_api.calls import ACTIONS, find_call, validate_call
from dora_lesson.task_api.dataset import CATEGORIES, SPLITS, load_task_api
from dora_lesson.task_api.scoring import BANNED, is_right, normalize, persona_points, score
from tools.task_api_set import FOLDER, build, created, near_duplicates, text


@pytest.fixture(scope="module")
def sets():
    return {split: list(load_task_api(split)) for split in SPLITS}


# The data.


def test_the_set_is_large_enough_and_covers_everything(sets):
    assert len(sets["train"]) >= 600
    assert len(sets["validation"]) >= 100
    assert len(sets["test"]) >= 200
    for items in sets.values():
        assert {item["category"] for item in items} == set(CATEGORIES)
        assert {find_call(item["messages"][2]["content"])["action"] for item in items} == set(ACTIONS)


def test_the_build_gives_the_committed_bytes():
    for split, items in build().items():
        assert (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8") == text(items)


def test_no_request_of_one_split_is_much_like_one_of_another(sets):
    for later, earlier in [("test", "train"), ("validation", "train"), ("test", "validation")]:
        assert not list(near_duplicates(sets[later], sets[earlier]))


def test_a_near_duplicate_would_be_seen(sets):
    copy = json.loads(json.dumps(sets["train"][0]))
    copy["messages"][1]["content"] = copy["messages"][1]["content"].upper() + " please?"
    assert list(near_duplicates([copy], sets["train"]))
    title = next(item for item in sets["train"] if created(item))
    copy = json.loads(json.dumps(title)) | {"id": "other"}
    copy["messages"][1]["content"] = "quite different words"
    assert list(near_duplicates([copy], sets["train"]))


def test_no_reply_opens_or_ends_like_many_others(sets):
    replies = [item["messages"][2]["content"].splitlines()[0] for items in sets.values() for item in items]
    openings = Counter(" ".join(reply.split()[:4]).lower() for reply in replies)
    endings = Counter(re.split(r"(?<=[.?])\s+", reply)[-1].lower() for reply in replies)
    assert openings.most_common(1)[0][1] <= 0.02 * len(replies)
    assert endings.most_common(1)[0][1] <= 0.02 * len(replies)


def test_references_keep_the_persona(sets):
    items = [item for split in sets.values() for item in split]
    references = [item["messages"][2]["content"] for item in items]
    found = score(references, items)
    assert found.task_accuracy == 1
    assert found.persona_consistency > 9
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
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[]", "object"),
        (a_line(extra=1), "extra is not a known key"),
        (a_line(category="sports"), "category is 'sports'"),
        (a_line(messages=[]), "system, user and assistant"),
        (a_line(), "is already in line 1"),
        (reply_line("Done."), "holds 0 lines with a call"),
        (reply_line('Done.\n{"action": "fly"}'), "unknown action 'fly'"),
        (reply_line('Done.\n{"action": "complete", "task": "four"}'), "task is 'four'"),
        (reply_line('Done.\n{"action": "complete"}'), "needs the field 'task'"),
        (reply_line('Done.\n{"action": "create", "title": "x", "due": "tomorrow"}'), "due is 'tomorrow'"),
        (reply_line('Done.\n{"action": "create", "title": "x", "time": "3pm"}'), "time is '3pm'"),
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
    with pytest.raises(FileNotFoundError, match=r"python -m tools\.task_api_set"):
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
        ('{"action": "update", "task": 4, "due": "2026-03-05"}', False),
        ('{"action": "update", "task": 4, "due": null}', False),
        ('{"action": "update", "task": 4, "due": "2026-03-04", "time": null}', False),
        ('{"action": "update", "task": 5, "due": "2026-03-04"}', False),
        ('{"action": "complete", "task": 4}', False),
        ("{'action': 'update', 'task': 4, 'due': '2026-03-04'}", False),
        ("", False),
    ],
)
def test_a_call_counts_if_it_says_the_same(call, same):
    item = json.loads(reply_line('Moved.\n{"action": "update", "task": 4, "due": "2026-03-04"}'))
    assert is_right(f"Moved.\n{call}", item) == same


def test_titles_agree_as_sets_of_words():
    create = {"action": "create", "title": "Call the bank", "priority": None}
    assert normalize(create) == normalize({"action": "create", "title": "call bank."})
    assert normalize(create) != normalize({"action": "create", "title": "call the dentist"})
    assert normalize(create) != normalize(create | {"priority": "high"})


def test_a_deeply_nested_line_is_no_call():
    assert find_call("[" * 100_000) is None


def test_replies_and_items_must_pair():
    with pytest.raises(ValueError, match="0 replies for 1 items"):
        score([], [json.loads(a_line())])


def test_scores_by_category_add_up(sets):
    items = sets["test"]
    found = score([item["messages"][2]["content"] if i % 3 else "" for i, item in enumerate(items)], items)
    table = found.table()
    assert sum(n for _, n, _, _ in table) == len(items)
    assert sum(n * accuracy for _, n, accuracy, _ in table) / len(items) == pytest.approx(found.task_accuracy)
    assert sum(n * points for _, n, _, points in table) / len(items) == pytest.approx(found.persona_consistency)
    assert found.task_accuracy == pytest.approx(2 / 3, abs=0.01)


# The rubric, on hand-written replies.

SYSTEM = "Rules.\nToday is Monday 2026-03-02.\nOpen tasks:\n4. call the bank (due 2026-03-03)\n9. mow the lawn"


def an_item(user: str, reference: str) -> dict:
    return {
        "id": "x",
        "category": "updates",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": user},
            {"role": "assistant", "content": reference},
        ],
    }


BANK = an_item("bank can wait till wed", 'ok\n{"action": "update", "task": 4, "due": "2026-03-04"}')
CALL = '\n{"action": "update", "task": 4, "due": "2026-03-04"}'
RUDE = an_item("you are useless, i still have to mow everything", 'ok\n{"action": "none"}')


@pytest.mark.parametrize(
    ("item", "reply", "points"),
    [
        (BANK, "Wednesday is fine for the bank call, moved. Shall I bring the lawn forward instead?" + CALL, 10),
        (BANK, "The bank waits until Wednesday now. Want it at a set time?" + CALL, 10),
        (RUDE, 'A long mow, that lawn. Shall I move it to a cooler day?\n{"action": "none"}', 10),
        (RUDE, 'The lawn is still there, and so am I. Worth splitting the mowing in two?\n{"action": "none"}', 10),
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
        (RUDE, 'The lawn is ticked off. Shall I go on?\n{"action": "complete", "task": 9}', "boundaries", 0),
        (RUDE, 'I have moved the lawn. Shall I go on?\n{"action": "none"}', "boundaries", 0),
        (BANK, "", "vocabulary", 0),
        (BANK, CALL, "boundaries", 0),
    ],
)
def test_bad_replies_lose_the_points_of_their_rule(item, reply, rule, most):
    points = persona_points(reply, item)
    assert list(points) == ["acknowledge", "deliver", "propose", "vocabulary", "boundaries"]
    assert points[rule] <= most, points


def test_no_memorised_sentence_passes(sets):
    items = sets["test"]
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
