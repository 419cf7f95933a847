"""A Dask cluster, as the command sees it: its workers train like the processes of this machine do."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mlflow
from tqdm import tqdm

from drilldown.errors import ClusterError, ParameterError
from drilldown.experiments import remote
from drilldown.experiments.worker import Report, settings
from drilldown.messages import one_line, printable, without_password
from drilldown.tracking.attempts import LOST

if TYPE_CHECKING:
    from distributed import Client, Future

    from drilldown.training import Task

CONNECT_SECONDS = 15
STOP_SECONDS = 10  # in which the processes of a stopped command end
LOCAL = ("", "file", "sqlite")  # stores that only this machine has


@contextlib.contextmanager
def connect(address: str, gpus: int) -> Iterator[Cluster]:
    """Connect to the scheduler at this address. `gpus` is how many of them each training needs.

    Raises: ParameterError for a store that only this machine has, ClusterError when no worker can train.
    """
    if urlsplit(uri := mlflow.get_tracking_uri()).scheme in LOCAL:
        raise ParameterError(
            f"cluster is {address!r}: it takes a store that all machines reach, and MLFLOW_TRACKING_URI is "
            f"{without_password(uri)!r}; start one with mlflow server, as in MLFLOW_TRACKING_URI=http://HOST:5002"
        )
    with _client(address) as client:
        cluster = Cluster(client, address, gpus)
        cluster.check()
        yield cluster


@contextlib.contextmanager
def _client(address: str) -> Iterator[Client]:
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what ends a command is said in one line
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="drilldown")
    except (OSError, ValueError, ImportError) as error:  # a ValueError is about the address
        reason = f"no scheduler answers there within {CONNECT_SECONDS} s" if isinstance(error, OSError) else str(error)
        raise ClusterError(f"cluster is {address!r}: {reason}; it takes the address of a dask scheduler") from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=STOP_SECONDS)


class Cluster:
    """The workers behind a scheduler."""

    def __init__(self, client: Client, address: str, gpus: int) -> None:
        self.client, self.address, self.gpus = client, address, gpus
        self.topic, self.version, self.variables = f"drilldown-{uuid.uuid4().hex}", remote.version(), settings()
        self.hosts: dict[str, int] = {}  # how many trainings each machine makes at a time
        self.is_empty = False
        self.training: dict[str, RemoteWorker] = {}  # by the id of the run
        client.subscribe_topic(self.topic, self._hear)

    def check(self) -> None:
        """Raise ClusterError unless there is a worker that can train, and all workers have our version."""
        refusal = f"cluster is {self.address!r}: "
        if not self._workers():
            raise ClusterError(f"{refusal}its scheduler has no worker; start one, as in dask worker {self.address}")
        if not self.slots():
            raise ClusterError(
                f"{refusal}no worker has a GPU, and gpus is {self.gpus}; start one with --resources GPU={self.gpus}"
            )
        try:
            versions = self.client.run(remote.version, on_error="return")
        except Exception as error:  # whatever a worker without this package makes of the call
            versions = dict.fromkeys(self._workers(), error)
        for worker, version in versions.items():
            if not isinstance(version, dict):
                raise ClusterError(
                    f"{refusal}the worker {worker} cannot run this project ({_told(version)}); start it in a checkout "
                    "of this version, with PYTHONPATH=src"
                )
            remote.check_version(self.version, worker, version)

    def device(self, asked: str) -> str:
        """The device that workers train on, for the option `device`.

        Raises: ParameterError when that is not what `gpus` asks for.
        """
        if self.gpus and asked == "cpu":
            raise ParameterError("device is 'cpu': with gpus=1 it takes auto or cuda")
        return "cuda" if self.gpus or asked == "cuda" else "cpu"

    def slots(self) -> int:
        """How many trainings the workers can do at a time, now."""
        workers = self._workers()
        self.hosts = Counter()
        for address, worker in workers.items():
            self.hosts[remote.host(address)] += worker["nthreads"]
        able = [worker for worker in workers.values() if worker["resources"].get("GPU", 0) >= self.gpus]
        return sum(
            min(worker["nthreads"], int(worker["resources"]["GPU"] // self.gpus) if self.gpus else worker["nthreads"])
            for worker in able
        )

    def capacity(self) -> int:
        """How many trainings to send to the workers; at least one, which then waits for a worker."""
        slots = self.slots()
        if not slots and not self.is_empty:
            tqdm.write("the cluster has lost its workers: waiting for one", file=sys.stderr)
        self.is_empty = not slots
        return max(1, slots)

    def _workers(self) -> dict[str, Any]:
        gone = ClusterError(f"cluster is {self.address!r}: its scheduler is gone")
        if self.client.status != "running":
            raise gone
        try:  # asked now: what the client keeps has at times no workers
            found: dict[str, Any] = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        except OSError as error:
            raise gone from error
        return found

    def start(self) -> RemoteWorker:
        """Something that trains like a process of this machine."""
        return RemoteWorker(self)

    def submit(self, task: Task) -> Future:
        """Send the task to a worker."""
        request = {
            "task": asdict(task),
            "version": self.version,
            "variables": self.variables,
            "topic": self.topic,
            "hosts": self.hosts,
        }
        return self.client.submit(
            remote.train,
            request,
            key=f"train-{task.run_id}",
            pure=False,
            retries=0,
            resources={"GPU": self.gpus} if self.gpus else None,
        )

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Pass what a process has printed on to the thread that waits for it; called by Dask's thread."""
        _, message = event
        if worker := self.training.get(message["run_id"]):
            if message["line"] is None:
                worker.is_over.set()
            else:
                worker.lines.put(message["line"])


