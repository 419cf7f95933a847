"""Signals at any moment: to the training process, to the `mlflow run` that started it, and to both."""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from drilldown import process
from drilldown.tracking import database
from drilldown.tracking.store import TAKEOVER_SECONDS
from drilldown.tracking.tags import ours
from tests.support.programs import wait_until
from tests.support.project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc"),
]
TRAINING = ["--dataset", "digits", "--epochs", "5", "--target", "0", "--threads", "1"]  # its model is registered
TARGETS = ["`mlflow run`", "the training process", "both, as by Ctrl-C"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a database; interrupting its creation has a test of its own."""
    project = Project(tmp_path)
    database.ensure(tmp_path / "mlflow.db")
    return project


def processes_of(project):
    """The ids of all processes that work in the project's folder, with those of their parents."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == project.folder:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                if status[0] != "Z":
                    found[int(entry.name)] = int(status[1])
        except OSError:  # it ended meanwhile
            continue
    return found


def assert_clean(project):
    """No process is left and, after the next command, no open run; the store opens, and the registry is consistent."""
    wait_until(lambda: not processes_of(project), seconds=60, for_what="the end of all processes")
    time.sleep(TAKEOVER_SECONDS)  # `mlflow run` may have opened a run whose process never began
    project.command(sys.executable, "-m", "drilldown", "compare", "--dataset", "digits")
    assert "RUNNING" not in [run.info.status for run in project.runs()]
    client = project.client()
    for model in client.search_registered_models():
        if "champion" in model.aliases:
            assert ours(client.get_model_version_by_alias(model.name, "champion").tags)["verified"] == "true"


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
    """How long an undisturbed run takes on this machine."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    database.ensure(project.folder / "mlflow.db")
    started = time.monotonic()
    with project.cold():
        done = project.command("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    assert done.returncode == 0, done.stderr
    assert "registered digits-cnn version 1 as champion" in done.stdout
    return time.monotonic() - started


def as_parameters(options):
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs for part in ("-P", f"{name.removeprefix('--')}={value}")]


def send(project, process, target, number):
    """Send the signal; return whether there was a process to send it to."""
    if target == "the training process":
        for child, parent in processes_of(project).items():
            if parent == process.pid:
                os.kill(child, number)
                return True
        return False
    if process.poll() is not None:
        return False
    (os.killpg if target.startswith("both") else os.kill)(process.pid, number)
    return True


def cases():
    """Each signal to each target; the table has one row per target."""
    for target in TARGETS:
        fault = pytest.mark.fault(
            f"signal to {target}",
            "SIGINT, SIGTERM and SIGKILL at a random moment of a run",
            "no process is left; the exit code is not 0; the store opens; the next command closes the run",
        )
        yield from (pytest.param(target, number, marks=fault) for number in SIGNALS)


@pytest.mark.long
@pytest.mark.parametrize(("target", "number"), [*cases()])
def test_signal_at_a_random_moment(project, seconds, target, number, attempt, record_property):
    process = project.start("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    moment = random.Random(f"{target} {number} {attempt}").uniform(0, seconds)
    time.sleep(moment)
    sent = send(project, process, target, number)
    code = process.wait(timeout=120)
    assert_clean(project)
    if sent:
        assert code != 0
    record_property("times", int(sent))  # the process may not have started yet, or have ended before


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of `mlflow run`",
    "during a training",
    "the training process closes its run with the reason, and ends",
)
def test_killed_mlflow_run_ends_its_training(project):
    process = project.start("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    saved = project.folder / "checkpoints"
    wait_until(lambda: list(saved.glob("*/*.pt")), seconds=120, for_what="an epoch")
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(project), seconds=60, for_what="the end of all processes")
    (run,) = project.runs()
    assert (run.info.status, ours(run.data.tags)["error"]) == ("KILLED", "the process that started it is gone")


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of a repetition",
    "while two seeds train",
    "no process is left; the next command closes the runs",
)
def test_killed_repetition_ends_its_seeds(project):
    options = ["--dataset", "digits", "--epochs", "100", "--seeds", "2", "--jobs", "2"]
    process = project.start(sys.executable, "-m", "drilldown", "repeat", "--step", "step4", *options)
    saved = project.folder / "checkpoints"
    wait_until(lambda: len({file.parent for file in saved.glob("*/*.pt")}) == 2, seconds=120, for_what="two seeds")
    assert len(processes_of(project)) == 3
    process.kill()
    process.wait()
    assert_clean(project)
    ended = {run.info.run_name: run.info.status for run in project.runs() if run.info.run_name != "compare"}
    assert ended == {"repeat step4": "KILLED", "step4 seed 0": "KILLED", "step4 seed 1": "KILLED"}


@pytest.mark.long
@pytest.mark.fault(
    "unfinished database",
    "SIGKILL while MLflow creates its tables",
    "the next training creates it again",
)
def test_unfinished_database_is_created_again(tmp_path):
    project = Project(tmp_path)
    file = tmp_path / "mlflow.db"
    code = f"import mlflow; mlflow.MlflowClient('sqlite:///{file}').search_experiments()"
    process = project.start(sys.executable, "-c", code)
    wait_until(file.exists, seconds=60, for_what="the first table")
    process.kill()
    process.wait()
    assert not database.is_complete(file, settle_seconds=0)
    done = project.command(sys.executable, "-m", "drilldown", "compare", "--dataset", "digits")
    assert "there is no store; a training makes one" in done.stderr
    done = project.command(sys.executable, "-m", "drilldown", "step4", "--dataset", "digits", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert [(run.info.run_name, run.info.status) for run in project.runs()] == [("step4 seed 0", "FINISHED")]
    assert file.with_name("mlflow.db.unfinished").exists()


@pytest.fixture
def many_connections(monkeypatch):
    """Allow many connections to stores that are opened later: some of the signals cost one."""
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "1000")


@pytest.mark.fault(
    "signal during a database query",
    "SIGTERM at every 300th line of the code that logs a metric",
    "the process stops, and can still close its run in the database",
)
def test_signal_during_a_database_query(many_connections, store, monkeypatch, record_property):
    monkeypatch.setattr(process, "REPEAT_SECONDS", 0)
    before = signal.signal(signal.SIGTERM, process._stop)
    run_id = store.create_run("0").info.run_id
    store.log_metric(run_id, "accuracy", 99.0)

    def log(moment):
        """Log a metric, with a signal when this many lines have run; return how many lines ran in all."""
        lines = itertools.count()

        def trace(frame, event, argument):
            if next(lines) == moment:
                signal.raise_signal(signal.SIGTERM)
            return trace

        sys.settrace(trace)
        try:
            store.log_metric(run_id, "accuracy", 99.4, step=moment)
        finally:
            sys.settrace(None)
        return next(lines)

    try:
        for times in itertools.count():
            try:
                assert log(300 * times) <= 300 * times  # it ended before that line; no signal is lost
                break
            except process.Stopped as stop:
                store.set_tag(run_id, "error", stop.reason)  # if the database is locked, this takes seconds and fails
        assert times > 20
        record_property("times", times)
    finally:
        signal.signal(signal.SIGTERM, before)
