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
import requests

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
        manage_user(stack, "POST", "create", PASSWORD)
        yield stack


def manage_user(stack: Stack, method: str, action: str, password: str) -> None:
    """Create the user or, by PATCH and update-password, give it another password."""
    _, user, secret = stack.client.values()
    # MLflow's own client of this API imports its whole server.
    answer = requests.request(
        method,
        f"{stack.uri}/api/2.0/mlflow/users/{action}",
        json={"username": USER, "password": password},
        auth=(user, secret),
        timeout=60,
    )
    answer.raise_for_status()


def client(stack: Stack) -> dict[str, str]:
    """The variables of a client, an ordinary user who holds no key of the object store."""
    return stack.client | {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}


def kill_workers(stack: Stack) -> list[int]:
    """SIGKILL the processes in which MLflow's server answers; returns their ids."""
    children = psutil.Process(stack.mlflow.process.pid).children(recursive=True)
    workers = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]  # not what restarts them
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    return workers
