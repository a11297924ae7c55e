"""One check for each exercise, under the name of what the exercise builds: `checks.decompose(my_decompose)`.

Each prints one line and returns the reader's function when it is right, else the package's own.
"""

from __future__ import annotations

from dora_lesson.checks.lesson_00 import scaling as scaling
from dora_lesson.checks.lesson_01 import decompose as decompose
from dora_lesson.checks.lesson_01 import direction_change as direction_change
from dora_lesson.checks.lesson_01 import magnitude_change as magnitude_change
from dora_lesson.checks.lesson_01 import recompose as recompose
from dora_lesson.checks.lesson_02 import lora_count as lora_count
from dora_lesson.checks.lesson_02 import lora_forward as lora_forward
from dora_lesson.checks.lesson_02 import movement as movement
from dora_lesson.checks.lesson_03 import dora_forward as dora_forward
from dora_lesson.checks.lesson_03 import factored_norm as factored_norm
from dora_lesson.checks.lesson_03 import merged_weight as merged_weight
from dora_lesson.checks.lesson_04 import budget_config as budget_config
from dora_lesson.checks.lesson_04 import is_dora as is_dora
from dora_lesson.checks.lesson_04 import merged_copy as merged_copy
from dora_lesson.checks.lesson_05 import nf4_block as nf4_block
from dora_lesson.checks.lesson_05 import qdora_bytes as qdora_bytes
from dora_lesson.checks.lesson_05 import t4_setting as t4_setting
from dora_lesson.checks.lesson_05 import why_not_dora as why_not_dora
from dora_lesson.checks.lesson_06 import audit as audit
from dora_lesson.checks.lesson_06 import confounds as confounds
from dora_lesson.checks.lesson_06 import enough as enough
from dora_lesson.checks.lesson_06 import noise as noise
from dora_lesson.checks.lesson_07 import choose as choose
from dora_lesson.checks.lesson_07 import items_explain as items_explain
from dora_lesson.checks.lesson_07 import persona_item as persona_item
from dora_lesson.checks.runner import CHECKS

__all__ = sorted(CHECKS)
