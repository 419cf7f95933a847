"""A tracking server that is down: before a run, during it, and for good."""

import re
import subprocess
import sys
import time

import mlflow
import pytest

from drilldown.learning.checkpoint import FOLDER_VARIABLE
from tests.support.programs import free_port, server, wait_until
from tests.support.project import Project

pytestmark = pytest.mark.slow
EPOCHS = 8
TRAINING = ["--dataset", "digits", "--epochs", str(EPOCHS), "--target", "0", "--threads", "1"]


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.port = free_port()
    project.tracking_uri = f"http://127.0.0.1:{project.port}"
    project.environment["MLFLOW_TRACKING_URI"] = project.tracking_uri
    project.environment[FOLDER_VARIABLE] = str(tmp_path / "checkpoints")  # not the user's cache
    return project


def served(project):
    """Serve the project's store while the returned context is open."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1",
        "--backend-store-uri", f"sqlite:///{project.folder / 'served.db'}",
        "--artifacts-destination", str(project.folder / "served"),
    ]  # fmt: skip
    return server(command, project.environment, project.port)


def begin(project):
    """Start a training, wait until it has finished two epochs, and return its process."""
    command = [sys.executable, "-m", "drilldown", "step4", *TRAINING]
    process = project.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = project.folder / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("*/epoch-0002.pt")), seconds=200, for_what="two epochs")
    return process


def assert_complete(project, run_id):
    """The run is finished, has each metric of each epoch, and its model is champion."""
    client = project.client()
    assert client.get_run(run_id).info.status == "FINISHED"
    for metric in ("train_loss", "test_accuracy", "epoch_seconds"):
        assert [entry.step for entry in client.get_metric_history(run_id, metric)] == list(range(1, EPOCHS + 1))
    assert client.get_model_version_by_alias("digits-cnn", "champion").run_id == run_id


@pytest.mark.fault(
    "tracking server not running", "a port on which nothing listens", "a clear error before training starts"
)
def test_server_that_is_not_running(project):
    done = project.command(sys.executable, "-m", "drilldown", "step4", *TRAINING)
    assert done.returncode == 1
    assert "epoch" not in done.stdout
    assert "Traceback" not in done.stderr
    assert f"error: MLFLOW_TRACKING_URI is '{project.tracking_uri}': the store there does not answer" in done.stderr


@pytest.mark.long
@pytest.mark.fault(
    "tracking server down for a minute",
    "stopped during a training, then started again",
    "the run waits, and finishes with every metric of every epoch",
)
def test_server_that_comes_back(project):
    with served(project):
        process = begin(project)
    time.sleep(60)
    assert process.poll() is None
    with served(project):
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr
        (run,) = project.runs()
        assert_complete(project, run.info.run_id)


@pytest.mark.long
@pytest.mark.fault(
    "tracking server down for good",
    "stopped during a training",
    "a clear error, exit code 1, the training state on disk; `resume` finishes the run once the server is back",
)
def test_server_that_stays_down(project):
    project.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # by default a run waits for minutes
    with served(project):
        process = begin(project)
        (run,) = project.runs()
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in stderr
    run_id = run.info.run_id
    assert f"the store {project.tracking_uri} is out of reach, and run {run_id} stays open" in stderr
    (hint,) = re.findall(r"^to resume it: (.*)$", stdout, flags=re.M)
    assert hint == f"MLFLOW_TRACKING_URI={project.tracking_uri} python -m drilldown step4 --resume {run_id}"
    with served(project):
        done = project.command("bash", "-c", hint)
        assert done.returncode == 0, done.stderr
        assert_complete(project, run_id)
    mlflow.set_tracking_uri(None)
