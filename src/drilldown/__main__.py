"""The process of a command, `python -m drilldown step4 --seed 0`: guard it, then start the command line."""

from drilldown import process


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error is one line on standard error, and an exit code other than 0."""
    from drilldown import cli  # once the process is guarded

    cli.main(arguments)


if __name__ == "__main__":
    process.guard()
    main()
