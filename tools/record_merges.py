"""Merge the recorded QDoRA adapter in each way, and score the answers: `python -m tools.record_merges`.

The scores go to `data/records/merges.json`. Some eight minutes on two CPU cores. `merges_half.json` holds the scores of
the adapter before `tools.record_adapter` went on with `--more`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from typing import Any

from peft import PeftModel

from dora_lesson.adapters.inject import merge_adapters
from dora_lesson.adapters.peft_format import load_adapters
from dora_lesson.core import DATA
from dora_lesson.evidence.records import provenance
from dora_lesson.models.load import load_base
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.dataset import load_task_api
from dora_lesson.task_api.scoring import score

ITEMS = 100  # the first so many of the plain level's test split
ADAPTER = DATA / "adapters" / "qdora"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", nargs="?", default="merges", help="the record's name")
    name_of_record = parser.parse_args().record
    items = list(load_task_api("test"))[:ITEMS]
    rows: list[dict[str, Any]] = []

    def judge(name: str, model: Any) -> None:
        found = score(answer(model, tokenizer, items, label=name), items)
        rows.append({"name": name, "exact": found.task_accuracy, "persona": found.persona_consistency})

    packed, tokenizer = load_base(four_bit=True, dtype="float32", device="cpu")
    judge("base in 4 bits", packed)
    judge("adapter beside 4 bits", load_adapters(packed, ADAPTER))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Merge lora module to 4-bit")  # PEFT says so once for each layer
        adapted: Any = PeftModel.from_pretrained(load_base(four_bit=True, dtype="float32", device="cpu")[0], ADAPTER)
        judge("merged into 4 bits", adapted.merge_and_unload())
    whole: Any = merge_adapters(load_adapters(load_base(dtype="float32", device="cpu")[0], ADAPTER))
    judge("merged at full size", whole)
    with tempfile.TemporaryDirectory(prefix="dora_lesson-") as folder:
        for part in (whole, tokenizer):
            part.save_pretrained(folder)
        judge("full size, packed once", load_base(folder, four_bit=True, dtype="float32", device="cpu")[0])
    command = f"python -m tools.record_merges {name_of_record}".removesuffix(" merges")
    record = provenance(command, [0]) | {"adapter": "qdora", "level": "plain", "items": ITEMS}
    text = json.dumps(record | {"rows": rows}, indent=1)
    (DATA / "records" / f"{name_of_record}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
