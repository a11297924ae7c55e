"""`python -m dora_lesson doctor` says what this machine can do; `... prepare` fetches and converts the model."""

from __future__ import annotations

import argparse
import sys

from dora_lesson.environment import SetupError, doctor


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0 only where it succeeded."""
    parser = argparse.ArgumentParser(prog="python -m dora_lesson", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="report what this machine can do, and what is missing")
    commands.add_parser("prepare", help="fetch and convert the embedded model, once")
    try:
        if parser.parse_args(arguments).command == "doctor":
            report = doctor()
            print(report)
            return 0 if report.ok else 1
        from dora_lesson.embedded import embedded_status, prepare

        prepare()
        print(embedded_status()[1])
        return 0
    except SetupError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing is lost: the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
