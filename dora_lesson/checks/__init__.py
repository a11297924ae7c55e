"""One check for each exercise, under the name of what the exercise builds: `checks.decompose(my_decompose)`.

Each prints one line and returns the reader's function when it is right, else the package's own.
"""

from __future__ import annotations

from dora_lesson.checks.lesson_00 import scaling
from dora_lesson.checks.lesson_01 import decompose, direction_change, magnitude_change, recompose
from dora_lesson.checks.lesson_02 import lora_count, lora_forward, movement
from dora_lesson.checks.lesson_03 import dora_forward, factored_norm, merged_weight
from dora_lesson.checks.lesson_04 import budget_config, is_dora, merged_copy
from dora_lesson.checks.lesson_05 import nf4_block, qdora_bytes, t4_setting, why_not_dora
from dora_lesson.checks.lesson_06 import audit, confounds, enough, noise
from dora_lesson.checks.lesson_07 import choose, items_explain, persona_item

__all__ = [
    "audit",
    "budget_config",
    "choose",
    "confounds",
    "decompose",
    "direction_change",
    "dora_forward",
    "enough",
    "factored_norm",
    "is_dora",
    "items_explain",
    "lora_count",
    "lora_forward",
    "magnitude_change",
    "merged_copy",
    "merged_weight",
    "movement",
    "nf4_block",
    "noise",
    "persona_item",
    "qdora_bytes",
    "recompose",
    "scaling",
    "t4_setting",
    "why_not_dora",
]
