"""A tracking server with PostgreSQL, an object store and users: what users do with it, and what fails under it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from drilldown.learning.checkpoint import FOLDER_VARIABLE
from drilldown.registry.champion import champion_history
from drilldown.tracking import lease
from drilldown.tracking.tags import ours
from tests.faults.small_disk import fill
from tests.support import stack as stacks
from tests.support.programs import free_port, wait_until
from tests.support.project import Project
from tests.support.registered import register, verify_in_process
from tests.support.tracked import track

pytestmark = [pytest.mark.slow, pytest.mark.servers]
EPOCHS = 8
TRAINING = ["--dataset", "digits", "--epochs", str(EPOCHS), "--target", "0", "--threads", "1"]
REFUSED = "the server refuses user 'trainer' with this password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"


@pytest.fixture(scope="module")
def stack():
    with stacks.started() as stack:
        yield stack


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    for name in [name for name in project.environment if name.startswith("AWS_")]:
        del project.environment[name]  # clients know nothing of the object store
    return project


@pytest.fixture
def project(stack, copy, request, monkeypatch):
    """A copy of the project whose store is the server; each test has an experiment of its own."""
    del copy.environment["MLFLOW_EXPERIMENT_NAME"]
    copy.environment |= stacks.client(stack) | {
        "MLFLOW_EXPERIMENT_NAME": request.node.name,
        FOLDER_VARIABLE: str(copy.folder / "checkpoints"),  # not the user's cache
    }
    copy.tracking_uri = stack.uri
    for name, value in stacks.client(stack).items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(stack.uri)
    yield copy
    mlflow.set_tracking_uri(None)


def drilldown(project, *arguments, **variables):
    """Run a command; returns its exit code and all that it said."""
    command = [sys.executable, "-m", "drilldown", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setitem(project.environment, name, value)
        done = project.command(*command)
    return done.returncode, done.stdout + done.stderr


def runs_of(project):
    """The runs of this test, the oldest first."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(project.environment["MLFLOW_EXPERIMENT_NAME"])
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


class Training:
    """A training of step 4 that was started and has saved some epochs."""

    def __init__(self, project, *, epochs, **variables):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setitem(project.environment, name, value)
            command = [sys.executable, "-m", "drilldown", "step4", *TRAINING]
            self.process = project.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.folder = project.folder
        wait_until(lambda: self._runs(), seconds=200, for_what="a run")
        (self.run_id,) = self._runs()
        self.wait_for(epochs)

    def _runs(self):
        # The folder of a finished training is deleted.
        return [
            folder.name for folder in (self.folder / "checkpoints").glob("*") if (folder / "epoch-0001.pt").exists()
        ]

    def wait_for(self, epochs):
        state = self.folder / "checkpoints" / self.run_id / f"epoch-{epochs:04}.pt"
        wait_until(state.exists, seconds=200, for_what=f"epoch {epochs}")

    def end(self):
        """Wait for its end; returns the exit code, standard output and standard error."""
        stdout, stderr = self.process.communicate(timeout=500)
        assert "Traceback" not in stderr
        return self.process.returncode, stdout, stderr


def assert_complete(run_id):
    """The run is finished, has each metric of each epoch once, and exactly one version, which was verified."""
    client = MlflowClient()
    assert client.get_run(run_id).info.status == "FINISHED"
    for metric in ("train_loss", "test_accuracy", "epoch_seconds"):
        assert [entry.step for entry in client.get_metric_history(run_id, metric)] == list(range(1, EPOCHS + 1))
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert ours(version.tags)["verified"] == "true"


def assert_resumable(project, run_id, stdout):
    """Nothing of the run is registered; the printed command resumes it to a complete run."""
    assert not MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    (hint,) = re.findall(r"^to resume it: (.*)$", stdout, flags=re.M)
    done = project.command("bash", "-c", hint)
    assert done.returncode == 0, done.stderr
    assert_complete(run_id)


