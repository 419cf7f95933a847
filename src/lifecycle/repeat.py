"""One step over many seeds: how often does it reach its target, and by how much?"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

import mlflow
from joblib import Parallel, delayed
from scipy.stats import binomtest

from src.learning.recipe import Target
from src.lifecycle import gate, tracking
from src.lifecycle.provenance import ROOT


class RepeatError(Exception):
    """At least one seed failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one seed."""

    seed: int
    run_id: str
    reused: bool = False
    error: str | None = None
    passed: bool = False
    accuracies: tuple[float, ...] = ()  # percent, one an epoch
    seconds: float | None = None  # the whole run

    @classmethod
    def of(cls, seed: int, run_id: str, split: str, reused: bool = False) -> "Outcome":
        """A finished run's."""
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        history = client.get_metric_history(run_id, f"{split}_accuracy")
        return cls(
            seed,
            run_id,
            reused,
            passed=run.data.tags["gate"] == "passed",
            accuracies=tuple(entry.value for entry in sorted(history, key=lambda entry: entry.step)),
            seconds=(run.info.end_time - run.info.start_time) / 1000,
        )


def train(
    step: str, parameters: Mapping[str, object], seeds: Sequence[int], *, jobs: int, parent: str, split: str
) -> Iterator[Outcome]:
    """Train the step once a seed, `jobs` at a time, each in a process of its own and in a run nested in `parent`.

    Yields an outcome as soon as there is one. Processes that still train when the caller stops are ended.
    """
    trainings = _Trainings(step, parameters, parent, split)
    try:
        # A thread waits for each process: should one be killed, the others go on, and its seed alone has failed.
        yield from Parallel(jobs, backend="threading", return_as="generator_unordered", batch_size=1)(
            delayed(trainings.train)(seed) for seed in seeds
        )
    finally:
        trainings.stop()


class _Trainings:
    """The processes that train, and a way to end them all."""

    def __init__(self, step: str, parameters: Mapping[str, object], parent: str, split: str):
        self.step, self.parent, self.split = step, parent, split
        self.options = [part for name, value in parameters.items() for part in (f"--{name}", str(value))]
        self.lock, self.stopped, self.processes = threading.Lock(), False, {}

    def train(self, seed: int) -> Outcome:
        run_id = tracking.open_nested(self.parent, f"{self.step} seed {seed}")
        with self.lock:
            if self.stopped:
                tracking.close(run_id, "KILLED", "stopped before it began")
                return Outcome(seed, run_id, error="stopped before it began")
            process = subprocess.Popen(
                [sys.executable, "-m", "src.run", self.step, "--seed", str(seed), *self.options],
                cwd=ROOT,
                env=os.environ | {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.processes[process] = run_id
        _, said = process.communicate()
        with self.lock:
            if self.stopped:
                return Outcome(seed, run_id, error="stopped")
            del self.processes[process]
        if process.returncode == 0:
            return Outcome.of(seed, run_id, self.split)
        if process.returncode < 0:
            error, status = f"its process was ended by signal {-process.returncode}", "KILLED"
        else:
            error, status = (said.strip().splitlines() or ["no message"])[-1].removeprefix("error: "), "FAILED"
        tracking.close(run_id, status, error)
        return Outcome(seed, run_id, error=error)

    def stop(self) -> None:
        """End them and their runs."""
        with self.lock:
            self.stopped = True
        for process in self.processes:
            process.terminate()
        for process, run_id in self.processes.items():
            if process.wait() != 0:
                tracking.close(run_id, "KILLED", "stopped with its repetition")


def summarise(step: str, outcomes: Sequence[Outcome], target: Target, split: str) -> dict[str, object]:
    """The spread of the seeds' figures (percent, seconds) and the gate's pass rate among all seeds, failed ones too."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.seed)
    good = [outcome for outcome in outcomes if outcome.error is None]
    figures = [gate.summarise(outcome.accuracies, target) for outcome in good]
    names = tracking.metric_names(split)
    spreads = ("final_accuracy", "best_accuracy", "streak_accuracy")
    values = {names[key]: [figure[key] for figure in figures] for key in spreads}
    values["run_seconds"] = [outcome.seconds for outcome in good]
    passed = sum(outcome.passed for outcome in outcomes)
    return {
        "step": step,
        "target": asdict(target),
        "seeds": len(outcomes),
        "passed": passed,
        "failed": len(outcomes) - len(good),
        "pass_rate": pass_rate(passed, len(outcomes)),
        "spread": {name: _spread(column) for name, column in values.items() if column},
        "runs": [asdict(outcome) for outcome in outcomes],
    }


def pass_rate(passed: int, seeds: int) -> tuple[float, float, float]:
    """The share of seeds that passed, with its 95 % Wilson interval (Wilson, 1927): rate, low, high."""
    interval = binomtest(passed, seeds).proportion_ci(method="wilson")
    return passed / seeds, interval.low, interval.high


def rate_line(passed: int, seeds: int) -> str:
    """The same in words."""
    rate, low, high = pass_rate(passed, seeds)
    return f"gate passed by {passed} of {seeds} seeds: {rate:.0%}, 95 % interval from {low:.0%} to {high:.0%}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    spread = {"mean": mean(values), "min": min(values), "max": max(values)}
    return spread | ({"std": stdev(values)} if len(values) > 1 else {})


def outcome_line(outcome: Outcome, target: Target) -> str:
    """One seed in one line, for the screen."""
    if outcome.error is not None:
        return f"seed {outcome.seed}: failed: {outcome.error}"
    figures = gate.summarise(outcome.accuracies, target)
    return (
        f"seed {outcome.seed}: final {figures['final_accuracy']:.2f} %  best {figures['best_accuracy']:.2f} %  "
        f"lowest of the last {target.last} {figures['streak_accuracy']:.2f} %  gate "
        f"{'passed' if outcome.passed else 'failed'}  {outcome.seconds:.0f} s{'  (reused)' if outcome.reused else ''}"
    )


def summary_lines(summary: Mapping[str, object]) -> str:
    """The summary in a few lines, for the screen."""
    lines = [
        f"{name}: {spread['mean']:.2f} ± {spread.get('std', 0):.2f}, from {spread['min']:.2f} to {spread['max']:.2f}"
        for name, spread in summary["spread"].items()
    ]
    return "\n".join([*lines, rate_line(summary["passed"], summary["seeds"])])
