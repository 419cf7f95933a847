"""One-line errors for the benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from drilldown.errors import DrilldownError
from drilldown.messages import one_line


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn this project's errors into click's, which prints them as one line without a traceback."""
    try:
        yield
    except DrilldownError as error:
        raise click.ClickException(one_line(str(error))) from None
