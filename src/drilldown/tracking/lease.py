"""A lock that processes on several machines share: a registered model on their server that exists while it is held.

MLflow has no conditional write, except that a name can be taken only once. So a lock is a registered model whose name
ends with a number. To get the lock, a process creates the next number and then lists all locks of that name. It holds
the lock if every other one has expired; if not, it deletes its own and waits. Of two processes, the one that creates
later always sees the other one. No user needs the right to delete what another user has created. All times are those
of the server, so the clocks of the machines do not matter.
"""

from __future__ import annotations

import contextlib
import math
import platform
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from drilldown import process
from drilldown.errors import StoreError
from drilldown.tracking.tags import ours, prefixed

PREFIX = "drilldown.lock."
SECONDS = 300  # after which a lock has expired: its holder is gone, or must not act on it any more
MARGIN_SECONDS = 60  # a holder stops acting on it so much sooner
DESCRIPTION = "A lock of drilldown: a command changes the champion. It is deleted when that command is done."


@dataclass(frozen=True)
class Lease:
    """A lock that is held."""

    name: str
    since: float = math.inf  # time.monotonic(), before it was created; a lock of the system's does not expire

    def confirm(self) -> None:
        """Raise StoreError when it has expired, or is about to: another process may hold the lock now."""
        held = time.monotonic() - self.since
        if held > SECONDS - MARGIN_SECONDS:
            raise StoreError(
                f"{self.name} was not changed: the store took {held:.0f} s, and the lock expires after {SECONDS} s; "
                "try again"
            )


@contextlib.contextmanager
def hold(name: str) -> Iterator[Lease]:
    """Hold the lock of that name while the context is open; waits for its turn, and says for whom."""
    client, owner = MlflowClient(), uuid.uuid4().hex
    try:
        yield _acquire(client, name, owner)
    finally:
        _withdraw(client, name, owner)


def is_lock(model: str) -> bool:
    """Whether the registered model of that name is a lock."""
    return model.startswith(PREFIX)


def _acquire(client: MlflowClient, name: str, owner: str) -> Lease:
    tags = prefixed({"lock.owner": owner, "process": process.liveness_lock() or f"{platform.node()}:"})
    told = False
    while True:
        since = time.monotonic()
        number = max(map(_number, _existing(client, name)), default=0) + 1
        try:
            client.create_registered_model(f"{PREFIX}{name}.{number}", tags, DESCRIPTION)
        except MlflowException as error:  # another's, or this process's own, whose answer was lost
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = _existing(client, name)
        mine = [lock for lock in found if _owner(lock) == owner]
        others = [lock for lock in found if _owner(lock) != owner]
        if mine:
            now = int(mine[0].creation_timestamp)  # by the server's clock
            if not (holders := _holders(others, now)):
                _delete(client, others)
                return Lease(name, since)
            _delete(client, mine)
            if not told:
                click.echo(_waiting(name, holders[0]), err=True)
                told = True
            while holders:
                _pause()
                holders = _holders(_existing(client, name), now + int(1000 * (time.monotonic() - since)))
        _pause()


def _withdraw(client: MlflowClient, name: str, owner: str) -> None:
    """Delete what the owner has created. If the server does not answer, it expires."""
    with contextlib.suppress(MlflowException):
        _delete(client, (lock for lock in _existing(client, name) if _owner(lock) == owner))


def _existing(client: MlflowClient, name: str) -> list[RegisteredModel]:
    """All locks of that name: the one that is held, those that want to be, and those that have expired."""
    start = f"{PREFIX}{name}."
    found = client.search_registered_models(f"name LIKE '{start}%'")
    return [lock for lock in found if lock.name.startswith(start) and lock.name.removeprefix(start).isdecimal()]


def _holders(locks: Iterable[RegisteredModel], now: int) -> list[RegisteredModel]:
    """Those that have not expired at that time, in milliseconds, and whose process is not known to be gone."""
    return [
        lock
        for lock in locks
        if now - int(lock.creation_timestamp) < 1000 * SECONDS and not process.is_gone(_process(lock), keep=True)
    ]


def _delete(client: MlflowClient, locks: Iterable[RegisteredModel]) -> None:
    for lock in locks:
        with contextlib.suppress(MlflowException):  # another user's: it stays, and has expired
            client.delete_registered_model(lock.name)


def _number(lock: RegisteredModel) -> int:
    return int(lock.name.rpartition(".")[2])


def _owner(lock: RegisteredModel) -> str | None:
    return ours(lock.tags).get("lock.owner")


def _process(lock: RegisteredModel) -> str:
    return ours(lock.tags).get("process", ":")


def _waiting(name: str, holder: RegisteredModel) -> str:
    machine = _process(holder).partition(":")[0] or "another machine"
    return f"waiting: a command on {machine} changes {name}; if it is gone, its lock expires after {SECONDS} s"


def _pause() -> None:
    time.sleep(random.uniform(0.1, 0.4))  # two that met do not meet again
