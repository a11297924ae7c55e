"""Train an adapter of the course on the whole Task API set and keep it: `python -m tools.record_adapter dora`.

The adapter goes to `data/adapters/{method}` in PEFT's format, with a model card that says what made it and how well it
does. Up to three quarters of an hour on two CPU cores. Checkpoints lie in `build/`, so that the same command goes on
after a stop. With `--more` the adapter that is there trains, once, for as many steps again, its rate anew and its chats
in another order. With `--score` it is scored again, after a change of the rules.
"""

from __future__ import annotations

import argparse
import datetime
import random
import re
from pathlib import Path
from typing import Any

import torch

from dora_lesson.adapters.inject import add_adapters, merge_adapters
from dora_lesson.adapters.peft_format import load_adapters, save_adapters
from dora_lesson.core import METHODS
from dora_lesson.evidence.records import provenance
from dora_lesson.models.load import has_fast_bfloat16, load_base
from dora_lesson.task_api.chats import answer
from dora_lesson.task_api.dataset import LEVELS, load_task_api
from dora_lesson.task_api.scoring import score
from dora_lesson.training.finetune import finetune

ROOT = Path(__file__).parents[1]
SIZE: dict[str, Any] = {"r": 8, "lora_alpha": 16}
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
FULL: dict[str, Any] = {"steps": 1200, "batch_size": 4, "learning_rate": 2e-3, "bf16": has_fast_bfloat16()}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": FULL,
    "dora": FULL | {"steps": 2400},  # as many as the others have with --more
    "qlora": FULL,
    "qdora": FULL,
}
CARD = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: peft
license: apache-2.0
---

# {name} adapter of the course: TaskMaster

The bundled Llama of the course (SmolLM2-135M-Instruct, whose weights were 4-bit, Q4_1, before they were expanded{bits})
keeps a task list with it.

- **Data:** the training split of the Task API set, plain and spoken, in one shuffled row; see `data/README.md`.
- **Adapter:** r = {r}, lora_alpha = {lora_alpha}, on {targets}; float32.
- **Training:** {before}{steps} steps of {batch_size} chats, learning rate {learning_rate}, seed {seed}, forward
  passes in {precision}; {timed} steps took {minutes:.0f} minutes.
- **Scores** ({scored}), merged{merged}, greedy, on the whole test split:

| level | items | exact calls | right actions | persona, 0 to 10 |
| --- | --- | --- | --- | --- |
{scores}

Made by {first}`{command}` on {date}: {hardware}, {versions}.

It answers in English, from a list of up to six tasks, and is no more careful than 135 million parameters can be.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*SETTINGS])
    parser.add_argument("--more", action="store_true", help="go on training the adapter that is there")
    parser.add_argument("--score", action="store_true", help="score the adapter that is there again")
    arguments = parser.parse_args()
    method, folder = arguments.method, ROOT / "data" / "adapters" / arguments.method
    if arguments.score:
        _score_again(method, folder)
        return
    model, tokenizer = load_base(four_bit=METHODS[method].four_bit, dtype="float32", device="cpu")
    if METHODS[method].four_bit:
        # A CPU unpacks 4-bit weights at every pass, which takes longer than the pass. Unpacked once, they are the same
        # numbers to the last bit.
        model = model.dequantize()
    settings = SETTINGS[method]
    seed, command = int(arguments.more), f"python -m tools.record_adapter {method}"
    torch.manual_seed(seed)
    if arguments.more:
        load_adapters(model, folder)
    else:
        add_adapters(model, method.removeprefix("q"), **SIZE, target_modules=TARGETS)
    chats = [item for level in LEVELS for item in load_task_api("train", level=level)]
    random.Random(0).shuffle(chats)
    result = finetune(
        model, tokenizer, chats, **settings, seed=seed, output_dir=ROOT / "build" / f"adapter-{method}-{seed}"
    )
    save_adapters(model, folder)
    scores = _scores(model, tokenizer)
    made = provenance(command + (" --more" if arguments.more else ""), [seed])
    made["versions"] = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    card = CARD.format(
        name=METHODS[method].label,
        bits="; packed into NF4, then unpacked once for the training" if METHODS[method].four_bit else "",
        merged=" into full size" if METHODS[method].four_bit else "",
        targets=", ".join(TARGETS),
        before=f"{settings['steps']} steps by the first command; then, with the rate anew, " if arguments.more else "",
        first=f"`{command}`, then " if arguments.more else "",
        seed=seed,
        timed=result.steps - result.resumed_from,  # those before a stop were timed by nobody
        minutes=result.seconds / 60,
        precision="bfloat16" if settings["bf16"] else "float32",
        scores=scores,
        scored=datetime.date.today(),
        **SIZE,
        **settings,
        **{key: value for key, value in made.items() if key != "seeds"},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


def _scores(model: Any, tokenizer: Any) -> str:
    """The rows of the card's table."""
    merge_adapters(model)
    rows = []
    for level in LEVELS:
        items = list(load_task_api("test", level=level))
        found = score(answer(model, tokenizer, items), items)
        shares = f"{found.task_accuracy:.1%} | {found.action_accuracy:.1%} | {found.persona_consistency:.1f}"
        rows.append(f"| {level} | {len(items)} | {shares} |")
    return "\n".join(rows)


def _score_again(method: str, folder: Path) -> None:
    model, tokenizer = load_base(four_bit=METHODS[method].four_bit, dtype="float32", device="cpu")
    rows = _scores(load_adapters(model, folder), tokenizer)
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = re.sub(r"\*\*Scores\*\*( \([^)]*\))?", f"**Scores** ({datetime.date.today()})", card)
    card = re.sub(r"(\| --- .*\n)(?:\| .*\n)+", lambda found: f"{found[1]}{rows}\n", card)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(rows)


if __name__ == "__main__":
    main()