class RemoteWorker:
    """A worker of the cluster, with the methods of `Worker`; a task that is lost with its worker goes to another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lines: SimpleQueue[str | None] = SimpleQueue()  # what was printed; None at the end
        self.is_over = Event()  # the process of the task has ended, or waits for another task
        self.future: Future | None = None
        self.stopped_at = 0.0

    def train(self, tasks: Sequence[Task], show: Callable[[str], None]) -> Iterator[Report]:
        """Let a worker train the task, and report when it has ended; `show` gets each line that is printed."""
        (task,) = tasks
        if self.cluster.client.status != "running":
            yield Report(task.run_id, "the scheduler is gone", is_lost=True, killed=True)
            return
        self.is_over.clear()
        self.cluster.training[task.run_id] = self
        self.future = future = self.cluster.submit(task)
        future.add_done_callback(lambda _: self.lines.put(None))
        try:
            while (line := self.lines.get()) is not None:
                show(line)
            yield self._report(task.run_id, future)
        finally:
            if not future.cancelled():  # one that is cancelled is still waited for, by `wait`
                self.cluster.training.pop(task.run_id, None)
            future.release()

    def _report(self, run_id: str, future: Future) -> Report:
        from distributed import KilledWorker

        try:
            return Report(**future.result())
        except KilledWorker:
            return Report(run_id, LOST, is_lost=True, killed=True)
        except CancelledError as error:
            stopped = (
                "stopped" if self.stopped_at else f"the cluster has dropped it ({getattr(error, 'reason', error)})"
            )
            return Report(run_id, stopped, is_lost=True, killed=True)
        except Exception as error:  # of Dask: an error of the training is a part of the report
            return Report(run_id, _told(error), is_lost=True)

    def errors(self) -> str:
        """Nothing: what a process has printed as errors is in the log of its Dask worker."""
        return ""

    def is_alive(self) -> bool:
        """Whether it can be asked again."""
        return True

    def let_go(self) -> None:
        """Nothing: the Dask worker ends its process."""

    def end(self) -> None:
        """Nothing: the Dask worker ends its process."""

    def terminate(self) -> None:
        """Let the process end in the middle of its training."""
        self.stopped_at = time.monotonic()
        if self.future:
            with contextlib.suppress(Exception):  # the scheduler may be gone: its workers then end by themselves
                self.future.cancel()

    def wait(self) -> None:
        """Wait for the end of the process, but only for seconds: its machine may be out of reach."""
        self.is_over.wait(max(0.0, self.stopped_at + STOP_SECONDS - time.monotonic()))


def _told(error: object) -> str:
    return printable(one_line(str(error) or type(error).__name__))
