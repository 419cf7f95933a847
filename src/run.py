"""The process of a command, `python -m src.run step4 --seed 0`: guarded from its first moment on."""

import sys

from src import process


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error is one line on standard error, and an exit code that is not 0."""
    try:
        from src import commands  # takes seconds
    except process.Stopped as stop:
        print(f"error: {stop.reason}", file=sys.stderr)
        raise
    commands.main(arguments)


if __name__ == "__main__":
    process.guard()
    main()
