"""Trainings as nested runs of one parent, each in a process of its own: what fails there fails alone."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlflow
from joblib import Parallel, delayed
from mlflow.exceptions import MlflowException

from src.learning.recipe import Target
from src.lifecycle import gate, store, tracking
from src.lifecycle.provenance import ROOT


class NestedError(Exception):
    """At least one training failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one training."""

    step: str
    seed: int
    run_id: str
    reused: bool = False
    error: str | None = None
    passed: bool = False
    accuracies: tuple[float, ...] = ()  # percent, one an epoch
    seconds: float | None = None  # the whole run

    @classmethod
    def of(cls, step: str, seed: int, run_id: str, split: str, reused: bool = False) -> "Outcome":
        """A finished run's."""
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, f"{split}_accuracy")
        return cls(
            step,
            seed,
            run_id,
            reused,
            passed=run.data.tags["gate"] == "passed",
            accuracies=tuple(entry.value for entry in sorted(history, key=lambda entry: entry.step)),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
        )


def train(
    tasks: Sequence[tuple[str, int]],
    parameters: Mapping[str, object],
    *,
    jobs: int,
    parent: str,
    split: str,
    quiet: bool = True,
) -> Iterator[Outcome]:
    """Train each (step, seed), `jobs` at a time, each in a process of its own and in a run nested in `parent`.

    Yields an outcome as soon as there is one. What they print is shown unless `quiet`. Processes that still train when
    the caller stops are ended.
    """
    trainings = _Trainings(parameters, parent, split, subprocess.DEVNULL if quiet else None)
    try:
        # A thread waits for each process: should one be killed, the others go on.
        yield from Parallel(
            min(jobs, len(tasks)) or 1, backend="threading", return_as="generator_unordered", batch_size=1
        )(delayed(trainings.train)(*task) for task in tasks)
    finally:
        trainings.stop()


class _Trainings:
    """The processes that train, and a way to end them all."""

    def __init__(self, parameters: Mapping[str, object], parent: str, split: str, output: int | None):
        self.parent, self.split, self.output = parent, split, output
        self.options = [part for name, value in parameters.items() for part in (f"--{name}", str(value))]
        self.lock, self.stopped, self.processes = threading.Lock(), False, {}

    def train(self, step: str, seed: int) -> Outcome:
        run_id = tracking.open_nested(self.parent, f"{step} seed {seed}")
        with self.lock:
            if self.stopped:
                store.close(run_id, "KILLED", "stopped before it began")
                return Outcome(step, seed, run_id, error="stopped before it began")
            process = subprocess.Popen(
                [sys.executable, "-m", "src.run", step, "--seed", str(seed), *self.options],
                cwd=ROOT,
                env=os.environ | {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
                stdout=self.output,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.processes[process] = run_id
        _, said = process.communicate()
        with self.lock:
            if self.stopped:
                return Outcome(step, seed, run_id, error="stopped")
            del self.processes[process]
        if process.returncode == 0:
            return Outcome.of(step, seed, run_id, self.split)
        if process.returncode < 0 or process.returncode > 128:
            number = -process.returncode if process.returncode < 0 else process.returncode - 128
            error, status = f"its process was ended by signal {number}", "KILLED"
        else:
            error, status = (said.strip().splitlines() or ["no message"])[-1].removeprefix("error: "), "FAILED"
        store.close(run_id, status, error)
        if self.output is None:
            sys.stderr.write(said)
        return Outcome(step, seed, run_id, error=error)

    def stop(self) -> None:
        """End them and their runs."""
        with self.lock:
            self.stopped = True
        for process in self.processes:
            process.terminate()
        ended = {run_id: process.wait() for process, run_id in self.processes.items()}
        with store.impatient(), contextlib.suppress(MlflowException):  # without it, whatever runs next closes them
            for run_id, code in ended.items():
                if code != 0:
                    store.close(run_id, "KILLED", "stopped with its parent")


def check(outcomes: Sequence[Outcome]) -> None:
    """Raise NestedError when one of them failed."""
    if failed := sorted((outcome.step, outcome.seed, outcome.error) for outcome in outcomes if outcome.error):
        step, seed, error = failed[0]
        raise NestedError(
            f"{len(failed)} of {len(outcomes)} runs failed, the first of them {step} seed {seed}: {error}"
        )


def outcome_line(outcome: Outcome, target: Target) -> str:
    """One training in one line, for the screen."""
    name = f"{outcome.step} seed {outcome.seed}"
    if outcome.error is not None:
        return f"{name}: failed: {outcome.error}"
    figures = gate.summarise(outcome.accuracies, target)
    return (
        f"{name}: final {figures['final_accuracy']:.2f} %  best {figures['best_accuracy']:.2f} %  "
        f"lowest of the last {target.last} {figures['streak_accuracy']:.2f} %  gate "
        f"{'passed' if outcome.passed else 'failed'}  {outcome.seconds:.0f} s{'  (reused)' if outcome.reused else ''}"
    )
