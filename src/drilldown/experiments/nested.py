"""Trainings as nested runs of one parent, each in its own process: one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlflow
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from drilldown.errors import NestedError
from drilldown.experiments.progress import Progress
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.reporting import report
from drilldown.reporting.statistics import summarize
from drilldown.steps import ROOT
from drilldown.tracking import invocation, runs, store, tags

POLL_SECONDS = 0.5  # between two looks at what a process has printed


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

    @classmethod
    def from_run(cls, step: str, seed: int, run_id: str, split: str, reused: bool = False) -> Outcome:
        """Read the outcome of a finished run from the store."""
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, f"{split}_accuracy")
        return cls(
            step,
            seed,
            run_id,
            reused,
            passed=tags.ours(run.data.tags)["gate"] == "passed",
            accuracies=tuple(entry.value for entry in sorted(history, key=lambda entry: entry.step)),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
        )


def train(
    tasks: Sequence[tuple[str, int]],
    options: TrainOptions,
    *,
    jobs: int,
    parent: str,
    split: str,
    progress: Progress,
    quiet: bool = True,
) -> Iterator[Outcome]:
    """Train each (step, seed) in its own process and in a run nested in `parent`; `jobs` processes at a time.

    Yields each outcome as soon as it is known. The processes report their epochs to `progress`; what they print is
    shown unless `quiet`. When the caller stops early, the processes that still train are terminated.
    """
    from joblib import Parallel, delayed

    trainings = _Trainings(options, parent, split, progress, quiet)
    try:
        # Threads, each waiting for one process: a pool of processes would break when one of them is killed.
        yield from Parallel(
            min(jobs, len(tasks)) or 1, backend="threading", return_as="generator_unordered", batch_size=1
        )(delayed(trainings.train)(*task) for task in tasks)
    finally:
        trainings.stop()


class _Trainings:
    """The training processes, and a way to stop all of them."""

    def __init__(self, options: TrainOptions, parent: str, split: str, progress: Progress, quiet: bool):
        self.options, self.parent, self.split, self.progress, self.quiet = options, parent, split, progress, quiet
        self.lock, self.stopped = threading.Lock(), False
        self.processes: dict[subprocess.Popen[bytes], str] = {}  # and the run of each

    def train(self, step: str, seed: int) -> Outcome:
        name = task_name(step, seed)
        run_id = runs.open_nested(self.parent, name)
        # Files, not pipes: a process that outlives this one can still print, and so closes its run in order.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            with self.lock:
                if self.stopped:
                    store.close_run(run_id, "KILLED", "stopped before it began")
                    return Outcome(step, seed, run_id, error="stopped before it began")
                process = subprocess.Popen(
                    [sys.executable, "-m", "drilldown", step, *replace(self.options, seed=seed).arguments()],
                    env=_environment(run_id),
                    stdout=stdout,
                    stderr=stderr,
                )
                self.processes[process] = run_id
            self.progress.epoch(name, 0)
            self._follow(process, stdout.fileno(), name)
            stderr.seek(0)
            errors = stderr.read().decode(errors="replace")
        with self.lock:
            if self.stopped:
                return Outcome(step, seed, run_id, error="stopped")
            del self.processes[process]
        self.progress.end(name)
        if process.returncode == 0:
            return Outcome.from_run(step, seed, run_id, self.split)
        if process.returncode < 0 or process.returncode > 128:
            number = -process.returncode if process.returncode < 0 else process.returncode - 128
            error, status = f"its process was ended by signal {number}", "KILLED"
        else:
            error, status = (errors.strip().splitlines() or ["no message"])[-1].removeprefix("error: "), "FAILED"
        store.close_run(run_id, status, error)
        if not self.quiet:
            tqdm.write(errors, file=sys.stderr, end="")
        return Outcome(step, seed, run_id, error=error)

    def _follow(self, process: subprocess.Popen[bytes], output: int, name: str) -> None:
        """Wait for the end of the process; meanwhile report its epochs, and show what it prints unless it is quiet."""
        offset, ended = 0, False
        while not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
                ended = True
            printed = os.pread(output, os.fstat(output).st_size - offset, offset)
            whole = printed[: len(printed) if ended else printed.rfind(b"\n") + 1]
            offset += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if not self.quiet:
                    tqdm.write(line)
                if epoch := report.epoch_of(line):
                    self.progress.epoch(name, epoch)

    def stop(self) -> None:
        """Terminate the processes and close their runs."""
        with self.lock:
            self.stopped = True
        for process in self.processes:
            process.terminate()
        exit_codes = {run_id: process.wait() for process, run_id in self.processes.items()}
        # If the store does not answer, the next command that opens it closes the runs.
        with store.short_timeouts(), contextlib.suppress(MlflowException):
            for run_id, code in exit_codes.items():
                if code != 0:
                    store.close_run(run_id, "KILLED", "stopped with its parent")


def _environment(run_id: str) -> dict[str, str]:
    """The environment of a process that trains in this run: ours, with the run, the store and the import path."""
    path = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONUNBUFFERED": "1",  # each epoch is printed at once
        invocation.STARTER: invocation.starter(),
        "PYTHONPATH": os.pathsep.join(path),
    }


def task_name(step: str, seed: int) -> str:
    """The name of a training, and of its run."""
    return f"{step} seed {seed}"


def check(outcomes: Sequence[Outcome]) -> None:
    """Raise NestedError if any training failed."""
    if failed := sorted((outcome.step, outcome.seed, outcome.error) for outcome in outcomes if outcome.error):
        step, seed, error = failed[0]
        raise NestedError(
            f"{len(failed)} of {len(outcomes)} runs failed, the first of them {step} seed {seed}: {error}"
        )


def outcome_line(outcome: Outcome, goal: Goal) -> str:
    """One training in one line, for the screen."""
    name = task_name(outcome.step, outcome.seed)
    if outcome.error is not None:
        return f"{name}: failed: {outcome.error}"
    summary = summarize(outcome.accuracies, goal)
    return (
        f"{name}: final {summary.final_accuracy:.2f} %  best {summary.best_accuracy:.2f} %  "
        f"lowest of the last {goal.last} {summary.min_accuracy_last_k:.2f} %  gate "
        f"{'passed' if outcome.passed else 'failed'}  {outcome.seconds:.0f} s{'  (reused)' if outcome.reused else ''}"
    )
