"""Fixtures: the data, stores of a test's own, and copies of the project to run in."""

import contextlib
import os
import shutil

import mlflow
import pytest
import torch

from drilldown.errors import DataError
from drilldown.learning import data, download
from drilldown.steps import ROOT
from drilldown.tracking import store as tracking_store
from tests.support import fault_table
from tests.support.networks import train_small
from tests.support.project import NOWHERE, Project

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each worker, and all that it starts, keeps to a core: threads that wait for each other on shared cores crawl.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)  # it counted the cores before
SHARED_MNIST = ROOT.parent / "shared" / "mnist"
if SHARED_MNIST.is_dir():  # a copy of the four files beside the project serves as mirror
    os.environ.setdefault("MNIST_MIRROR", SHARED_MNIST.as_uri() + "/")

SLOWEST = ("test_documented_commands", "test_lifecycle", "test_side_by_side", "test_nested", "test_registry")


pytest_addoption = fault_table.add_option


def pytest_configure(config):
    config.pluginmanager.register(fault_table.FaultTable(config))


def pytest_collection_modifyitems(items):
    """Run the files that take minutes first, so that no worker is left with one of them at the end."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits."""
    return data.load("digits")


@pytest.fixture(scope="session")
def mnist():
    """The real MNIST; the test is skipped where it cannot be had."""
    try:
        return data.load("mnist")
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def offline(monkeypatch):
    """No mirror of MNIST answers."""
    from torchvision import datasets  # few tests need it

    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setenv(download.MIRROR_VARIABLE, NOWHERE)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables: creating it takes seconds, copying it none."""
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    with contextlib.chdir(database.parent), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # the store fixture selects one
        tracking_store.connect()
    return database


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    """An empty tracking store of the test's own; runs go into MLflow's first experiment, "0"."""
    database = tmp_path / "mlflow.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)  # what a run leaves behind
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(scope="session")
def trained(digits):
    """The small network, trained on the digits."""
    return train_small(digits)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project for a whole module of tests."""
    return Project(tmp_path_factory.mktemp("project"))
