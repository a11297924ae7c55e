"""`python -m dora_lesson.experiments` makes the paired runs of lesson 06, or those of a design of your own."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from dora_lesson.core import DATA, SetupError
from dora_lesson.evidence.design import DEFAULT, DESIGNS, read_design
from dora_lesson.evidence.records import read_runs

RECORDS = DATA / "records"


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing of a design's runs, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dora_lesson.experiments", description=__doc__)
    parser.add_argument("--design", type=Path, help="a YAML file; data/designs/control.yaml if left out")
    parser.add_argument("--base", help="a Llama of the hub, or a folder, in place of the design's")
    parser.add_argument("--file", type=Path, help="JSON lines, one a run; for the course's designs in data/records")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the processor's cores")
    parser.add_argument("--plan", action="store_true", help="say what would be run and what it can detect, and stop")
    options = parser.parse_args(arguments)
    try:
        design = read_design(options.design, options.base)
        path = options.design or DEFAULT
        ours = not options.base and path.resolve().parent == DESIGNS.resolve()
        if not (file := options.file or (RECORDS / f"{path.stem}.jsonl" if ours else None)):
            raise ValueError("Pass --file, a place for these runs: data/records holds those of the course.")
        print(design)
        if records := read_runs(file):
            seconds = statistics.median(run.get("seconds", 0) for run in records.values())
            print(f"{file.name} holds {len(records)} runs; the median one trained for {seconds:.0f} s.")
        if not options.plan:
            from dora_lesson.experiments.run import experiment

            runs = experiment(design, file, options.jobs)
            print(f"{len(runs)} runs to compare lie in {file.name}.")
    except (SetupError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"{problem.filename}: {problem.strerror}. Pass a --file that can be written to.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing is lost: give the same command again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
