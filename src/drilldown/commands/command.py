"""What all commands begin with: the store is opened, and errors become one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from drilldown import hardware, training
from drilldown.tracking import places, store, switches

P = ParamSpec("P")


def command(
    function: Callable[P, None], *, connect: Callable[[], None] = store.connect, needs: str = "files"
) -> Callable[P, None]:
    """Connect a command to the store, and turn errors of MLflow and of memory into errors of one line.

    Args:
        function: what the command does.
        connect: opens the store.
        needs: "files" if the store's files must be where it says; "store" if there must also be a store; or "".
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        store.quiet_mlflow()
        hardware.keep_to_quota()
        with training.explained_errors():
            switches.settle()
            places.check_address()
            if needs == "store":
                places.check_store()
            connect()
            if needs:
                places.check_files()
            function(*args, **kwargs)

    return run


on_a_store = functools.partial(command, needs="store")  # a command that uses what was trained
