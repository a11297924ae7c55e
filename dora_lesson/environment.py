"""What this machine can do, and what a lesson does before its first line.

Nothing heavy is imported at the top, so that the report works where half of the libraries are missing.
"""

from __future__ import annotations

import codecs
import html
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import platform
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

PYTHONS = ((3, 10), (3, 13))
LIBRARIES = [
    *("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "gguf"),
    *("scipy", "matplotlib", "ipywidgets"),
]
INSTALL = "run `make setup`, or `pip install -e .` in the course's folder"


@dataclass(repr=False)
class Report:
    """What `doctor` found: rows of (what, finding, what to do or ""). `ok` is whether the lessons will run."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    ok: bool = True

    def add(self, what: str, finding: str, todo: str = "", *, needed: bool = True) -> None:
        self.rows.append((what, finding, todo))
        self.ok = self.ok and not (todo and needed)

    def __str__(self) -> str:
        left, middle = (max(len(row[i]) for row in self.rows) for i in (0, 1))
        lines = [f"{what:{left}}  {finding:{middle}}  {todo}".rstrip() for what, finding, todo in self.rows]
        return "\n".join([*lines, "", self.verdict])

    @property
    def verdict(self) -> str:
        return "The lessons will run." if self.ok else "The lessons will not run yet: see the last column."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table>{cells}</table><p>{self.verdict}</p>"


def doctor() -> Report:
    """Look at Python, the libraries, the device, 4-bit and the bundled model, and say what is missing."""
    report = Report()
    _python_row(report)
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    for name in LIBRARIES:
        if name in missing:
            report.add(name, "missing", INSTALL)
        else:
            report.add(name, importlib.metadata.version(name))
    if "torch" not in missing:
        _device_rows(report, four_bit=not {"bitsandbytes", "transformers"} & set(missing))
    if not {"torch", "transformers", "gguf"} & set(missing):
        state, todo = bundled_status()
        report.add("bundled model", state, todo, needed=state == "damaged")
    return report


def _python_row(report: Report) -> None:
    lowest, highest = PYTHONS
    fits = lowest <= sys.version_info[:2] <= highest
    wanted = f"use a Python from {lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}"
    report.add("Python", platform.python_version(), "" if fits else wanted, needed=sys.version_info[:2] < lowest)


def _device_rows(report: Report, four_bit: bool) -> None:
    import psutil

    from dora_lesson.models.load import default_device, default_dtype, has_bfloat16

    device = default_device()
    if device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(device)
        report.add("device", f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB")
    else:
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
        report.add("device", f"CPU, {cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB")
    report.add("bfloat16", "yes" if has_bfloat16(device) else "no: float16 is used instead")
    report.add("dtype used", str(default_dtype(device)).removeprefix("torch."))
    if four_bit:
        problem = four_bit_problem(device)
        todo = "" if problem is None else "needed from lesson 05: `pip install -U bitsandbytes`"
        report.add("4-bit (NF4)", "works, tried just now" if problem is None else problem, todo, needed=False)


def start_lesson() -> None:
    """Open a lesson: one line that says Ready or what stands in the way."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"Not ready: {', '.join(missing)} missing; {INSTALL}, then restart the kernel.")
        return
    if stale := _imported_before_an_update():
        print(
            f"Restart needed: {', '.join(stale)} changed on disk after this session had imported it. "
            "Choose Runtime > Restart session (Colab) or Kernel > Restart, then run this cell again."
        )
        return
    print("Ready.")


def _imported_before_an_update() -> list[str]:
    """Libraries whose imported version is not the installed one, as after an install into a running session."""
    stale = []
    for name in ["numpy", *LIBRARIES]:
        imported = getattr(sys.modules.get(name), "__version__", None)
        installed = importlib.metadata.version(name)
        if imported is not None and str(imported).split("+")[0] != installed.split("+")[0]:  # +cpu, +cu130: the build
            stale.append(name)
    return stale


def four_bit_problem(device: Any) -> str | None:
    """Try a small NF4 layer on the device: None if it works, else what went wrong, in a few words."""
    try:
        import torch
        from bitsandbytes.nn import Linear4bit

        # A look at the machine must not shift a lesson's random numbers: hence the fork.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            plain, x = torch.nn.Linear(64, 64, bias=False), torch.randn(4, 64)
            layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
            layer.load_state_dict(plain.state_dict())
            error = (layer.to(device)(x.to(device)).cpu() - plain(x)).norm() / plain(x).norm()
    except Exception as problem:  # whatever it is, it belongs in the report
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:80]}"
    return None if error < 0.25 else f"wrong results, off by {100 * error:.0f} %"


def bundled_status() -> tuple[str, str]:
    """What is there of the bundled model, each byte held against its conversion, and what to do about it, or ""."""
    from dora_lesson.models.bundled import MANIFEST, NAME, cache_folder, sha256

    folder = cache_folder() / NAME
    if not (folder / MANIFEST).is_file():
        return "not fetched", "93 MB, fetched when first needed; `python -m dora_lesson prepare` does it now"
    for name, digest in json.loads((folder / MANIFEST).read_text()).items():
        if sha256(folder / name) != digest:
            return "damaged", f"{name} has changed on disk: delete {folder} and run `python -m dora_lesson prepare`"
    return f"{NAME}, present and verified", ""


_ASCII = {"×": "x", "‖": "||", "−": "-", "–": "-", "→": "->", "Δ": "d", "≤": "<=", "≥": ">=", "·": "*", "√": "sqrt "}


def print_everywhere(stream: Any) -> None:
    """Let a stream print signs that its code page does not have, such as × or ‖, in plain letters."""
    if hasattr(stream, "reconfigure") and stream.errors == "strict":
        codecs.register_error("dora_lesson", lambda e: (_ASCII.get(e.object[e.start], "?"), e.start + 1))  # type: ignore[attr-defined]
        stream.reconfigure(errors="dora_lesson")


def quiet_known_noise() -> None:
    """Silence two notices at their source, and nothing else.

    bitsandbytes says on a CPU that the optional package `kernels` could give it a faster kernel; transformers 5.23
    meets its own deprecated `is_gradient_checkpointing`.
    """
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_no_kernels_notice)


def _no_kernels_notice(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward from kernels-community" not in record.getMessage()
