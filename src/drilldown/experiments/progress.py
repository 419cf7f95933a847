"""The progress of several trainings at a time: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Self

import click
from tqdm import tqdm

INTERVAL = 60  # seconds between two lines


class Progress:
    """Counts the epochs of all trainings, and names the last epoch of each one that runs; on standard error.

    A context manager. Several threads may report at a time.
    """

    def __init__(self, epochs: Mapping[str, int], total: int | None = None):
        """`epochs` has the length of each training, by its name; with a `total`, more trainings may be added to it."""
        self.epochs, self.total = epochs, sum(epochs.values()) if total is None else total
        self.running: dict[str, int] = {}
        self.lock, self.shown_at = threading.Lock(), time.monotonic()
        self.bar = tqdm(total=self.total, unit="epoch", disable=None if self.total else True)
        self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def epoch(self, name: str, epoch: int) -> None:
        """The training has finished this epoch."""
        with self.lock:
            self._advance(epoch - self.running.get(name, 0))
            self.running[name] = epoch
            self._show()

    def end(self, name: str) -> None:
        """The training has ended, however many epochs it has had."""
        with self.lock:
            self._advance(self.epochs[name] - self.running.pop(name, 0))
            self._show()

    def _advance(self, epochs: int) -> None:
        self.done += epochs
        self.bar.update(epochs)

    def _show(self) -> None:
        running = ", ".join(f"{name}: {epoch}/{self.epochs[name]}" for name, epoch in sorted(self.running.items()))
        self.bar.set_postfix_str(running)
        if self.bar.disable and running and time.monotonic() - self.shown_at >= INTERVAL:
            self.shown_at = time.monotonic()
            click.echo(f"{self.done} of {self.total} epochs: {running}", err=True)
