"""Every line has its evidence or is marked as opinion; lines from records say what the records say."""

from __future__ import annotations

import pytest

from dora_lesson import load_published, load_record, paired_difference, reasons


def test_every_line_has_a_kind_and_a_source_or_is_an_opinion() -> None:
    lines = reasons.evidence_lines()
    assert len({line.name for line in lines}) == len(lines)
    for line in lines:
        assert line.kind in reasons.KINDS and line.side in ("dora", "lora", "either")
        assert bool(line.source) == (line.kind != "opinion"), line.name
        assert line.text.endswith(".") and line.kind in str(line)
    assert {line.side for line in lines} == {"dora", "lora", "either"}


@pytest.mark.parametrize(("record", "pair"), [("short", ("lora", "dora")), ("four_bit", ("qlora", "qdora"))])
@pytest.mark.parametrize("what", ["persona_consistency", "task_accuracy"])
def test_measured_lines_follow_the_record(record: str, pair: tuple[str, str], what: str) -> None:
    runs = load_record(record)["runs"]
    gap = paired_difference(*([run["scores"][what] for run in runs if run["method"] == m] for m in pair))
    line = reasons.line(f"{record}, {what}")
    assert str(gap) in line.text
    assert (line.side == "either") == (not gap.measurable)
    assert ("no difference shown" in line.text) == (not gap.measurable)


def test_a_record_that_shows_a_difference_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        {"method": method, "scores": {"persona_consistency": base + seed / 100, "task_accuracy": base / 10}}
        for method, base in [("lora", 5.0), ("dora", 6.0), ("qlora", 6.0), ("qdora", 5.0)]
        for seed in (0, 1, 2)
    ]
    monkeypatch.setattr(reasons, "load_record", lambda name: {"runs": runs})
    found = {line.name: line for line in reasons._seeds()}
    assert found["short, persona_consistency"].side == "dora" and found["four_bit, persona_consistency"].side == "lora"
    assert "zero is outside" in found["short, persona_consistency"].text


def test_published_lines_follow_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in [
        ("low rank", ["77.9", "40.7", "77.5", "70.9", "53.6 to 62.7"]),
        ("published gains", ["1.0 to 4.4"]),
        ("QDoRA gains", ["0.19 and 0.24"]),
        ("training time", ["26 %", "10 %", "20 %"]),
        ("unmerged cost", ["139 %", "17 %", "41 %"]),
        ("tuned rates", ["1 to 2 %"]),
    ]:
        line = reasons.line(name)
        assert all(number in line.text for number in numbers), line.text
        assert "https://" in line.source
    changed = load_published("peft_record/MetaMathQA/DoRA") | {"more time %": 5}
    monkeypatch.setattr(
        reasons, "load_published", lambda path: changed if path.endswith("MathQA/DoRA") else load_published(path)
    )
    fresh = {line.name: line for line in reasons._published.__wrapped__()}
    assert "took 5 % longer" in fresh["training time"].text


def test_an_unknown_line_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no line 'speed'; there are: short, persona"):
        reasons.line("speed")
