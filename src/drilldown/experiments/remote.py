"""What a Dask worker does: it starts the process that trains, gives it a task, and ends it if that is cancelled.

The Dask worker imports neither PyTorch nor MLflow.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dask import config
from distributed import Reschedule, get_worker

from drilldown import hardware
from drilldown.errors import ClusterError
from drilldown.experiments.worker import Report, Worker
from drilldown.steps import FOLDER, ROOT

if TYPE_CHECKING:
    from distributed import Worker as DaskWorker

IDLE_SECONDS = 5  # after which a process without a task is ended
PACKAGES = ("torch", "torchvision", "numba", "mlflow")
LISTED = 20  # characters of a digest in a message


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A process that waits for a task."""

    child: Worker
    variables: Mapping[str, str]


_lock = threading.Lock()
_idle: list[_Waiting] = []


def version() -> dict[str, str]:
    """What runs in this checkout: the digest of the code, and the versions of Python and of the packages."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "drilldown", FOLDER):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode() + file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"code": digest.hexdigest()[:LISTED], "python": platform.python_version(), **versions}


def check_version(wanted: Mapping[str, str], worker: str, given: Mapping[str, str]) -> None:
    """Raise ClusterError unless the worker has the same version as the command."""
    for name, value in wanted.items():
        if given.get(name) != value:
            raise ClusterError(
                f"the worker {worker} has another version: {name} is {given.get(name)} there and {value} here; start "
                "it from the same checkout, with the same packages"
            )


def train(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train the task of a request in a process on this machine; returns the fields of a report.

    The process is ended when the request is cancelled, as when its client is gone, and when this Dask worker ends.
    """
    worker, task = get_worker(), request["task"]
    key, run_id = worker.get_current_task(), task["run_id"]
    try:
        check_version(request["version"], worker.address, version())
    except ClusterError as error:
        return asdict(Report(run_id, str(error)))
    threads = task["options"]["threads"] or max(1, hardware.cores() // request["hosts"].get(host(worker.address), 1))
    child = _take(request["variables"])
    try:
        (report,) = child.ask(
            [task | {"options": task["options"] | {"threads": threads}}],
            lambda line: worker.log_event(request["topic"], {"run_id": run_id, "line": line}),
            lambda: _is_wanted(worker, key),
        )
    finally:
        worker.log_event(request["topic"], {"run_id": run_id, "line": None})
    if report.error is None:
        _keep(child, request["variables"])
        return asdict(report)
    sys.stderr.write(child.errors())  # a traceback is found in the log of this Dask worker
    child.end()
    if not _runs(worker):
        raise Reschedule
    return asdict(report)


def host(address: str) -> str:
    """The machine of a Dask worker's address, tcp://machine:port."""
    return address.rpartition("://")[2].rpartition(":")[0]


def _is_wanted(worker: DaskWorker, key: Any) -> bool:
    """Whether somebody waits for the task; Dask does not stop a function that nobody waits for."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running") and _runs(worker)


def _runs(worker: DaskWorker) -> bool:
    """Whether the Dask worker goes on, and does not end or leave the cluster."""
    return worker.status.name in ("running", "paused")


def _take(variables: Mapping[str, str]) -> Worker:
    """A process that waits for a task with these variables, or a new one."""
    with _lock:
        for waiting in [waiting for waiting in _idle if waiting.variables == variables]:
            _idle.remove(waiting)
            if waiting.child.is_alive():
                return waiting.child
        for name, value in config.get("distributed.nanny.pre-spawn-environ").items():
            if os.environ.get(name) == str(value):  # Dask has set it, for NumPy in the Dask worker
                del os.environ[name]
    return Worker(variables=variables)


def _keep(child: Worker, variables: Mapping[str, str]) -> None:
    """Let the process wait for the next task, but not for long."""
    waiting = _Waiting(child, variables)
    with _lock:
        _idle.append(waiting)
    timer = threading.Timer(IDLE_SECONDS, _end, [waiting])
    timer.daemon = True
    timer.start()


def _end(waiting: _Waiting) -> None:
    """End the process if it still waits."""
    with _lock:
        if waiting not in _idle:
            return
        _idle.remove(waiting)
    waiting.child.end()
