"""One check for each exercise, under the name of what the exercise builds: `checks.decompose(my_decompose)`.

Each prints one line and returns the reader's function when it is right, else the package's own.
"""

from __future__ import annotations

from dora_lesson.checks.lesson_00 import scaling
from dora_lesson.checks.lesson_01 import decompose, direction_change, magnitude_change, recompose
from dora_lesson.checks.lesson_03 import dora_forward, factored_norm, merged_weight

__all__ = [
    "decompose",
    "direction_change",
    "dora_forward",
    "factored_norm",
    "magnitude_change",
    "merged_weight",
    "recompose",
    "scaling",
]
