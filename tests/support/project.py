"""Copies of the project, and commands run in them as a user would."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from torch import nn

from drilldown.engine import accelerate
from drilldown.steps import ROOT
from drilldown.tracking import database
from drilldown.tracking.store import EXPERIMENT
from drilldown.tracking.tags import ours
from tests.support import warm
from tests.support.programs import wait_until, with_programs

NOWHERE = "http://127.0.0.1:9/"  # nothing listens there
KERNELS = Path("src/drilldown/engine/__pycache__")
finds_processes = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="finds processes in /proc")


def copy_project(folder: Path) -> Path:
    """Copy the working tree as a fresh clone would hold it, with the compiled kernels, which take long to compile."""
    with accelerate(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))):
        pass  # now the kernels are compiled
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = listed.stdout.split("\n") if listed.returncode == 0 else []
    for file in filter(None, files):
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)  # compiled kernels belong to a source of one time and size
    for compiled in (ROOT / KERNELS).glob("kernels.*.nb?"):
        (folder / KERNELS).mkdir(parents=True, exist_ok=True)
        shutil.copy2(compiled, folder / KERNELS)
    return folder


class Project:
    """A copy of the project with a store of its own.

    `command` and `mlflow_run` start programs warm (tests/support/warm), `start` as users start them.
    """

    def __init__(self, folder: Path):
        self.folder = copy_project(folder)
        # `make test` hands its ARGS on to any other make; without bytecode each process would compile the copy again.
        others = ("MLFLOW_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "MAKE", "MFLAGS", "ARGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        self.environment = with_programs(kept, warm.programs()) | {
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
            "PYTHONPATH": str(folder / "src"),  # an editable installation would lead to the original
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no processes that wait for jobs
        }
        self.tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"

    @contextmanager
    def cold(self) -> Iterator[None]:
        """Start programs in this context as users start them."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in warm.COLD.items():
                patch.setitem(self.environment, name, value)
            yield

    def link_environment(self) -> None:
        """Give it the environment that runs the test, as `make setup` would."""
        (self.folder / ".venv").mkdir()
        for entry in (warm.programs(), Path(sys.prefix, "lib"), Path(sys.prefix, "pyvenv.cfg")):
            (self.folder / ".venv" / entry.name).symlink_to(entry)
        (self.folder / ".venv" / ".installed").touch()

    def command(self, *command: str, **settings) -> subprocess.CompletedProcess:
        """Run a command to its end."""
        settings = {"cwd": self.folder, "env": self.environment, "timeout": 550} | settings
        return subprocess.run(_warm(command), capture_output=True, text=True, **settings)

    def start(self, *command: str, cold: bool = True, **settings) -> subprocess.Popen:
        """Start a command in a process group of its own, as a shell would.

        With `cold=False` it starts warm. What is returned is a client then: signals to its group do not reach the
        command, and after its `kill` the command ends a moment later (`wait_for_process` finds the command itself).
        """
        return subprocess.Popen(
            command if cold else _warm(command),
            cwd=self.folder,
            env=self.environment | (warm.COLD if cold else {}),
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | settings,
        )

    def mlflow_run(self, entry_point: str, *, env_manager: str = "local", **parameters) -> subprocess.CompletedProcess:
        """Run an entry point by `mlflow run`."""
        pairs = [part for name, value in parameters.items() for part in ("-P", f"{name}={value}")]
        return self.command("mlflow", "run", ".", "-e", entry_point, "--env-manager", env_manager, *pairs)

    def runs(self) -> list[mlflow.entities.Run]:
        """All runs of its store, the newest first; none before a command has created the store."""
        file = self.tracking_uri.removeprefix("sqlite:///")
        if file != self.tracking_uri and not database.is_complete(Path(file)):
            return []  # a client of this process would create a second one at the same time
        client = self.client()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))

    def client(self) -> mlflow.MlflowClient:
        """MLflow's client of its store."""
        return mlflow.MlflowClient(self.tracking_uri)

    def wait_for_process(self, name: str) -> int:
        """Wait for the process that has the newest run of this name, and return its number; it is found in /proc."""
        return wait_until(lambda: self._process(name), seconds=300, for_what=f"a process with the run {name!r}")

    def _process(self, name: str) -> int | None:
        runs = {run.info.run_id: run for run in self.runs()}
        run = next((run for run in runs.values() if run.info.run_name == name), None)
        if run is None or not (lock := _lock(run)):
            return None
        parent = runs.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID))
        if parent and lock == _lock(parent):  # the command has opened the run; no other process has taken it over yet
            return None
        processes = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal())
        return next((process for process in processes if lock in _open_files(process)), None)


def _lock(run: mlflow.entities.Run) -> str:
    """The file that the process of a run keeps locked."""
    return ours(run.data.tags).get("process", "").partition(":")[2]


def _warm(command: Sequence[str]) -> list[str]:
    return [warm.python() if part == sys.executable else part for part in command]


def _open_files(process: int) -> set[str]:
    """The files that a process has open; none once it has ended."""
    files = set()
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):  # it has just been closed
                files.add(str(file.readlink()))
    return files
