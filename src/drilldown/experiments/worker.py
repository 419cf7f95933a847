"""A process that trains one run after the other: what starts it and asks it to train, and what it does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO

import mlflow

from drilldown import process
from drilldown.errors import DrilldownError
from drilldown.learning import mapped
from drilldown.learning.data import Dataset
from drilldown.messages import one_line, printable
from drilldown.options import TrainOptions
from drilldown.steps import ROOT
from drilldown.tracking import invocation
from drilldown.training import Task, explained_errors, train_run, train_together

POLL_SECONDS = 0.2  # between two looks at what the process has printed
REPORT = "\x1e"  # begins a line that says how a training ended; all other lines are for people


@dataclass(frozen=True)
class Ended:
    """A training that has ended, and its error if it failed."""

    task: Task
    error: str | None = None
    is_lost: bool = False  # its process has ended
    killed: bool = False  # by a signal


class Worker:
    """The process, as its parent sees it. It ends when it is told to, and when its parent is gone."""

    def __init__(self, dataset: BinaryIO | None = None) -> None:
        """Start the process. `dataset` is a file for `mapped.read`; without it, the process loads what tasks name."""
        # Files, not pipes: a process that outlives this one can still print, and so closes its run in order.
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (as long as it)
        self._offset = 0  # of the output that was read
        file = dataset.fileno() if dataset else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drilldown", "work", *([f"--dataset=/dev/fd/{file}"] if file else [])],
            bufsize=0,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._errors,
            pass_fds=[file] if file else [],
        )

    def train(self, tasks: Sequence[Task], show: Callable[[str], None]) -> Iterator[Ended]:
        """Let the process train the tasks, and yield each when it has ended; `show` gets each line that is printed.

        Several tasks differ in their seeds only, and are trained together (see `train_together`). When the process
        ends, so do the tasks that are left.
        """
        left = {task.run_id: task for task in tasks}
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(json.dumps([asdict(task) for task in tasks]).encode() + b"\n")
        for line in self._lines():
            if line.startswith(REPORT):
                report = json.loads(line.removeprefix(REPORT))
                yield Ended(left.pop(report["run_id"]), report["error"])
                if not left:
                    return
            else:
                show(line)
        for task in left.values():
            yield self._explain_end(task)

    def _lines(self) -> Iterator[str]:
        """The lines that the process prints, until it ends."""
        has_ended = False
        while not has_ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_SECONDS)
                has_ended = True
            file = self._output.fileno()
            printed = os.pread(file, os.fstat(file).st_size - self._offset, self._offset)
            for line in printed[: len(printed) if has_ended else printed.rfind(b"\n") + 1].splitlines(keepends=True):
                self._offset += len(line)
                yield line.decode(errors="replace").rstrip("\n")

    def _explain_end(self, task: Task) -> Ended:
        code = self.wait()
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            return Ended(task, f"its process was ended by signal {number}", is_lost=True, killed=True)
        last = (self.errors().strip().splitlines() or ["no message"])[-1]
        return Ended(task, last.removeprefix("error: "), is_lost=True)

    def errors(self) -> str:
        """What the process has printed as errors."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process can be asked again."""
        return self._process.poll() is None

    def let_go(self) -> None:
        """Let the process end in order, once it has trained what it was asked for."""
        assert self._process.stdin
        self._process.stdin.close()

    def terminate(self) -> None:
        """Let the process end in the middle of its training."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self._process.wait()

    def end(self) -> None:
        """Let the process end in order, and wait for that."""
        self.let_go()
        with self._output, self._errors:
            self.wait()


def _environment() -> dict[str, str]:
    """The environment of the process: ours, with the store and the import path."""
    path = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"} | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONUNBUFFERED": "1",  # each epoch is printed at once
        invocation.STARTER: invocation.starter(),
        "PYTHONPATH": os.pathsep.join(path),
    }


def work(dataset_file: str) -> None:
    """Be the process: train what each line of standard input asks for, until it ends."""
    process.follow_parent()
    dataset = mapped.read(dataset_file) if dataset_file else None
    for line in sys.stdin:
        tasks = [Task(**given | {"options": TrainOptions(**given["options"])}) for given in json.loads(line)]
        if len(tasks) > 1:
            train_together(tasks, dataset, _report)
        else:
            _report(tasks[0], _train(tasks[0], dataset))


def _train(task: Task, dataset: Dataset | None) -> Exception | None:
    """Train a task; returns its error, if it fails."""
    try:
        with explained_errors():
            train_run(task.step, task.options, run_id=task.run_id, dataset=dataset, register=task.register)
    except (DrilldownError, OSError) as error:
        return error
    except Exception as error:  # a mistake here or in a step's file: its traceback says where
        traceback.print_exc()
        return error
    return None


def _report(task: Task, error: Exception | None) -> None:
    """Tell the parent that a training has ended."""
    message = None
    if error:
        told = isinstance(error, DrilldownError | OSError)
        message = printable(one_line(str(error) if told else f"{type(error).__name__}: {error}"))
    print(REPORT + json.dumps({"run_id": task.run_id, "error": message}), flush=True)
