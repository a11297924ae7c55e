"""Run cells of a lesson as code, so that tests and the bench use exactly what the reader writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import torch
import torch.nn.functional as F

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def source(lesson: str, cell_id: str) -> str:
    """The source of one cell of notebooks/<lesson>.ipynb."""
    for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells:
        if cell.id == cell_id:
            return cell.source
    raise KeyError(f"notebooks/{lesson}.ipynb has no cell {cell_id!r}: was it renamed?")


def lift(lesson: str, *cell_ids: str) -> dict[str, Any]:
    """Run these code cells in order in one fresh namespace, which knows torch, nn and F, and return it."""
    namespace: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": F}
    for cell_id in cell_ids:
        exec(source(lesson, cell_id), namespace)
    return namespace
