"""A design file is read or refused in one sentence before anything runs, and no two of its runs share a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dora_lesson import detectable
from dora_lesson.evidence.design import DESIGNS, Design, read_design

ARM: dict[str, Any] = {"methods": ["lora", "dora"], "ranks": [2], "alpha_over_r": 2, "rates": [1e-3, 2e-3]}
FIXED: dict[str, Any] = ARM | {"methods": ["lora"], "rates": [1e-3]}
FULL: dict[str, Any] = {"methods": ["full"], "rates": [1e-4]}
SMALL: dict[str, Any] = {
    "base": None, "dtype": "float32", "steps": 1, "batch_size": 1, "target_modules": ["q_proj"], "held_out": 2,
    "seeds": [0, 1], "spread": 0.01, "margin": 0.01, "arms": [ARM],
}  # fmt: skip


def design(folder: Path, **changed: Any) -> Design:
    path = folder / "design.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed))
    return read_design(path)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ARM.items() if name != key}


def test_the_first_comparison_has_the_control_of_size() -> None:
    control = read_design()
    arms = {arm.method: (arm, rates) for arm, rates in control.arms}
    assert {*arms} == {"lora", "dora", "lora_matched"}
    assert len({(arm.r, arm.lora_alpha, *rates) for arm, rates in arms.values()}) == 1
    assert len(control.seeds) >= 8 and control.held_out >= 72 and control.scored >= 72


@pytest.mark.parametrize("path", sorted(DESIGNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_design_of_the_course_can_be_read(path: Path) -> None:
    assert read_design(path).arms


def test_a_design_says_what_it_can_detect(tmp_path: Path) -> None:
    text = str(design(tmp_path, seeds=[0, 1, 2, 3, 4, 5], spread=0.5))
    assert "2 arms, 24 runs, 6 seeds each" in text
    assert f"{detectable(0.5, 6):.3f}" in text
    assert "detects" not in str(design(tmp_path, seeds=[0]))  # one pair has no spread


@pytest.mark.parametrize(
    ("arms", "count"),
    [
        ([FIXED | {"lora_dropout": 0.1, "lora_A_std": 0.125}], 1),
        ([FIXED, FIXED | {"rates": [2e-3]}], 2),
        ([ARM, FIXED], 3),  # they share a run
        ([FIXED, FIXED | {"alpha_over_r": 4}, FIXED | {"lora_A_std": 0.125}, FIXED | {"lora_dropout": 0.1}], 4),
        ([ARM | {"methods": ["lora_matched", "qlora_matched"]}], 2),
        ([ARM | {"ranks": [2, 4]}, FULL], 5),
        ([{"methods": ["base", "qbase"], "rates": [0]}], 2),
    ],
)
def test_a_design_of_possible_runs_is_accepted(tmp_path: Path, arms: list[dict[str, Any]], count: int) -> None:
    assert len(design(tmp_path, arms=arms).arms) == count


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps is 0"),
    ({"steps": True}, "steps is True"),
    ({"extra": 1}, "extra is not a known key"),
    ({"target_modules": 7}, r"target_modules\.list\[str\] is 7"),
    ({"target_modules": []}, "target_modules is"),
    ({"seeds": [1, 1]}, "must all differ"),
    ({"seeds": []}, r"seeds is \[\]"),
    ({"seeds": [0, -1]}, "seeds.1 is -1"),
    ({"seeds": 5}, "seeds is 5"),
    ({"tuning_seed": 1}, "tuning_seed is not a known key"),
    ({"held_out": 1.5}, "held_out is 1.5"),
    ({"spread": 0}, "spread is 0"),
    ({"spread": float("nan")}, "spread is nan"),
    ({"margin": 0}, "margin is 0"),
    ({"dtype": "float64"}, "dtype is 'float64'"),
    ({"base": 7}, "base is 7"),
    ({"arms": None}, "arms is None"),
    ({"arms": []}, r"arms is \[\]"),
    ({"arms": [None]}, "arms.0 is None"),
    ({"arms": [ARM | {"methods": "lora"}]}, "arms.0.methods is 'lora'"),
    ({"arms": [ARM | {"methods": []}]}, r"arms.0.methods is \[\]"),
    ({"arms": [ARM | {"methods": ["dorra"]}]}, "arms.0.methods.0 is 'dorra'"),
    ({"arms": [ARM | {"ranks": 8}]}, "arms.0.ranks is 8"),
    ({"arms": [ARM | {"ranks": [0]}]}, "arms.0.ranks.0 is 0"),
    ({"arms": [without("ranks")]}, "lora needs ranks and alpha_over_r"),
    ({"arms": [without("alpha_over_r")]}, "lora needs ranks and alpha_over_r"),
    ({"arms": [without("rates")]}, "arms.0.rates is missing"),
    ({"arms": [ARM | {"alpha_over_r": -2}]}, "arms.0.alpha_over_r is -2"),
    ({"arms": [ARM | {"rates": 1e-3}]}, "arms.0.rates is 0.001"),
    ({"arms": [ARM | {"rates": ["fast"]}]}, "arms.0.rates.0 is 'fast'"),
    ({"arms": [ARM | {"rates": [-1e-3]}]}, "arms.0.rates.0 is -0.001"),
    ({"arms": [ARM | {"rates": [float("nan")]}]}, "arms.0.rates.0 is nan"),
    ({"arms": [ARM | {"rates": [1e-3, 1.0000001e-3]}]}, "would both be recorded as lora-r2-alpha4-rate0.001"),
    ({"arms": [ARM | {"lora_dropout": 1}]}, "lora_dropout is 1"),
    ({"arms": [ARM | {"lora_A_std": -0.1}]}, "lora_A_std is -0.1"),
    ({"arms": [FULL | {"ranks": [8, 16]}]}, "full has no adapter"),
    ({"arms": [FULL | {"lora_A_std": 0.1}]}, "full has no adapter"),
    ({"arms": [ARM | {"full_magnitude": True}]}, "full_magnitude is for qdora alone"),
    ({"arms": [ARM | {"magnitude_rate": 4}]}, "magnitude_rate is for dora and qdora"),
    ({"arms": [ARM | {"methods": ["dora"], "magnitude_rate": -1}]}, "arms.0.magnitude_rate is -1"),
    ({"arms": [FIXED, FIXED | {"lora_A_std": 0.1}, FIXED | {"lora_A_std": 0.1000001}]}, "would both be recorded as"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_a_design_of_impossible_runs_is_refused_in_a_sentence(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        design(tmp_path, **changed)
    text = str(caught.value)
    assert text.startswith("design.yaml: ") and text.endswith(".") and "\n" not in text


def test_a_design_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"copy data/designs/control\.yaml"):
        read_design(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match=r"empty\.yaml holds no keys and values: copy"):
        read_design(tmp_path / "empty.yaml")
    for content in (b"steps: [", b"seeds: [0]\xff"):
        (tmp_path / "broken.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
            read_design(tmp_path / "broken.yaml")


def test_a_rate_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert design(tmp_path, arms=[ARM | {"rates": ["2e-3"]}]).arms[0][1] == [2e-3]


def test_another_base_is_in_every_run_and_in_the_command() -> None:
    sweep = read_design(base="some/llama")
    assert {arm.base for arm, _ in sweep.arms} == {"some/llama"}
    assert sweep.command == "python -m dora_lesson.experiments --base some/llama"
