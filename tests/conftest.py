"""What the tests share: the data, stores of their own, and copies of the project to run in."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import fault_table
import mlflow
import pytest
import torch
from torch import nn

from benchmarks.programs import with_programs
from src.learning import data, train
from src.learning.loading import load_loops
from src.learning.recipe import Recipe
from src.lifecycle.store import connect

ROOT = Path(__file__).parents[1]
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each worker, and all that it starts, keeps to a core: threads that wait for each other on shared cores crawl.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)  # it counted the cores before
SHARED_MNIST = ROOT.parent / "shared" / "mnist"
if SHARED_MNIST.is_dir():  # a copy of the four files beside the project serves as mirror
    os.environ.setdefault("MNIST_MIRROR", SHARED_MNIST.as_uri() + "/")


NOWHERE = "http://127.0.0.1:9/"  # nothing listens there
LONGEST = ("test_readme", "test_lifecycle", "test_side_by_side", "test_nested", "test_registry")


pytest_addoption = fault_table.add_option


def pytest_configure(config):
    config.pluginmanager.register(fault_table.FaultTable(config))


def pytest_collection_modifyitems(items):
    """The files that take minutes go first, so that no worker is left with one of them at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def mnist():
    try:
        return data.load("mnist")
    except data.DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def offline(monkeypatch):
    """No mirror of MNIST answers."""
    from torchvision import datasets  # here, as few tests need it

    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setenv(data.MIRROR_VARIABLE, NOWHERE)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables: making it takes seconds, copying it none."""
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    with contextlib.chdir(database.parent):  # that is where the models will be
        connect()
    return database


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    """An empty tracking store of the test's own."""
    database = tmp_path / "mlflow.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)  # what a run leaves behind
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()


class Small(nn.Module):
    """A network that learns the digits in a second."""

    def __init__(self, dropout=0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 10, 12)
        )

    def forward(self, images):
        return self.layers(images).flatten(1)


SMALL_RECIPE = Recipe(epochs=5, batch_size=64, lr=0.1, schedule="one-cycle", averaging=0.5, rotation=5, shift=0.02)


def train_small(dataset, recipe=SMALL_RECIPE, seed=0, dropout=0.1):
    device = train.prepare(seed, "cpu")
    training = train.start(Small(dropout), recipe, dataset, seed, device)
    for _ in train.fit(training, recipe, dataset):
        pass
    return training


@pytest.fixture(scope="session")
def trained(digits):
    """The small network, trained on the digits."""
    return train_small(digits)


def watch_turns(monkeypatch, owner, call):
    """Whoever makes the call waits a while for another who makes it; returns what tells that nobody came, and who met.

    Returns: the barrier, broken when somebody waited in vain, and the event that two have met.
    """
    met = threading.Event()
    together = threading.Barrier(2, action=met.set)
    function = getattr(owner, call)

    def watched(*given, **named):
        with contextlib.suppress(threading.BrokenBarrierError):  # nobody else comes here meanwhile
            together.wait(timeout=2)
        return function(*given, **named)

    monkeypatch.setattr(owner, call, watched)
    return together, met


def at_once(*tasks):
    """Run the tasks, each in a thread of its own."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def copy_project(folder: Path) -> Path:
    """What a fresh clone of the working tree would hold, and the compiled loops: each would compile them for itself."""
    compile_loops()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = listed.stdout.split("\n") if listed.returncode == 0 else []
    for file in filter(None, files):
        if (ROOT / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)  # compiled loops fit the source of one time and size
    for compiled in (ROOT / "src/learning/__pycache__").glob("loops.*.nb?"):
        (folder / "src/learning/__pycache__").mkdir(parents=True, exist_ok=True)
        shutil.copy2(compiled, folder / "src/learning/__pycache__")
    return folder


@functools.cache
def compile_loops() -> None:
    """Have Numba compile, where that is not done yet, and keep what the steps use."""
    load_loops(torch.float32)


class Project:
    """A copy of the project, and commands run in it as a user would."""

    def __init__(self, folder: Path):
        self.folder = copy_project(folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHONPATH"))}
        self.environment = with_programs(kept) | {
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # none of the dozen that wait for jobs
        }
        self.tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"

    def command(self, *command: str, **settings) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=550, **settings
        )

    def start(self, *command: str, **settings) -> subprocess.Popen:
        """Start a command, in a process group of its own, as a shell would."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | settings,
        )

    def mlflow_run(self, entry_point: str, *, env_manager: str = "local", **parameters) -> subprocess.CompletedProcess:
        pairs = [part for name, value in parameters.items() for part in ("-P", f"{name}={value}")]
        return self.command("mlflow", "run", ".", "-e", entry_point, "--env-manager", env_manager, *pairs)

    def runs(self) -> list[mlflow.entities.Run]:
        """All runs of its store, the newest first."""
        client = self.client()
        return list(client.search_runs(["0"], order_by=["attributes.start_time DESC"]))

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.tracking_uri)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project for a whole module of tests."""
    return Project(tmp_path_factory.mktemp("project"))
