"""Published figures have their source, agree among themselves, and are reached by a path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dora_lesson import adapter_parameters, llama_config, load_published
from dora_lesson.evidence import published

SUBJECTS = sorted(path.stem for path in (published.DATA / "published").glob("*.json"))
SOURCE = {"where": "Table 1", "url": "https://example.org", "status": "paper"}


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(published, "DATA", tmp_path)
    (tmp_path / "published").mkdir()
    return lambda text: (tmp_path / "published" / "made_up.json").write_text(text, encoding="utf-8")


def test_a_figure_is_reached_by_its_path() -> None:
    assert load_published("commonsense/LLaMA-7B/LoRA") == 74.7
    assert load_published("commonsense")["LLaMA-7B"]["LoRA"] == 74.7
    assert load_published("ranks/run again/DoRA/16/2") == 53.6


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tables", "no published figures 'tables'; the subjects are: claims, commonsense, correlation"),
        ("detached_norm/LLaMA-70B", "no entry 'LLaMA-70B'; the entries there are: about, source, LLaMA-7B, VL-BART"),
        ("qdora/items/0", "no entry '0'; the entries there are: none"),
        ("ranks/run again/DoRA/16/3", "no entry '3'; the entries there are: 0, 1, 2"),
    ],
)
def test_a_path_without_an_entry_names_the_entries(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_published(path)


def test_no_key_stands_in_the_way_of_a_path() -> None:
    """A path is split at "/" and stands in a table's cell, in a comment: no key may hold what ends one of these."""

    def keys(entry: Any) -> Iterator[str]:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            yield key
            yield from keys(value)

    for name in SUBJECTS:
        assert [key for key in keys(load_published(name)) if re.search(r"[/|`$>]|--", key)] == []


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_loads_and_says_what_it_is(name: str) -> None:
    assert len(load_published(name)["about"]) > 20


@pytest.mark.parametrize("key", ["where", "url", "status"])
def test_a_figure_without_a_full_source_is_refused(key: str, write: Any) -> None:
    write(json.dumps({"source": {k: v for k, v in SOURCE.items() if k != key}, "model": {"LoRA": 1.0}}))
    with pytest.raises(ValueError, match=f"made_up/model/LoRA has a source .*{key}"):
        load_published("made_up/model/LoRA")


def test_no_source_at_all_is_refused_and_one_beside_the_figure_is_enough(write: Any) -> None:
    write(json.dumps({"model": {"LoRA": 1.0}, "other": {"LoRA": 2.0, "source": SOURCE}}))
    with pytest.raises(ValueError, match="made_up/model/LoRA has no source"):
        load_published("made_up")
    write(json.dumps({"other": {"LoRA": 2.0, "source": SOURCE}, "ours": {"n": 3, "source": {**SOURCE, "url": ""}}}))
    with pytest.raises(ValueError, match="made_up/ours/n has a source without 'url'"):
        load_published("made_up")
    write(json.dumps({"ours": {"n": 3, "source": {"where": "computed", "status": "computed"}}}))
    assert load_published("made_up/ours/n") == 3


def test_a_broken_file_is_reported(write: Any) -> None:
    write('{"source": ')
    with pytest.raises(ValueError, match=r"made_up\.json is not valid JSON"):
        load_published("made_up")


def test_the_gains_are_the_differences_of_the_table() -> None:
    table = load_published("commonsense")
    for model, run in {
        "LLaMA-7B": "DoRA",
        "LLaMA-13B": "DoRA",
        "LLaMA2-7B": "DoRA half rank",
        "LLaMA3-8B": "DoRA",
    }.items():
        assert table["headline"][model] == pytest.approx(table[model][run] - table[model]["LoRA"])
    assert load_published("ranks/LoRA/32") == table["LLaMA-7B"]["LoRA"]
    assert load_published("ranks/DoRA/32") == table["LLaMA-7B"]["DoRA"]
    assert load_published("ranks/DoRA/16") == table["LLaMA-7B"]["DoRA half rank"]


def test_changes_in_per_cent_are_those_of_the_figures_beside_them() -> None:
    for model in ("LLaMA-7B", "VL-BART"):
        memory = load_published(f"detached_norm/{model}/memory GB")
        assert memory["change %"] == pytest.approx(100 * (memory["detached"] / memory["full"] - 1), abs=0.05)
    lora, dora = (load_published(f"peft_record/MetaMathQA/{method}") for method in ("LoRA", "DoRA"))
    assert dora["more time %"] == round(100 * (dora["seconds"] / lora["seconds"] - 1))
    assert dora["more memory %"] == round(100 * (dora["memory GB"] / lora["memory GB"] - 1))


def _counts() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for model, entry in load_published("counts").items():
        for modules in ("all seven", "q and v") if model not in ("about", "source") else ():
            for r, found in entry.get(modules, {}).items():
                if r != "extra":
                    yield model, modules, r, found


@pytest.mark.parametrize(("model", "modules", "r", "found"), list(_counts()))
def test_the_counts_are_those_of_the_configurations(model: str, modules: str, r: str, found: dict[str, Any]) -> None:
    config = llama_config(model.lower())
    chosen = {} if modules == "all seven" else {"target_modules": ["q_proj", "v_proj"]}
    lora, total = adapter_parameters(config, "lora", r=int(r), **chosen)
    dora, _ = adapter_parameters(config, "dora", r=int(r), **chosen)
    assert (found["LoRA"], found["DoRA"], found["extra"]) == (lora, dora, dora - lora)
    assert load_published(f"counts/{model}/parameters") == total - lora


def test_the_claims_have_one_of_six_verdicts_and_say_what_holds() -> None:
    claims = {key: entry for key, entry in load_published("claims").items() if key not in ("about", "source")}
    assert len(claims) == 21
    for entry in claims.values():
        assert entry["claim"] and entry["holds"]
        assert entry["verdict"] in ("wrong", "overstated", "depends", "holds once", "no source", "does not run")
