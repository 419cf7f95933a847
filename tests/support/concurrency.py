"""Threads that meet, or that must not."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from sqlalchemy import event
from sqlalchemy.orm import Session


def watch_turns(monkeypatch, owner: object, call: str) -> tuple[threading.Barrier, threading.Event]:
    """Let each thread that makes the call wait a while for a second one.

    Returns: the barrier, broken when a thread waited in vain, and the event that is set when two threads met.
    """
    met = threading.Event()
    together = threading.Barrier(2, action=met.set)
    function = getattr(owner, call)

    def watched(*given, **named):
        with contextlib.suppress(threading.BrokenBarrierError):  # no second thread came
            together.wait(timeout=1)
        return function(*given, **named)

    monkeypatch.setattr(owner, call, watched)
    return together, met


def at_once(*tasks: Callable[[], object]) -> None:
    """Run the tasks, each in a thread of its own."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def meeting_before_a_row(kind: type) -> Iterator[threading.Event]:
    """Let two threads meet just before both write a row of that kind: neither has seen the other's row.

    Yields: the event that is set when they met.
    """
    met = threading.Event()
    together = threading.Barrier(2, action=met.set)

    def wait(session, context, instances):
        if not met.is_set() and any(isinstance(row, kind) for row in session.new):
            together.wait(timeout=20)

    event.listen(Session, "before_flush", wait)
    try:
        yield met
    finally:
        event.remove(Session, "before_flush", wait)
