"""Serve the recorded DoRA adapter by llama.cpp, and score its answers: `python -m tools.record_served LLAMA_CPP`.

LLAMA_CPP is llama.cpp's folder; it lies in the source of `llama-cpp-python`, which has to be installed, as has
`sentencepiece`, which llama.cpp's converter imports. The scores go to `data/records/served.json`. Three minutes on
two CPU cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm.auto import tqdm

from dora_lesson.core import DATA
from dora_lesson.evidence.records import provenance
from dora_lesson.models.load import load_base
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.dataset import Item, load_task_api
from dora_lesson.task_api.scoring import score

ITEMS = 100  # the first so many of the plain level's test split
PACKED = "Q4_K_M"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    converter = parser.parse_args().llama_cpp / "convert_hf_to_gguf.py"
    items = list(load_task_api("test"))[:ITEMS]
    model, tokenizer = load_base(dtype="float32", device="cpu")
    merged = PeftModel.from_pretrained(model, DATA / "adapters" / "dora").merge_and_unload()
    rows = [scored("merged, PyTorch", merged, items, partial(answer, merged, tokenizer))]
    with tempfile.TemporaryDirectory(prefix="dora_lesson-") as place:
        folder, whole, packed = (Path(place) / name for name in ("served", "f16.gguf", f"{PACKED}.gguf"))
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        command = [sys.executable, str(converter), str(folder), "--outtype", "f16", "--outfile", str(whole)]
        subprocess.run(command, check=True)
        pack(whole, packed)
        rows += [scored(f"llama.cpp, {at.stem}", at, items, partial(served, at)) for at in (whole, packed)]
    made = provenance("python -m tools.record_served LLAMA_CPP", [0])
    made["versions"]["llama-cpp-python"] = importlib.metadata.version("llama-cpp-python")
    record = made | {"adapter": "dora", "level": "plain", "items": ITEMS, "rows": rows}
    (DATA / "records" / "served.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def scored(name: str, model: Any, items: Sequence[Item], ask: Callable[[Sequence[Item]], list[str]]) -> dict[str, Any]:
    """A row of the record: what the model takes on disk, and how its replies score."""
    size = (
        model.stat().st_size
        if isinstance(model, Path)
        else sum(p.numel() * p.element_size() for p in model.parameters())
    )
    found = score(ask(items), items)
    return {
        "name": name,
        "megabytes": round(size / 1e6),
        "exact": found.task_accuracy,
        "persona": found.persona_consistency,
    }


def pack(whole: Path, packed: Path) -> None:
    """llama.cpp's own quantization of a GGUF file."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{PACKED}")
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(packed).encode(), settings):
        raise RuntimeError(f"llama.cpp could not pack {whole.name} to {PACKED}.")


def served(file: Path, items: Sequence[Item]) -> list[str]:
    """Replies as a server gives them: by the chat template that the file holds, greedily."""
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=1024, verbose=False)
    replies = []
    for item in tqdm(items, desc=file.name):
        found = model.create_chat_completion(item["messages"][:-1], temperature=0, max_tokens=96)
        replies.append(found["choices"][0]["message"]["content"].strip())
    return replies


if __name__ == "__main__":
    main()
