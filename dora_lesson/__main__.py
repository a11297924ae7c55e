"""`python -m dora_lesson doctor` says what this machine can do; `... prepare` fetches and converts the model.

`... measure --shape llama-3.1-8b` times a training step of each method on a model of that shape with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dora_lesson.core import SetupError
from dora_lesson.environment import doctor


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0 only where it succeeded."""
    parser = argparse.ArgumentParser(prog="python -m dora_lesson", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="report what this machine can do, and what is missing")
    commands.add_parser("prepare", help="fetch and convert the bundled model, once")
    size = commands.add_parser("measure", help="time and memory of a training step of each method, without a download")
    size.add_argument("--shape", default="llama-3.1-8b", help="a published Llama's name, such as llama-3.1-8b")
    size.add_argument("--tokens", type=int, default=512, help="of the one sequence of a step")
    size.add_argument("--rounds", type=int, default=5, help="timed steps of each method")
    size.add_argument("--record", type=Path, help="a file to write the rows to, with how they were made")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "measure":
            return _measure(chosen)
        if chosen.command == "doctor":
            report = doctor()
            print(report)
            return 0 if report.ok else 1
        from dora_lesson.environment import bundled_status
        from dora_lesson.models.bundled import prepare

        prepare()
        state, todo = bundled_status()
        print(todo or state)
        return 1 if todo else 0
    except (SetupError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        print(f"{where}{problem.strerror}. Pass a path that can be written to.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "What it measured is not kept" if chosen.command == "measure" else "Nothing is lost"
        print(f"Stopped. {kept}: give the same command again.", file=sys.stderr)
        return 130


def _measure(chosen: argparse.Namespace) -> int:
    from dora_lesson.evidence.records import provenance
    from dora_lesson.memory.timing import measure_shape

    if chosen.record and chosen.record.exists():
        raise ValueError(f"{chosen.record} is there already, and nothing is written over: pass another --record.")
    command = f"python -m dora_lesson measure --shape {chosen.shape} --tokens {chosen.tokens} --rounds {chosen.rounds}"
    rows = measure_shape(chosen.shape, tokens=chosen.tokens, rounds=chosen.rounds)
    record = provenance(command, seeds=[0]) | {"rows": rows}
    print(f"{chosen.shape}, {chosen.tokens} tokens, {record['hardware']}")
    for row in rows:
        found = row["note"] or f"{row['seconds']:7.3f} s a step, peak {row['peak'] / 1e9:6.2f} GB"
        expected = f", {row['expected'] / 1e9:.2f} GB expected" if row["expected"] and not row["note"] else ""
        print(f"{row['method']:5} {row['by']:11} {found}{expected}")
    if chosen.record:
        chosen.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
