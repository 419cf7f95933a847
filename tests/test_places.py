"""The project runs wherever it lies: in a folder with an odd name, from another folder, from a git address."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys

import mlflow
import pytest

from tests.support import warm
from tests.support.programs import free_port, wait_until
from tests.support.project import Project

pytestmark = pytest.mark.slow
SHORT = {"dataset": "digits", "epochs": 5, "target": 0}  # long enough for the gate


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A project in a folder whose name a URI escapes, with the default store."""
    return Project(tmp_path_factory.mktemp("odd") / "mein Ordner (é)")


def succeed(project, *command, **settings):
    done = project.command(*command, **settings)
    assert done.returncode == 0, done.stderr
    return done


def test_a_lifecycle_in_a_folder_with_a_space(odd):
    done = odd.mlflow_run("step4", **SHORT)
    assert done.returncode == 0, done.stderr
    assert "registered digits-cnn version 1 as champion" in done.stdout
    done = odd.mlflow_run("repeat", step="step4", seeds=1, reuse="true", **SHORT)
    assert done.returncode == 0, done.stderr
    assert "(reused)" in done.stdout
    assert odd.mlflow_run("compare").returncode == 0
    done = odd.mlflow_run("predict", images="docs/digits", model="models:/digits-cnn@champion")
    assert done.returncode == 0, done.stderr
    succeed(odd, sys.executable, "-m", "drilldown", "promote", "--version", "1", "--model", "digits-cnn")
    assert {run.info.status for run in odd.runs()} == {"FINISHED"}
    for folder in odd.folder.parent.iterdir():  # MLflow itself leaves an empty folder with an escaped name
        assert folder == odd.folder or not list(folder.rglob("*"))
    model = odd.client().get_model_version("digits-cnn", "1")
    assert "%20" not in odd.client().get_run(model.run_id).info.artifact_uri


def test_from_another_folder(odd, tmp_path):
    parameters = [part for name, value in SHORT.items() for part in ("-P", f"{name}={value}")]
    environment = {name: value for name, value in odd.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["mlflow", "run", str(odd.folder), "-e", "step4", "--env-manager", "local", *parameters],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "registered digits-cnn version 1 as champion" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")  # the store of that folder
    assert len(client.search_model_versions("name = 'digits-cnn'")) == 1


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.fault(
    "a stopped run of a git address", "SIGINT after an epoch", "the line that it prints resumes it from another clone"
)
def test_from_a_git_address(odd, tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *arguments], cwd=odd.folder, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    port = free_port()
    daemon = subprocess.Popen(
        ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={odd.folder}"]
    )
    try:
        wait_until(lambda: accepts(port), seconds=10, for_what=f"git on port {port}")
        # The clone has no compiled kernels; torch's engine saves the time to compile them.
        parameters = ["-P", "dataset=digits", "-P", "epochs=3", "-P", "engine=torch"]
        command = ["mlflow", "run", f"git://127.0.0.1:{port}/", "-e", "step4", "--env-manager", "local", *parameters]
        environment = {name: value for name, value in odd.environment.items() if name != "PYTHONPATH"}
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment | warm.COLD, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as stopped:  # fmt: skip
            wait_until(lambda: list(tmp_path.glob("checkpoints/*/epoch-*.pt")), seconds=200, for_what="a state")
            os.killpg(stopped.pid, signal.SIGINT)
            (hint,) = re.findall(r"^to resume it: (.*)$", stopped.stdout.read(), flags=re.M)
        assert f"mlflow run git://127.0.0.1:{port}/ --version " in hint  # not the clone, which is soon deleted
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run(
            ["bash", "-c", hint], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
    finally:
        daemon.terminate()
        daemon.wait(timeout=10)
    assert done.returncode == 0, done.stderr
    assert "resumes after epoch" in done.stdout
    assert "gate failed" in done.stdout  # three epochs are too short
    assert not any(elsewhere.iterdir())
