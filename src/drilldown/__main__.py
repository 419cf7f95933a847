"""The process of a command, `python -m drilldown step4 --seed 0`: guard it, then start the command line."""

import atexit
import gc

from drilldown import hardware, process

GC_THRESHOLD = 100_000  # objects between two collections; the default of 700 costs the imports a second


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error is one line on standard error, and an exit code other than 0."""
    from drilldown import cli  # once the process is guarded

    cli.main(arguments)


if __name__ == "__main__":
    process.guard()
    hardware.limit_spinning()
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # Python ends by looking for garbage among all objects, which takes one to two seconds
    main()
