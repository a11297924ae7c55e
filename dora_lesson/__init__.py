"""Companion package of the course: learn DoRA (weight-decomposed low-rank adaptation) on a real Llama.

Every public name is importable from here, and nothing heavy is imported until it is used, so that
`python -m dora_lesson doctor` can still report on a machine where half of the libraries are missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dora_lesson.adapter_files import load_adapters as load_adapters
    from dora_lesson.adapter_files import save_adapters as save_adapters
    from dora_lesson.adapters import adapter_report as adapter_report
    from dora_lesson.adapters import add_adapters as add_adapters
    from dora_lesson.adapters import merge_adapters as merge_adapters
    from dora_lesson.adapters import remove_adapters as remove_adapters
    from dora_lesson.advisor import recommend as recommend
    from dora_lesson.embedded import prepare as prepare
    from dora_lesson.environment import SetupError as SetupError
    from dora_lesson.environment import doctor as doctor
    from dora_lesson.environment import start_lesson as start_lesson
    from dora_lesson.evidence import arm as arm
    from dora_lesson.evidence import compare as compare
    from dora_lesson.evidence import detectable as detectable
    from dora_lesson.evidence import paired_difference as paired_difference
    from dora_lesson.evidence import time_in_turns as time_in_turns
    from dora_lesson.final import final_check as final_check
    from dora_lesson.geometry import decompose as decompose
    from dora_lesson.geometry import direction_change as direction_change
    from dora_lesson.geometry import magnitude_change as magnitude_change
    from dora_lesson.geometry import recompose as recompose
    from dora_lesson.layers import DoRALinear as DoRALinear
    from dora_lesson.layers import LoRALinear as LoRALinear
    from dora_lesson.memory import adapter_parameters as adapter_parameters
    from dora_lesson.memory import estimate as estimate
    from dora_lesson.memory import trainable_count as trainable_count
    from dora_lesson.models import load_base as load_base
    from dora_lesson.own_case import interpret as interpret
    from dora_lesson.planning import plan_base as plan_base
    from dora_lesson.probes import held_bytes as held_bytes
    from dora_lesson.probes import largest_temporary as largest_temporary
    from dora_lesson.probes import measure as measure
    from dora_lesson.probes import saved_bytes as saved_bytes
    from dora_lesson.published import load_published as load_published
    from dora_lesson.reasons import evidence_lines as evidence_lines
    from dora_lesson.records import load_record as load_record
    from dora_lesson.records import load_runs as load_runs
    from dora_lesson.scoring import score as score
    from dora_lesson.shapes import llama_config as llama_config
    from dora_lesson.skill import write_skill as write_skill
    from dora_lesson.task_api import answer as answer
    from dora_lesson.task_api import load_task_api as load_task_api
    from dora_lesson.training import finetune as finetune

__version__ = "0.1.0"

_HOME = {
    "geometry": ["decompose", "recompose", "magnitude_change", "direction_change"],
    "layers": ["LoRALinear", "DoRALinear"],
    "adapters": ["add_adapters", "merge_adapters", "remove_adapters", "adapter_report"],
    "adapter_files": ["save_adapters", "load_adapters"],
    "advisor": ["recommend"],
    "reasons": ["evidence_lines"],
    "own_case": ["interpret"],
    "skill": ["write_skill"],
    "final": ["final_check"],
    "memory": ["adapter_parameters", "estimate", "trainable_count"],
    "probes": ["held_bytes", "largest_temporary", "measure", "saved_bytes"],
    "embedded": ["prepare"],
    "models": ["load_base"],
    "shapes": ["llama_config"],
    "planning": ["plan_base"],
    "task_api": ["load_task_api", "answer"],
    "scoring": ["score"],
    "training": ["finetune"],
    "records": ["load_record", "load_runs"],
    "evidence": ["arm", "compare", "detectable", "paired_difference", "time_in_turns"],
    "published": ["load_published"],
    "environment": ["SetupError", "doctor", "start_lesson"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = {*_HOME, "checks", "plots", "widgets"}

__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"dora_lesson.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"dora_lesson.{name}")
    raise AttributeError(f"module 'dora_lesson' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
