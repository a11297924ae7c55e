"""SKILL.md has valid front matter, carries the reader's results with sources, and never overwrites an edit."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from dora_lesson import recommend
from dora_lesson.advisor.findings import findings
from dora_lesson.advisor.interpret import interpret, recorded_case
from dora_lesson.advisor.request import INFERENCE, PRIORITIES
from dora_lesson.advisor.skill import MODELS, NAME, skill_text, write_skill

A, B = recorded_case()


def test_front_matter_is_valid() -> None:
    text = skill_text(recommend(12, "llama-3.1-8b"), A, B, items=68)
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert set(front) == {"name", "description"}
    assert front["name"] == NAME and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", NAME) and len(NAME) <= 64
    assert 0 < len(front["description"]) <= 1024 and "Use when" in front["description"]


def test_it_holds_rule_comparison_evidence_results_configuration_and_sources() -> None:
    found = recommend(12, "llama-3.1-8b")
    text = skill_text(found, A, B, items=68)
    for title in ("Decision rule", "Methods compared", "My results", "My configuration", "Before it ships", "Sources"):
        assert f"\n## {title}\n" in text
    for line in interpret(A, B, items=68):
        assert line in text
    for finding in findings():
        assert str(finding) in text
        assert f"\n- {finding.source}\n" in text or not finding.source
    assert found.script() in text and "QDoRA, r = 16, beside QLoRA:" in text
    assert found.setup is not None
    assert re.search(rf"\| QDoRA \| 43,319,296 \| {found.setup.peak / 1e9:.1f} \| yes \|", text)
    assert re.search(r"\| DoRA \| 43,319,296 \| \S+ \| no \|", text)
    assert "/home/" not in text and "/tmp/" not in text


def test_nothing_to_recommend_is_written_as_that() -> None:
    text = skill_text(recommend(5, "llama-3.1-8b"), A, B, items=68)
    assert "on a larger card, bought or rented: " in text and "from peft import" not in text


@pytest.mark.slow
def test_the_rules_and_the_table_of_cards_lead_to_the_advisors_answer() -> None:
    """Read as an assistant would read them, with nothing but the file."""
    text = skill_text(recommend(12, "llama-3.1-8b"), A, B, items=68)
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.M
    )
    table = {name: [float(gb) for gb in row] for name, *row in rows}
    assert {*table} == {*MODELS}
    for model, priority, served in itertools.product(["llama-3.1-8b", "llama-3.2-3b"], PRIORITIES, INFERENCE):
        lora, dora, qlora, qdora, qlora_8 = table[model]
        cards = [gb + off for gb in table[model] for off in (-0.15, 0.0)]  # the table rounds up to a tenth
        for vram_gb in [card for card in cards if not any(0 < gb - card < 0.1 for gb in table[model])]:
            wanted = priority == "quality" and served == "merged"
            if served != "4-bit" and priority != "memory" and vram_gb >= lora:
                expected = "DoRA" if wanted and vram_gb >= dora else "LoRA"
            elif wanted and vram_gb >= qdora:
                expected = "QDoRA"
            else:
                expected = "QLoRA" if vram_gb >= (qlora_8 if priority == "memory" else qlora) else None
            found = recommend(vram_gb, model, priority, inference=served)
            assert found.method == expected, (model, vram_gb, priority, served)


def test_it_says_what_was_asked_and_trained_and_how_to_ask_again() -> None:
    found = recommend(24, "llama-3.1-70b", trainer="fsdp", gpus=4, examples=300)
    text = skill_text(found, A, B, items=68, about="SmolLM2-135M, r = 16, 40 steps of 2, the first edition's set")
    assert "What was trained: SmolLM2-135M, r = 16, 40 steps" in text
    (again,) = re.findall(r"^print\((recommend.*)\)$", text, flags=re.M)
    assert eval(again, {"recommend": recommend}).request == found.request
    assert "**Asked:** llama-3.1-70b on 4 × 24 GB" in text and f"**Answer:** {found.headline}" in text
    assert "add model, rank, steps and data" in skill_text(found, A, B, items=68)


def test_an_edit_is_never_overwritten(tmp_path: Path) -> None:
    path, message = write_skill(tmp_path, recommend(12, "llama-3.1-8b"), A, B, items=68)
    assert path == tmp_path / NAME / "SKILL.md" and "is written" in message
    again, _ = write_skill(tmp_path, recommend(24, "llama-3.1-8b"), A, B, items=68)
    assert again == path and "24 GB" in path.read_text()
    path.write_text(path.read_text().replace("My results", "My own results"))
    mine = path.read_text()
    beside, message = write_skill(tmp_path, recommend(12, "llama-3.1-8b"), A, B, items=68)
    assert beside.name == "SKILL.new.md" and "12 GB" in beside.read_text()
    assert path.read_text() == mine and "left as it is" in message
    write_skill(tmp_path, recommend(24, "llama-3.1-8b"), A, B, items=68)
    assert "24 GB" in beside.read_text(), "as it was written, so nothing is lost"
    beside.write_text("mine too")
    third, message = write_skill(tmp_path, recommend(12, "llama-3.1-8b"), A, B, items=68)
    assert third.name == "SKILL.new2.md" in message and "12 GB" in third.read_text()
    assert beside.read_text() == "mine too" and path.read_text() == mine


@pytest.mark.parametrize("foreign", [b"", b"# Somebody else's skill\n", "é".encode("latin-1")])
def test_a_file_of_somebody_else_is_left_alone(foreign: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "SKILL.md").write_bytes(foreign)
    path, _ = write_skill("~", recommend(12, "llama-3.1-8b"), A, B, items=68)
    assert path == tmp_path / NAME / "SKILL.new.md" and (tmp_path / NAME / "SKILL.md").read_bytes() == foreign