def assert_failed_and_resumable(project, run_id, code, stdout, stderr):
    """The run ended with a clear error, and the printed command resumes it."""
    assert (code, stderr.splitlines()[-1].startswith("error: ")) == (1, True), stderr
    assert MlflowClient().get_run(run_id).info.status == "FAILED"
    assert_resumable(project, run_id, stdout)


def test_a_lifecycle_of_a_user_without_keys_of_the_object_store(project, stack, tmp_path):
    def run(entry_point, **parameters):
        done = project.mlflow_run(entry_point, **parameters)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
        return done.stdout

    said: list[str] = []
    run("all", dataset="digits", epochs=5, target=0)
    compared = run("compare", dataset="digits")
    assert all(step in compared for step in ("step1", "step2", "step3", "step4"))
    versions = sorted(int(version.version) for version in MlflowClient().search_model_versions("name = 'digits-cnn'"))
    assert len(versions) == 4
    champion = int(MlflowClient().get_model_version_by_alias("digits-cnn", "champion").version)
    other = next(version for version in versions if version != champion)
    assert f"digits-cnn version {other} is champion" in run("promote", model="digits-cnn", version=other, force="true")
    assert f"digits-cnn version {champion} is champion" in run("rollback", model="digits-cnn")
    run("predict", images="docs/digits", model="models:/digits-cnn@champion")
    code = 'import mlflow, numpy; model = mlflow.pyfunc.load_model("models:/digits-cnn@champion"); '
    code += "print(model.predict(numpy.zeros((2, 28, 28), numpy.uint8)).shape)"
    assert "(2, 10)" in project.command(sys.executable, "-c", code).stdout
    status = project.command(sys.executable, "-m", "drilldown", "status").stdout
    assert "champion" in status
    assert lease.PREFIX not in status
    runs = MlflowClient().search_runs([run.info.experiment_id for run in runs_of(project)[:1]])
    assert len(runs) == 9
    kept = "".join(str((run.data.tags, run.data.params)) for run in runs)
    assert stacks.PASSWORD not in "".join([*said, status, kept])
    assert not [model for model in MlflowClient().search_registered_models() if lease.is_lock(model.name)]


@pytest.mark.fault("wrong password", "in a variable, in the address", "one line within seconds; no run")
def test_a_wrong_password_is_one_line(project, stack):
    began = time.monotonic()
    code, said = drilldown(project, "step4", *TRAINING, MLFLOW_TRACKING_PASSWORD="wrong")
    assert (code, said) == (1, f"error: MLFLOW_TRACKING_URI is {stack.uri!r}: {REFUSED}\n")
    in_address = stack.uri.replace("://", f"://{stacks.USER}:wrong@")
    assert drilldown(project, "status", MLFLOW_TRACKING_URI=in_address) == (code, said)
    assert time.monotonic() - began < 60  # MLflow would retry for minutes


