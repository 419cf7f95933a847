"""A tracking server that goes away: before a run, in the middle of it, and for good."""

import subprocess
import sys
import time

import mlflow
import pytest
from conftest import Project

from benchmarks.programs import free_port, server, wait_until

pytestmark = pytest.mark.slow
EPOCHS = 8
TRAINING = ["--dataset", "digits", "--epochs", str(EPOCHS), "--target", "0", "--threads", "1"]


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.port = free_port()
    project.tracking_uri = f"http://127.0.0.1:{project.port}"
    project.environment["MLFLOW_TRACKING_URI"] = project.tracking_uri
    return project


def served(project):
    """The project's store behind a server, as long as this lasts."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1",
        "--backend-store-uri", f"sqlite:///{project.folder / 'served.db'}",
        "--artifacts-destination", str(project.folder / "served"),
    ]  # fmt: skip
    return server(command, project.environment, project.port)


def begin(project):
    """Start a training, and wait until it has finished two epochs; returns its process."""
    command = [sys.executable, "-m", "src.run", "step4", *TRAINING]
    process = project.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = project.folder / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("*/epoch-0002.pt")), seconds=200, for_what="two epochs")
    return process


def assert_whole(project, run_id):
    """The run is finished, with each metric of each epoch, and its model is champion."""
    client = project.client()
    assert client.get_run(run_id).info.status == "FINISHED"
    for metric in ("train_loss", "test_accuracy", "epoch_seconds"):
        assert [entry.step for entry in client.get_metric_history(run_id, metric)] == list(range(1, EPOCHS + 1))
    assert client.get_model_version_by_alias("digits-cnn", "champion").run_id == run_id


@pytest.mark.fault("the tracking server is not there", "a port where nothing listens", "a clear error, before training")
def test_a_server_that_is_not_there(project):
    done = project.command(sys.executable, "-m", "src.run", "step4", *TRAINING)
    assert done.returncode == 1
    assert "epoch" not in done.stdout
    assert "Traceback" not in done.stderr
    assert f"error: MLFLOW_TRACKING_URI is '{project.tracking_uri}': the store there does not answer" in done.stderr


@pytest.mark.long
@pytest.mark.fault(
    "the tracking server is gone for a minute",
    "it is stopped while a run trains, and started again",
    "the run waits, and ends with every metric of every epoch",
)
def test_a_server_that_comes_back(project):
    with served(project):
        process = begin(project)
    time.sleep(60)
    assert process.poll() is None
    with served(project):
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
        (run,) = project.runs()
        assert_whole(project, run.info.run_id)


@pytest.mark.long
@pytest.mark.fault(
    "the tracking server is gone for good",
    "it is stopped while a run trains",
    "a clear error, exit code 1, the state on disk; once the server is back, `resume` ends the run",
)
def test_a_server_that_is_gone_for_good(project):
    project.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # by default a run waits for minutes
    with served(project):
        process = begin(project)
        (run,) = project.runs()
    shown, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in said
    run_id = run.info.run_id
    assert f"the store {project.tracking_uri} is out of reach, and run {run_id} stays open in it" in said
    assert f"to go on: mlflow run . -e step4 -P resume={run_id}" in shown
    with served(project):
        done = project.command(sys.executable, "-m", "src.run", "step4", "--resume", run_id)
        assert done.returncode == 0, done.stderr
        assert_whole(project, run_id)
    mlflow.set_tracking_uri(None)
