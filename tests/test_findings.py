"""Every finding has its evidence or is marked as opinion; findings from records say what the records say."""

from __future__ import annotations

import pytest
from scipy import stats

from dora_lesson import load_published
from dora_lesson.advisor import findings
from dora_lesson.evidence.records import load_runs


def test_every_finding_has_a_kind_and_a_source_or_is_an_opinion() -> None:
    known = findings.findings()
    assert len({finding.name for finding in known}) == len(known)
    for finding in known:
        assert finding.kind in findings.KINDS
        assert bool(finding.source) == (finding.kind != "opinion"), finding.name
        assert finding.text.endswith(".") and "{" not in finding.text and finding.kind in str(finding)
    assert {finding.side for finding in known} == {"dora", "lora", "either"}
    assert {finding.kind for finding in known} == {*findings.KINDS}


@pytest.mark.parametrize("what", ["persona_consistency", "task_accuracy"])
def test_measured_findings_follow_the_record(what: str) -> None:
    """Seed by seed, and judged by scipy's paired t test."""
    runs = {(run["config"]["method"], run["config"]["seed"]): run["scores"][what] for run in load_runs("methods")}
    seeds = [seed for method, seed in runs if method == "lora"]
    a, b = ([runs[method, seed] for seed in seeds] for method in ("lora", "dora"))
    expected = stats.ttest_rel(b, a)
    low, high = expected.confidence_interval()
    finding = findings.finding(f"methods, {what}")
    assert f": {sum(b) / len(b) - sum(a) / len(a):+.3f} (95 % interval {low:+.3f} to {high:+.3f}" in finding.text
    assert (finding.side == "either") == ("no difference shown" in finding.text) == (expected.pvalue > 0.05)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_record_that_shows_a_difference_is_told_as_one(shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the runs stand: the seeds differ by more than the methods, so only pairs can show it."""
    runs = [
        {
            "method": method,
            "seed": seed,
            "steps": 30,
            "scores": {"persona_consistency": base + 3 * seed + seed / 100, "task_accuracy": base / 10},
        }
        for method, base in [("lora", 1.0), ("dora", 2.0)]
        for seed in ((2, 0, 1) if shuffled and method == "dora" else (0, 1, 2))
    ]
    lines = [
        {"config": {key: run[key] for key in ("method", "seed", "steps")}, "scores": run["scores"]} for run in runs
    ]
    monkeypatch.setattr(findings, "load_runs", lambda name: lines)
    measured = {finding.name: finding for finding in findings._seeds()}
    assert measured["methods, persona_consistency"].side == "dora"
    assert "30 steps" in measured["methods, persona_consistency"].text
    assert "zero is outside" in measured["methods, persona_consistency"].text


def test_the_control_s_finding_follows_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    text = findings.finding("control").text
    assert "DoRA minus LoRA with as many trained numbers" in text and "+0.0146 (-0.0009 to +0.0301)" in text
    assert "no difference shown" in text and "+0.0078 (-0.0072 to +0.0228)" in text
    assert findings.finding("control").side == "either" and findings.finding("control").shown == "0 of 1"
    runs = [dict(run) for run in load_runs("control")]
    lower = {"lora": 0.3, "dora": 0.1, "lora_matched": 0.2}
    for run in runs:
        noise = run["config"]["seed"] / 1000 + (run["config"]["method"] == "dora") * run["config"]["seed"] % 3 / 1000
        run["scores"] = {"loss": lower[run["config"]["method"]] + noise}
    monkeypatch.setattr(findings, "load_runs", lambda name: runs)
    shown = findings._control()
    assert shown.side == "dora" and shown.shown == "1 of 1" and "DoRA is lower" in shown.text
    for run in runs:
        run["scores"] = {"loss": 0.2 + (run["config"]["seed"] % 2) * (run["config"]["method"] == "dora") / 1000}
    assert "alike within 1 % of perplexity" in findings._control().text


def test_findings_over_4_bits_say_what_their_runs_show() -> None:
    packed, cost = findings.finding("QDoRA"), findings.finding("cost of 4 bits")
    assert "QDoRA minus QLoRA with as many trained numbers, r = 8" in packed.text
    assert "+0.0017 (-0.0096 to +0.0130)" in packed.text
    assert packed.side == "either" and "no difference shown" in packed.text
    assert "+0.0431 (+0.0177 to +0.0685)" in cost.text and cost.side == "either"
    set_up = findings.finding("QDoRA in QLoRA's set-up")
    assert "in QLoRA's published set-up, r = 64" in set_up.text and "-0.0116 (-0.0153 to -0.0079)" in set_up.text
    assert set_up.side == "dora" and set_up.shown == "1 of 1"


def test_published_findings_follow_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in [
        ("low rank", ["77.9", "40.7", "77.5", "70.9", "53.6 to 62.7"]),
        ("published gains", ["1.0 to 4.4"]),
        ("QDoRA gains", ["0.19 and 0.24"]),
        ("training time", ["26 %", "10 %", "20 % longer to 2 times"]),
        ("unmerged cost", ["139 %", "17 %", "41 %"]),
        ("tuned rates", ["1 to 2 %"]),
    ]:
        finding = findings.finding(name)
        assert all(number in finding.text for number in numbers), finding.text
        assert "https://" in finding.source
    changed = {"peft_record/MetaMathQA/DoRA/more time %": 5, "ranks/run again/DoRA/16": [3, 1, 2]}
    monkeypatch.setattr(findings, "load_published", lambda path: changed.get(path) or load_published(path))
    fresh = {finding.name: finding for finding in findings._published.__wrapped__()}
    assert "took 5 % longer" in fresh["training time"].text
    assert "re-ran DoRA at rank 16 got 1 to 3." in fresh["low rank"].text


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        ValueError, match="name is 'speed', but one of these findings is expected: control, methods, persona"
    ):
        findings.finding("speed")


def test_a_rule_carries_its_numbers_and_no_evidence() -> None:
    rule = findings.rule("memory first", packed=1.04, weights=2.47)
    assert str(rule) == rule.text == "memory is first, and in 4 bits the weights take 1.0 GB in place of 2.5"
    assert rule.kind == "rule" and rule not in findings.findings()
