"""What a design file may not say is refused before anything runs, and no two runs of a design share a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dora_lesson.experiments.design import Design, read_design

ARM: dict[str, Any] = {"methods": ["lora", "dora"], "ranks": [2], "alpha_over_r": 2, "rates": [1e-3, 2e-3]}
ONE: dict[str, Any] = ARM | {"methods": ["lora"], "rates": [1e-3]}
FULL: dict[str, Any] = {"methods": ["full"], "rates": [1e-4]}
SMALL: dict[str, Any] = {
    "base": None, "dtype": "float32", "steps": 1, "batch_size": 1, "target_modules": ["q_proj"], "held_out": 2,
    "tuning_seed": 100, "seeds": [0, 1], "spread": 0.01, "arms": [ARM],
}  # fmt: skip


def design(tmp_path: Path, **changed: Any) -> Design:
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed))
    return read_design(path)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ARM.items() if name != key}


@pytest.mark.parametrize(
    ("arms", "count"),
    [
        ([ONE | {"lora_dropout": 0.1, "A_spread": 0.125}], 1),
        ([ONE, ONE | {"rates": [2e-3]}], 2),
        ([ARM, ONE], 3),  # at a given rate, beside the tuned one: they may share runs
        ([ONE, ONE | {"alpha_over_r": 4, "A_spread": 0.125}], 2),
        ([ARM | {"ranks": [2, 4]}, FULL], 5),
        ([FULL | {"rates": [1e-4, 2e-4]}, FULL], 2),
    ],
)
def test_what_can_be_run_is_accepted(tmp_path: Path, arms: list[dict[str, Any]], count: int) -> None:
    assert len(design(tmp_path, arms=arms).arms) == count


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_modules": "all-linear"}, "target_modules are 'all-linear', but a list such as"),
        ({"target_modules": []}, r"target_modules are \[\]"),
        ({"target_modules": ["q_proj", "q_proj"]}, "target_modules are"),
        ({"seeds": [0]}, "two or more different numbers"),
        ({"seeds": [0, -1]}, "numbers from 0"),
        ({"seeds": None}, "seeds are None"),
        ({"tuning_seed": "late"}, "tuning_seed is 'late'"),
        ({"steps": True}, "steps is True"),
        ({"held_out": 1.5}, "held_out is 1.5"),
        ({"spread": float("nan")}, "spread is nan"),
        ({"spread": True}, "spread is True"),
        ({"dtype": "float64"}, "dtype is 'float64', but one of float32"),
        ({"base": 7}, "base is 7"),
        ({"arms": None}, "arms are None, but a list"),
        ({"arms": []}, r"arms are \[\]"),
        ({"arms": {"methods": ["lora"]}}, "arms are {"),
        ({"arms": [None]}, "an arm None: methods and rates"),
        ({"arms": [ARM | {"methods": "lora"}]}, "methods are 'lora', but a list"),
        ({"arms": [ARM | {"methods": []}]}, r"methods are \[\]"),
        ({"arms": [ARM | {"methods": ["lora", "lora"]}]}, "methods are"),
        ({"arms": [ARM | {"ranks": 8}]}, "lora needs ranks, a list .* they are 8"),
        ({"arms": [ARM | {"ranks": None}]}, "lora needs ranks"),
        ({"arms": [ARM | {"ranks": [8, 8]}]}, "lora needs ranks, a list of different"),
        ({"arms": [without("ranks")]}, "lora needs ranks"),
        ({"arms": [without("alpha_over_r")]}, "lora needs alpha_over_r, a number above 0; it is None"),
        ({"arms": [ARM | {"alpha_over_r": -2}]}, "it is -2"),
        ({"arms": [ARM | {"alpha_over_r": "2"}]}, "it is '2'"),
        ({"arms": [ARM | {"rates": 1e-3}]}, "rates are 0.001, but a list"),
        ({"arms": [ARM | {"rates": [1e-3, 1e-3]}]}, "a list of different numbers"),
        ({"arms": [ARM | {"rates": [1e-3, 1.0000001e-3]}]}, "a list of different numbers"),
        ({"arms": [ARM | {"rates": [-1e-3, 2e-3]}]}, "numbers above 0"),
        ({"arms": [ARM | {"rates": [float("nan")]}]}, "rates are"),
        ({"arms": [ARM | {"lora_dropout": 1}]}, "lora_dropout is 1, but 0 or more, and less than 1"),
        ({"arms": [ARM | {"lora_dropout": "0.1"}]}, "lora_dropout is '0.1'"),
        ({"arms": [ARM | {"A_spread": -0.1}]}, "A_spread is -0.1"),
        ({"arms": [FULL | {"ranks": [8, 16]}]}, "full fine-tuning has no adapter"),
        ({"arms": [FULL | {"A_spread": 0.1}]}, "full fine-tuning has no adapter"),
        ({"arms": [ARM | {"methods": ["lora", "full"]}]}, "full fine-tuning has no adapter"),
        ({"arms": [ONE, ONE]}, "two arms have method lora, rank 2 and lora_alpha 4 in common, and the rate"),
        ({"arms": [FULL, FULL]}, "two arms have method full, rank 0"),
        ({"arms": [FULL | {"rates": [1e-4, 2e-4]}, FULL | {"rates": [4e-4, 8e-4]}]}, "two arms to tune have"),
        ({"arms": [ONE, ONE | {"A_spread": 0.1}]}, "but not lora_dropout and A_spread: give each a design"),
        ({"arms": [ONE, ONE | {"lora_dropout": 0.1}]}, "but not lora_dropout and A_spread"),
        ({"arms": [ARM, ONE | {"lora_dropout": 0.1, "rates": [1.0]}]}, "but not lora_dropout and A_spread"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused_in_a_sentence(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        design(tmp_path, **changed)
    assert str(caught.value).startswith("design.yaml: ") and str(caught.value).endswith(".")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "design.yaml").write_bytes(b"seeds: [0]\xff")
    with pytest.raises(ValueError, match=r"design\.yaml is no YAML"):
        read_design(tmp_path / "design.yaml")
