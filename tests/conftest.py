"""Fixtures: the data, stores of a test's own, and copies of the project to run in.

PyTorch and MLflow are imported by the fixtures that use them: the process that distributes the tests needs neither.
"""

import atexit
import contextlib
import functools
import gc
import os
import shutil
import sys

import pytest

from drilldown.__main__ import GC_THRESHOLD
from drilldown.steps import ROOT
from tests.support import fault_table

gc.set_threshold(GC_THRESHOLD)  # as in the program: imports are a large part of the tests' time
atexit.register(gc.freeze)  # likewise
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each worker, and all that it starts, keeps to a core: threads that wait for each other on shared cores crawl.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    import torch

    torch.set_num_threads(1)  # it counts the machine's cores, not those of this process
SHARED_MNIST = ROOT.parent / "shared" / "mnist"
if SHARED_MNIST.is_dir():  # a copy of the four files beside the project serves as mirror
    os.environ.setdefault("MNIST_MIRROR", SHARED_MNIST.as_uri() + "/")

SLOWEST = (
    "test_lifecycle",
    "test_cache",  # it compiles kernels of its own while the first worker compiles the project's
    "test_documented_commands",
    "test_draw",
    "test_nested",
    "test_side_by_side",
    "test_tune",
    "test_own_data",
    "test_registry",
    "test_places",
    "test_serving",
    "test_hints",
    "test_images",
    "test_full_disk",
    "test_worker",
    "test_verify",
    "test_library",
)


pytest_addoption = fault_table.add_option


def pytest_configure(config):
    config.pluginmanager.register(fault_table.FaultTable(config))


def pytest_collection_modifyitems(items):
    """Run the files that take minutes first, so that no worker is left with one of them at the end."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Keep what was imported out of garbage collection: pytest makes five of them at its end."""
    gc.freeze()


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits."""
    from drilldown.learning import data

    return data.load("digits")


@pytest.fixture(scope="session")
def mnist():
    """The real MNIST; the test is skipped where it cannot be had."""
    from drilldown.errors import DataError
    from drilldown.learning import data

    try:
        return data.load("mnist")
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def offline(monkeypatch):
    """No mirror of MNIST answers."""
    from torchvision import datasets

    from drilldown.learning import download
    from tests.support.project import NOWHERE

    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setenv(download.MIRROR_VARIABLE, NOWHERE)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables: creating it takes seconds, copying it none."""
    import mlflow
    from mlflow.store.db import utils

    from drilldown.tracking import store

    latest = functools.cache(utils._get_latest_schema_revision)  # it reads all of MLflow's migrations every time
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    with pytest.MonkeyPatch.context() as session:
        session.setattr(utils, "_get_latest_schema_revision", latest)
        with contextlib.chdir(database.parent), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
            monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # the store fixture selects one
            store.connect()
        yield database


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    """An empty tracking store of the test's own; runs go into MLflow's first experiment, "0"."""
    import mlflow

    database = tmp_path / "mlflow.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    for selected in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(selected, raising=False)
    monkeypatch.chdir(tmp_path)  # what a run leaves behind
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)  # what another test has set
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def warm_start(monkeypatch):
    """The Python processes that this one starts, start warm."""
    from tests.support import warm

    monkeypatch.setattr(sys, "executable", warm.python())


@pytest.fixture(scope="session")
def trained(digits):
    """The small network, trained on the digits."""
    from tests.support.networks import train_small

    return train_small(digits)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project for a whole module of tests."""
    from tests.support.project import Project

    return Project(tmp_path_factory.mktemp("project"))
