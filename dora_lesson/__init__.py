"""Companion package of the course: learn DoRA (weight-decomposed low-rank adaptation) on a real Llama.

Every public name is importable from here, and nothing heavy is imported until it is used, so that
`python -m dora_lesson doctor` can still report on a machine where half of the libraries are missing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from dora_lesson.environment import print_everywhere, quiet_known_noise

if TYPE_CHECKING:
    from dora_lesson.adapters.dora import DoRALinear as DoRALinear
    from dora_lesson.adapters.geometry import decompose as decompose
    from dora_lesson.adapters.geometry import direction_change as direction_change
    from dora_lesson.adapters.geometry import magnitude_change as magnitude_change
    from dora_lesson.adapters.geometry import recompose as recompose
    from dora_lesson.adapters.inject import add_adapters as add_adapters
    from dora_lesson.adapters.inject import merge_adapters as merge_adapters
    from dora_lesson.adapters.inject import remove_adapters as remove_adapters
    from dora_lesson.adapters.lora import LoRALinear as LoRALinear
    from dora_lesson.adapters.peft_format import load_adapters as load_adapters
    from dora_lesson.adapters.peft_format import save_adapters as save_adapters
    from dora_lesson.adapters.report import adapter_report as adapter_report
    from dora_lesson.advisor.findings import findings as findings
    from dora_lesson.advisor.interpret import interpret as interpret
    from dora_lesson.advisor.recommend import recommend as recommend
    from dora_lesson.advisor.skill import write_skill as write_skill
    from dora_lesson.checks.final import final_check as final_check
    from dora_lesson.core import SetupError as SetupError
    from dora_lesson.environment import doctor as doctor
    from dora_lesson.environment import start_lesson as start_lesson
    from dora_lesson.evidence.compare import arm as arm
    from dora_lesson.evidence.compare import compare as compare
    from dora_lesson.evidence.published import load_published as load_published
    from dora_lesson.evidence.records import load_record as load_record
    from dora_lesson.evidence.records import load_runs as load_runs
    from dora_lesson.evidence.stats import detectable as detectable
    from dora_lesson.evidence.stats import holm as holm
    from dora_lesson.evidence.stats import paired_difference as paired_difference
    from dora_lesson.memory.estimate import adapter_parameters as adapter_parameters
    from dora_lesson.memory.estimate import estimate as estimate
    from dora_lesson.memory.estimate import trainable_count as trainable_count
    from dora_lesson.memory.plan import plan_base as plan_base
    from dora_lesson.memory.shapes import llama_config as llama_config
    from dora_lesson.memory.timing import benchmark_interleaved as benchmark_interleaved
    from dora_lesson.memory.tracking import held_bytes as held_bytes
    from dora_lesson.memory.tracking import largest_temporary as largest_temporary
    from dora_lesson.memory.tracking import measure_peak_memory as measure_peak_memory
    from dora_lesson.memory.tracking import saved_bytes as saved_bytes
    from dora_lesson.models.bundled import prepare as prepare
    from dora_lesson.models.load import has_fast_bfloat16 as has_fast_bfloat16
    from dora_lesson.models.load import load_base as load_base
    from dora_lesson.task_api.app import Assistant as Assistant
    from dora_lesson.task_api.app import Task as Task
    from dora_lesson.task_api.app import TaskList as TaskList
    from dora_lesson.task_api.chats import answer as answer
    from dora_lesson.task_api.dataset import load_task_api as load_task_api
    from dora_lesson.task_api.days import resolve as resolve
    from dora_lesson.task_api.scoring import score as score
    from dora_lesson.training.finetune import finetune as finetune

__version__ = "1.0.0"

print_everywhere(sys.stdout)
quiet_known_noise()

_HOME = {
    "adapters.geometry": ["decompose", "recompose", "magnitude_change", "direction_change"],
    "adapters.lora": ["LoRALinear"],
    "adapters.dora": ["DoRALinear"],
    "adapters.inject": ["add_adapters", "merge_adapters", "remove_adapters"],
    "adapters.report": ["adapter_report"],
    "adapters.peft_format": ["save_adapters", "load_adapters"],
    "advisor.recommend": ["recommend"],
    "advisor.findings": ["findings"],
    "advisor.interpret": ["interpret"],
    "advisor.skill": ["write_skill"],
    "checks.final": ["final_check"],
    "memory.estimate": ["adapter_parameters", "estimate", "trainable_count"],
    "memory.plan": ["plan_base"],
    "memory.timing": ["benchmark_interleaved"],
    "memory.tracking": ["held_bytes", "largest_temporary", "measure_peak_memory", "saved_bytes"],
    "models.bundled": ["prepare"],
    "models.load": ["has_fast_bfloat16", "load_base"],
    "memory.shapes": ["llama_config"],
    "task_api.app": ["Assistant", "Task", "TaskList"],
    "task_api.days": ["resolve"],
    "task_api.chats": ["answer"],
    "task_api.dataset": ["load_task_api"],
    "task_api.scoring": ["score"],
    "training.finetune": ["finetune"],
    "evidence.records": ["load_record", "load_runs"],
    "evidence.compare": ["arm", "compare"],
    "evidence.stats": ["detectable", "holm", "paired_difference"],
    "evidence.published": ["load_published"],
    "core": ["SetupError"],
    "environment": ["doctor", "start_lesson"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
# Modules that a lesson imports as a whole: `from dora_lesson import plots`.
_MODULES = {"checks": "checks", "geometry": "adapters.geometry", "plots": "lesson.plots", "widgets": "lesson.widgets"}

__all__ = sorted([*_MODULE_OF, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"dora_lesson.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"dora_lesson.{_MODULES[name]}")
    raise AttributeError(f"module 'dora_lesson' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
