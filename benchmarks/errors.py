"""What a benchmark cannot have is said in one line, and not by a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from src.learning.data import DataError
from src.learning.recipe import ParameterError
from src.lifecycle.messages import one_line
from src.lifecycle.predict import PredictError


@contextmanager
def in_one_line() -> Iterator[None]:
    """Hand on what is wrong with the data or the model as click's own error, which it prints as a line."""
    try:
        yield
    except (DataError, ParameterError, PredictError) as error:
        raise click.ClickException(one_line(str(error))) from None
