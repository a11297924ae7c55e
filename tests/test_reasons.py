"""Every line has its evidence or is marked as opinion; lines from records say what the records say."""

from __future__ import annotations

import re

import pytest
from scipy import stats

from dora_lesson import load_published, load_record
from dora_lesson.advisor import findings as reasons
from dora_lesson.evidence.records import load_runs


def test_every_line_has_a_kind_and_a_source_or_is_an_opinion() -> None:
    lines = reasons.findings()
    assert len({line.name for line in lines}) == len(lines)
    for line in lines:
        assert line.kind in reasons.KINDS and line.side in ("dora", "lora", "either")
        assert bool(line.source) == (line.kind != "opinion"), line.name
        assert line.text.endswith(".") and line.kind in str(line)
    assert {line.side for line in lines} == {"dora", "lora", "either"}


@pytest.mark.parametrize(("record", "pair"), [("short", ("lora", "dora")), ("four_bit", ("qlora", "qdora"))])
@pytest.mark.parametrize("what", ["persona_consistency", "task_accuracy"])
def test_measured_lines_follow_the_record(record: str, pair: tuple[str, str], what: str) -> None:
    """Seed by seed, and judged by scipy's paired t test."""
    runs = {(run["method"], run["seed"]): run["scores"][what] for run in load_record(record)["runs"]}
    seeds = [seed for method, seed in runs if method == pair[0]]
    a, b = ([runs[method, seed] for seed in seeds] for method in pair)
    found = stats.ttest_rel(b, a)
    low, high = found.confidence_interval()
    line = reasons.line(f"{record}, {what}")
    assert f": {sum(b) / len(b) - sum(a) / len(a):+.3f} (95 % interval {low:+.3f} to {high:+.3f}" in line.text
    assert (line.side == "either") == ("no difference shown" in line.text) == (found.pvalue > 0.05)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_record_that_shows_a_difference_is_told_as_one(shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the runs stand: the seeds differ by more than the methods, so only pairs can show it."""
    runs = [
        {
            "method": method,
            "seed": seed,
            "scores": {"persona_consistency": base + 3 * seed + seed / 100, "task_accuracy": base / 10},
        }
        for method, base in [("lora", 1.0), ("dora", 2.0), ("qlora", 2.0), ("qdora", 1.0)]
        for seed in ((2, 0, 1) if shuffled and method in ("dora", "qlora") else (0, 1, 2))
    ]
    monkeypatch.setattr(reasons, "load_record", lambda name: {"runs": runs})
    found = {line.name: line for line in reasons._seeds()}
    assert found["short, persona_consistency"].side == "dora" and found["four_bit, persona_consistency"].side == "lora"
    assert "zero is outside" in found["short, persona_consistency"].text


def test_the_sweeps_lines_hold_every_setting_that_both_methods_ran_at() -> None:
    runs = load_runs("sweep")
    for name, methods in [("sweep", ("lora", "dora")), ("sweep, 4 bits", ("qlora", "qdora"))]:
        text = reasons.line(name).text
        ranks = {run["config"]["r"] for run in runs if run["config"]["method"] in methods}
        assert {int(r) for r in re.findall(r"r = (\d+)", text)} == ranks
    assert "r = 4: -0.0034 (-0.0046 to -0.0027)" in reasons.line("sweep").text
    assert "at 0.004 for both -0.0063 (-0.0106 to -0.0025)" in reasons.line("sweep").text
    assert "at 0.008 for both -0.0077 (-0.0181 to +0.0014)" in reasons.line("sweep").text
    packed = reasons.line("sweep, 4 bits")
    for setting in (
        "r = 8: -0.0016",
        "r = 64 with lora_alpha = 16 at one rate: -0.0078 (-0.0092 to -0.0070)",
        "r = 64 with lora_alpha = 64 at one rate: +0.0049",
    ):
        assert setting in packed.text
    assert "Zero is outside 1 of 3." in packed.text  # which the quiz repeats
    assert "+0.0777" in reasons.line("cost of 4 bits").text


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
