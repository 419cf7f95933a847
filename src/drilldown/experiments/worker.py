"""A process that trains one run after the other: what starts it and asks it to train, and what it does.

What starts it imports neither PyTorch nor MLflow: on a cluster, that is a Dask worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from drilldown import process
from drilldown.errors import DrilldownError
from drilldown.messages import one_line, printable
from drilldown.options import TrainOptions
from drilldown.steps import ROOT

if TYPE_CHECKING:
    from drilldown.learning.data import Dataset
    from drilldown.training import Task

POLL_SECONDS = 0.2  # between two looks at what the process has printed
KILL_SECONDS = 20  # after which a process that was asked to end is killed
REPORT = "\x1e"  # begins a line that says how a training ended; all other lines are for people


@dataclass(frozen=True)
class Report:
    """How the training of a run ended."""

    run_id: str
    error: str | None = None
    is_lost: bool = False  # its process has ended
    killed: bool = False  # by a signal


class Worker:
    """The process, as its parent sees it. It ends when it is told to, and when its parent is gone."""

    def __init__(self, dataset: BinaryIO | None = None, variables: Mapping[str, str] | None = None) -> None:
        """Start the process.

        Args:
            dataset: a file for `mapped.read`; without it, the process loads what tasks name.
            variables: what `settings` returned where the command runs; by default, that is here.
        """
        # Files, not pipes: a process that outlives this one can still print, and so closes its run in order.
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (as long as it)
        self._offset = 0  # of the output that was read
        self._kill_at: float | None = None
        file = dataset.fileno() if dataset else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drilldown", "work", *([f"--dataset=/dev/fd/{file}"] if file else [])],
            bufsize=0,
            env=_environment(settings() if variables is None else variables),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._errors,
            pass_fds=[file] if file else [],
            start_new_session=variables is not None,  # Ctrl-C of a Dask worker ends it by way of that worker
        )

    def train(self, tasks: Sequence[Task], show: Callable[[str], None]) -> Iterator[Report]:
        """Let the process train the tasks, and report each when it has ended; `show` gets each line that is printed.

        Several tasks differ in their seeds only, and are trained together (see `train_together`). When the process
        ends, so do the tasks that are left.
        """
        return self.ask([asdict(task) for task in tasks], show)

    def ask(
        self,
        tasks: Sequence[Mapping[str, Any]],
        show: Callable[[str], None],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[Report]:
        """Do what `train` does, for the fields of tasks; the process is ended once they are not wanted any more."""
        left = [task["run_id"] for task in tasks]
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(json.dumps(tasks).encode() + b"\n")
        for line in self._lines(is_wanted):
            if line.startswith(REPORT):
                report = Report(**json.loads(line.removeprefix(REPORT)))
                left.remove(report.run_id)
                yield report
                if not left:
                    return
            else:
                show(line)
        for run_id in left:
            yield self._explain_end(run_id)

    def _lines(self, is_wanted: Callable[[], bool]) -> Iterator[str]:
        """The lines that the process prints, until it ends."""
        has_ended = False
        while not has_ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_SECONDS)
                has_ended = True
            if not has_ended and not is_wanted():
                self._end_soon()
            file = self._output.fileno()
            printed = os.pread(file, os.fstat(file).st_size - self._offset, self._offset)
            for line in printed[: len(printed) if has_ended else printed.rfind(b"\n") + 1].splitlines(keepends=True):
                self._offset += len(line)
                yield line.decode(errors="replace").rstrip("\n")

    def _end_soon(self) -> None:
        """Let the process end, and kill it if it does not; called again and again."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + KILL_SECONDS
            self.terminate()
        elif time.monotonic() > self._kill_at:
            self._process.kill()

    def _explain_end(self, run_id: str) -> Report:
        code = self.wait()
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            return Report(run_id, f"its process was ended by signal {number}", is_lost=True, killed=True)
        last = (self.errors().strip().splitlines() or ["no message"])[-1]
        return Report(run_id, last.removeprefix("error: "), is_lost=True)

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


def settings() -> dict[str, str]:
    """The variables of the process that this process decides: the store, and how the user started the command."""
    import mlflow

    from drilldown.tracking import invocation

    return {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), invocation.STARTER: invocation.starter()}


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process: ours, with these variables and the import path."""
    path = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"} | {
        **variables,
        "PYTHONUNBUFFERED": "1",  # each epoch is printed at once
        "PYTHONPATH": os.pathsep.join(path),
    }


def work(dataset_file: str) -> None:
    """Be the process: train what each line of standard input asks for, until it ends."""
    from drilldown.learning import mapped
    from drilldown.training import Task, train_together

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
    from drilldown.training import explained_errors, train_task

    try:
        with explained_errors():
            train_task(task, dataset or _load(task.options.dataset, task.options.data_dir, task.options.validation))
    except (DrilldownError, OSError) as error:
        return error
    except Exception as error:  # a mistake here or in a step's file: its traceback says where
        traceback.print_exc()
        return error
    return None


@functools.lru_cache(maxsize=1)  # a process trains many seeds on the same data
def _load(dataset: str, data_dir: str, validation: int) -> Dataset:
    from drilldown.training import load_dataset

    return load_dataset(TrainOptions(dataset=dataset, data_dir=data_dir, validation=validation))


def _report(task: Task, error: Exception | None) -> None:
    """Tell the parent that a training has ended."""
    message = None
    if error:
        told = isinstance(error, DrilldownError | OSError)
        message = printable(one_line(str(error) if told else f"{type(error).__name__}: {error}"))
    print(REPORT + json.dumps({"run_id": task.run_id, "error": message}), flush=True)