def test_a_password_in_the_address_is_not_repeated(project, stack):
    in_address = stack.uri.replace("://", f"://{stacks.USER}:{stacks.PASSWORD.replace(' ', '%20')}@")
    variables = {"MLFLOW_TRACKING_URI": in_address, "MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    code, said = drilldown(project, "step4", "--dataset", "digits", "--epochs", "1", "--target", "0", **variables)
    assert code == 0, said
    assert f"MLFLOW_TRACKING_URI={stack.uri} " in said
    (run,) = runs_of(project)
    for text in (said, str(run.to_dictionary())):
        assert in_address not in text
        assert stacks.PASSWORD.replace(" ", "%20") not in text
        assert "USER:PASSWORD" not in text


@contextlib.contextmanager
def machine(project, folder, name):
    """A process that believes to be a machine of its own."""
    folder.mkdir()
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.machine", name],
            cwd=folder,
            env=project.environment | {"PYTHONPATH": f"{project.folder / 'src'}{os.pathsep}{project.folder}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout.readline() == '"ready"\n', (folder / "stderr").read_text()
        yield process


@pytest.mark.fault(
    "two machines that promote at the same time",
    "two processes that believe to be different machines, through one server",
    "one champion; each was compared with the champion that it replaced",
)
def test_two_machines_take_turns(project, stack, tmp_path, trained, digits, monkeypatch, request, record_property):
    rounds = 50 if request.config.getoption("--tries") else 3
    verify_in_process(monkeypatch)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", project.environment["MLFLOW_EXPERIMENT_NAME"])
    monkeypatch.chdir(tmp_path)
    client = MlflowClient()
    mlflow.set_experiment(project.environment["MLFLOW_EXPERIMENT_NAME"])
    with contextlib.suppress(mlflow.exceptions.MlflowException):
        client.delete_registered_model("digits-cnn")
    first = client.get_model_version("digits-cnn", register(track(trained, digits), digits, parameters=9_999).version)

    def challenger(parameters):
        tags = first.tags | {"drilldown.parameters": str(parameters)}
        model = first.source.removeprefix("models:/")
        version = client.create_model_version("digits-cnn", first.source, first.run_id, tags, model_id=model)
        return str(version.version)

    answers = {}
    with machine(project, tmp_path / "north", "north") as north, machine(project, tmp_path / "south", "south") as south:
        for turn in range(rounds):
            versions = [challenger(9_000 - 2 * turn), challenger(8_999 - 2 * turn)]
            pairs = list(zip((north, south), versions, strict=True))[:: 1 if turn % 2 else -1]
            for process, version in pairs:
                process.stdin.write(f"{version}\n")
                process.stdin.flush()
            for process, version in pairs:
                answers[version] = json.loads(process.stdout.readline())
            champion = str(client.get_model_version_by_alias("digits-cnn", "champion").version)
            assert champion == versions[1]  # the smaller one, whoever was first
    changes = champion_history("digits-cnn")
    assert all(change.made for change in changes)
    assert [change.before for change in changes] == [None, *(change.after for change in changes[:-1])]
    replaced = {change.after: change.before for change in changes}
    for version, (promoted, reason) in answers.items():
        kept = ours(client.get_model_version("digits-cnn", version).tags)
        assert kept["promotion.reason"] == reason
        rival = re.search(r"(?:better|worse) than version (\d+)", reason)[1]
        if promoted:
            assert rival == replaced[version]
        else:
            assert int(rival) == int(version) + 1
    assert not [model for model in client.search_registered_models() if lease.is_lock(model.name)]
    record_property("times", rounds)


@pytest.mark.fault(
    "run of a machine that is gone",
    "an open run with the lock of another machine",
    "no command closes it by itself; `close` does, and the runs nested in it",
)
def test_a_run_of_a_machine_that_is_gone_is_closed_by_hand(project):
    client = MlflowClient()
    experiment = client.create_experiment(project.environment["MLFLOW_EXPERIMENT_NAME"])
    tags = {"drilldown.process": "gone-machine:/there/x", "drilldown.kind": "repeat"}
    run_id = client.create_run(experiment, tags=tags, run_name="repeat step4").info.run_id
    nested = client.create_run(experiment, tags=tags | {"mlflow.parentRunId": run_id}, run_name="step4 seed 0")
    assert "repeat step4" in drilldown(project, "status")[1]
    assert client.get_run(run_id).info.status == "RUNNING"
    done = project.mlflow_run("close", run=run_id)
    assert done.returncode == 0, done.stderr
    assert "closed as KILLED: repeat step4\nclosed as KILLED: step4 seed 0\n" in done.stdout
    for closed in (run_id, nested.info.run_id):
        found = client.get_run(closed)
        assert found.info.status == "KILLED"
        assert ours(found.data.tags)["error"].endswith("its process was on gone-machine")
    code, said = drilldown(project, "close", "--run", run_id)
    assert (code, said.splitlines()[-1].endswith("and that run is KILLED")) == (2, True)


@pytest.mark.fault("PostgreSQL restarted", "in the middle of a run", "the run finishes with every metric once")
def test_postgresql_is_restarted(project, stack):
    training = Training(project, epochs=2)
    stack.postgres.stop()
    time.sleep(3)
    stack.postgres.start()
    code, _, stderr = training.end()
    assert code == 0, stderr
    assert_complete(training.run_id)


@pytest.mark.fault(
    "workers of the tracking server killed",
    "SIGKILL in the middle of a run",
    "the run finishes with every metric once",
)
def test_the_workers_of_the_server_are_killed(project, stack):
    training = Training(project, epochs=2)
    assert len(stacks.kill_workers(stack)) >= 2
    code, _, stderr = training.end()
    assert code == 0, stderr
    assert_complete(training.run_id)


@pytest.mark.fault(
    "object store gone while the model is logged", "SIGKILL after the last epoch, started again", "the run finishes"
)
def test_the_object_store_is_gone_for_a_while(project, stack):
    training = Training(project, epochs=EPOCHS)
    stack.objects.stop(9)
    time.sleep(10)
    assert training.process.poll() is None
    stack.objects.start()
    code, _, stderr = training.end()
    assert code == 0, stderr
    assert_complete(training.run_id)


@pytest.mark.fault(
    "object store gone for good",
    "SIGKILL after the last epoch",
    "a clear error, nothing registered; once the object store is back, `resume` finishes the run",
)
@pytest.mark.long
def test_the_object_store_stays_away(project, stack):
    training = Training(project, epochs=EPOCHS, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    stack.objects.stop(9)
    ended = training.end()
    stack.objects.start()
    assert_failed_and_resumable(project, training.run_id, *ended)


@pytest.mark.fault(
    "full disk under the object store",
    "a tmpfs, filled after the last epoch",
    "a clear error, nothing registered; with free space `resume` finishes the run",
)
def test_a_full_disk_under_the_object_store(project, stack):
    disk = stack.folder / "objects"
    if not os.path.ismount(disk):
        pytest.skip("mounting is not allowed here")
    training = Training(project, epochs=EPOCHS - 1, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    filling = fill(disk)
    try:
        ended = training.end()
    finally:
        filling.unlink()
    assert_failed_and_resumable(project, training.run_id, *ended)


@pytest.mark.fault(
    "password revoked",
    "in the middle of a run",
    "a clear error, nothing registered; with the new password `resume` finishes the run",
)
def test_a_password_is_revoked(project, stack):
    training = Training(project, epochs=1)
    stacks.manage_user(stack, "PATCH", "update-password", "another password")
    code, stdout, stderr = training.end()
    stacks.manage_user(stack, "PATCH", "update-password", stacks.PASSWORD)
    assert code == 1
    assert REFUSED in stderr
    assert stacks.PASSWORD not in stdout + stderr
    assert_resumable(project, training.run_id, stdout)


@pytest.mark.long
@pytest.mark.fault("Ctrl-C", "SIGINT to the shared server", "no process is left; the data is there after a restart")
def test_a_server_that_is_stopped_and_started_again(monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="drilldown-servers-"))
    folder.chmod(0o755)  # see tests/support/stack.py
    command = [sys.executable, "-m", "drilldown.server", str(folder), "--port", str(free_port())]
    found = []
    try:
        for _ in range(2):
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            with process:
                assert str(folder) in process.stdout.readline()
                line = process.stdout.readline()
                script = (
                    line + f"{sys.executable} -c 'import mlflow; print(mlflow.set_experiment(\"kept\").creation_time)'"
                )
                done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
                found.append(done.stdout)
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=120) == 0
            assert not [left for left in psutil.process_iter(["cmdline"]) if str(folder) in str(left.info["cmdline"])]
            assert (folder / "password").read_text() not in line
    finally:
        shutil.rmtree(folder)
    assert found[0] == found[1] != ""
