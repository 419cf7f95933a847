"""A tracking server with PostgreSQL and an object store, for tests; it needs PostgreSQL and SeaweedFS."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.server.auth.client import AuthServiceClient

from drilldown.server import ServerError, Stack
from tests.faults.small_disk import mounted
from tests.support.programs import free_port

USER, PASSWORD = "trainer", "a password of the tests"
DISK = "size=400m"  # of the object store


@contextlib.contextmanager
def started() -> Iterator[Stack]:
    """Start the servers, with a user beside the administrator; skip where a program is missing."""
    with contextlib.ExitStack() as closing:
        # Not in pytest's folder: only root can reach that, and PostgreSQL does not run as root.
        folder = Path(tempfile.mkdtemp(prefix="drilldown-servers-"))
        closing.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        try:
            stack = Stack(folder, free_port())
        except ServerError as missing:
            pytest.skip(str(missing))
        with contextlib.suppress(pytest.skip.Exception):  # then only the test of a full disk is skipped
            closing.enter_context(mounted(folder / "objects", DISK))
        closing.callback(stack.stop)
        closing.callback(stack.objects.stop, signal.SIGKILL)  # it takes 15 s to end in order
        stack.start()
        with as_administrator(stack) as users:
            users.create_user(USER, PASSWORD)
        yield stack


@contextlib.contextmanager
def as_administrator(stack: Stack) -> Iterator[AuthServiceClient]:
    """The client that manages the server's users."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.client.items():
            patch.setenv(name, value)
        yield AuthServiceClient(stack.uri)


def client(stack: Stack) -> dict[str, str]:
    """The variables of a client, an ordinary user who holds no key of the object store."""
    return stack.client | {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}


def kill_workers(stack: Stack) -> list[int]:
    """SIGKILL the processes in which MLflow's server answers; returns their ids."""
    workers = [child.pid for child in psutil.Process(stack.mlflow.process.pid).children()]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    return workers
