"""Trainings as nested runs of one parent, in processes of their own: one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO

import mlflow
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from drilldown.errors import NestedError
from drilldown.experiments.progress import Progress
from drilldown.experiments.worker import Report, Worker
from drilldown.learning import mapped
from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.reporting import report
from drilldown.reporting.statistics import summarize
from drilldown.tracking import runs, store, tags
from drilldown.training import Task, run_name

if TYPE_CHECKING:
    from drilldown.experiments.cluster import Cluster, RemoteWorker

MAX_JOBS = 10_000  # on a cluster
LOOK_SECONDS = 5  # between two looks at how many workers a cluster has, and which of a batch have ended


@dataclass(frozen=True)
class Outcome:
    """The result of one training, or its error."""

    step: str
    seed: int
    run_id: str
    reused: bool = False
    error: str | None = None
    passed: bool = False
    accuracies: tuple[float, ...] = ()  # percent, one per epoch
    seconds: float | None = None  # of the whole run
    trial: int | None = None  # of a search

    @classmethod
    def from_run(
        cls, step: str, seed: int, run_id: str, split: str, reused: bool = False, trial: int | None = None
    ) -> Outcome:
        """Read the outcome of a finished run from the store."""
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, f"{split}_accuracy")
        return cls(
            step,
            seed,
            run_id,
            reused,
            passed=tags.ours(run.data.tags).get("gate") == "passed",  # a pruned run has no verdict
            accuracies=tuple(entry.value for entry in sorted(history, key=lambda entry: entry.step)),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
            trial=trial,
        )


def train(
    trainings: Iterable[tuple[str, TrainOptions]],
    *,
    jobs: int | None,
    parent: str,
    dataset: Dataset,
    progress: Progress,
    together: int = 1,
    register: bool = False,
    quiet: bool = True,
    cluster: Cluster | None = None,
) -> Iterator[Outcome]:
    """Train each (step, options) on the dataset, in a run nested in `parent`; by `jobs` processes at a time.

    Each process trains one run after the other; all of them share the pages of the dataset. Yields each outcome as soon
    as it is known. When the caller stops early, the processes are terminated.

    Args:
        trainings: a process that waits takes the next one, after the caller has got the outcomes that are known. So an
            iterator may decide by them what to train.
        jobs: None, on a cluster, stands for as many as its workers can do at the time.
        cluster: whose workers train, in place of processes of this machine; each loads the dataset by itself.
        together: how many trainings a process makes at the same time, on CUDA; they differ in their seeds only.
        register: whether models that pass the gate are registered.
        progress: is told of each epoch.
        quiet: whether what the processes print is kept back.
    """
    with tempfile.TemporaryFile() as file:
        if not cluster:
            mapped.write(dataset, file)
        pool = _Workers(file, parent, dataset, progress, register, quiet, cluster)
        batches = _batches(trainings, together)
        # Threads, each waiting for one process: a pool of processes would break when one of them is killed.
        with ThreadPoolExecutor(jobs or MAX_JOBS) as threads:
            running: set[Future[None]] = set()
            outcomes: SimpleQueue[Outcome] = SimpleQueue()
            try:
                while True:
                    free = (jobs or (cluster.capacity() if cluster else 1)) - len(running)
                    running |= {threads.submit(pool.train, batch, outcomes) for batch in islice(batches, max(0, free))}
                    if not running:
                        return
                    # Workers may join a cluster at any time, and the first of a batch ends long before the last.
                    done, running = wait(running, LOOK_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    while not outcomes.empty():
                        yield outcomes.get()
            finally:
                pool.stop()


def _batches(trainings: Iterable[tuple[str, TrainOptions]], size: int) -> Iterator[list[tuple[str, TrainOptions]]]:
    """Neighbours that differ in their seeds only, at most `size` at a time."""
    for _, alike in groupby(trainings, lambda training: (training[0], replace(training[1], seed=0))):
        while batch := list(islice(alike, size)):
            yield batch


class _Workers:
    """The processes: those that train, and those that wait for a training."""

    def __init__(
        self,
        file: BinaryIO,
        parent: str,
        dataset: Dataset,
        progress: Progress,
        register: bool,
        quiet: bool,
        cluster: Cluster | None,
    ) -> None:
        self.file, self.parent, self.dataset, self.cluster = file, parent, dataset, cluster
        self.progress, self.register, self.quiet = progress, register, quiet
        self.lock, self.stopped = threading.Lock(), False
        self.idle: list[Worker | RemoteWorker] = []
        self.busy: dict[Worker | RemoteWorker, Sequence[Task]] = {}  # and what each trains

    def train(self, batch: Sequence[tuple[str, TrainOptions]], outcomes: SimpleQueue[Outcome]) -> None:
        """Train the batch in one process; if that ends too early, train each of those that are left alone."""
        tasks = []
        for step, options in batch:
            name = run_name(step, options.seed, options.trial)
            run_id = runs.open_nested(self.parent, name, self.dataset)
            tasks.append(Task(step, options, run_id, self.register, on_cluster=bool(self.cluster)))
        by_run = {task.run_id: task for task in tasks}
        groups = [tasks]
        while groups:
            group = groups.pop(0)
            for ended in self._train(group):
                task = by_run[ended.run_id]
                if ended.is_lost and len(group) > 1:
                    groups.append([task])
                else:
                    outcomes.put(self._outcome(task, ended))

    def _train(self, tasks: Sequence[Task]) -> Iterator[Report]:
        if (worker := self._take(tasks)) is None:
            for task in tasks:
                store.close_run(task.run_id, "KILLED", "stopped before it began")
                yield Report(task.run_id, "stopped before it began")
            return
        reusable = True
        for task in tasks:
            self.progress.epoch(task.name, 0)
        for ended in worker.train(tasks, partial(self._show, tasks)):
            reusable = reusable and ended.error is None  # else a fresh process takes its place
            if ended.error and not self.quiet:
                tqdm.write(worker.errors(), file=sys.stderr, end="")
            yield ended
        with self.lock:
            if not self.stopped:
                del self.busy[worker]
                if reusable:
                    self.idle.append(worker)
                    return
        worker.end()

    def _take(self, tasks: Sequence[Task]) -> Worker | RemoteWorker | None:
        """A process that waits for a training, or a new one; None once all of them were stopped."""
        with self.lock:
            if self.stopped:
                return None
            while self.idle:
                worker = self.idle.pop()
                if worker.is_alive():
                    break
                worker.end()  # it was killed while it waited
            else:
                worker = self.cluster.start() if self.cluster else Worker(self.file)
            self.busy[worker] = tasks
            return worker

    def _show(self, tasks: Sequence[Task], line: str) -> None:
        if not self.quiet:
            tqdm.write(f"{tasks[0].name}: {line}" if self.cluster else line)  # of several at a time
        if len(tasks) == 1 and (epoch := report.epoch_of(line)):
            self.progress.epoch(tasks[0].name, epoch)

    def _outcome(self, task: Task, ended: Report) -> Outcome:
        """The outcome of a training; its run is closed if its process has not done that."""
        self.progress.end(task.name)
        step, seed, trial, run_id = task.step, task.options.seed, task.options.trial, task.run_id
        if ended.error is None:
            return Outcome.from_run(step, seed, run_id, self.dataset.split, trial=trial)
        if not self.stopped:
            store.close_run(run_id, "KILLED" if ended.killed else "FAILED", ended.error)
        return Outcome(step, seed, run_id, error=ended.error, trial=trial)

    def stop(self) -> None:
        """End the processes, those that train in the middle of it, and close their runs."""
        with self.lock:
            self.stopped = True
            left = [task.run_id for tasks in self.busy.values() for task in tasks]
        for worker in self.busy:
            worker.terminate()
        for worker in self.idle:
            worker.let_go()
        for worker in self.idle:
            worker.end()
        for worker in self.busy:
            worker.wait()
        # If the store does not answer, the next command that opens it closes the runs.
        with store.short_timeouts(), contextlib.suppress(MlflowException):
            for run_id in left:
                store.close_run(run_id, "KILLED", "stopped with its parent")


def check(outcomes: Sequence[Outcome]) -> None:
    """Raise NestedError if any training failed."""
    if failed := sorted((outcome.step, outcome.seed, outcome.error) for outcome in outcomes if outcome.error):
        step, seed, error = failed[0]
        raise NestedError(
            f"{len(failed)} of {len(outcomes)} runs failed, the first of them {step} seed {seed}: {error}"
        )


def outcome_line(outcome: Outcome, goal: Goal | None) -> str:
    """One training in one line, for the screen; a training that failed needs no goal."""
    name = run_name(outcome.step, outcome.seed, outcome.trial)
    if outcome.error is not None:
        return f"{name}: failed: {outcome.error}"
    assert goal is not None
    summary = summarize(outcome.accuracies, goal)
    return (
        f"{name}: final {summary.final_accuracy:.2f} %  best {summary.best_accuracy:.2f} %  "
        f"lowest of the last {goal.last} {summary.min_accuracy_last_k:.2f} %  gate "
        f"{'passed' if outcome.passed else 'failed'}  {outcome.seconds:.0f} s{'  (reused)' if outcome.reused else ''}"
    )
