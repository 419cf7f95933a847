"""Signals at any moment: to the process that trains, to the `mlflow run` that started it, and to both."""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Project

from benchmarks.programs import wait_until
from src import process
from src.lifecycle import database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc"),
]
TRAINING = ["--dataset", "digits", "--epochs", "5", "--target", "0", "--threads", "1"]  # its model is registered
TARGETS = ["`mlflow run`", "the process that trains", "both, as by Ctrl-C"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.fixture
def project(tmp_path):
    """A copy of the project; its database is there already, as MLflow's making of it has a test of its own."""
    project = Project(tmp_path)
    database.make(tmp_path / "mlflow.db")
    return project


def processes_of(project):
    """The id of every process that works in the project's folder, and its parent's."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == project.folder:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                if status[0] != "Z":
                    found[int(entry.name)] = int(status[1])
        except OSError:  # it has ended meanwhile
            continue
    return found


def assert_nothing_is_left(project):
    """No process, and, once anything runs again, no open run; the store opens, and the registry is whole."""
    wait_until(lambda: not processes_of(project), seconds=60, for_what="the end of all processes")
    project.command(sys.executable, "-m", "src.run", "compare", "--dataset", "digits")
    assert "RUNNING" not in [run.info.status for run in project.runs()]
    client = project.client()
    for model in client.search_registered_models():
        if "champion" in model.aliases:
            assert client.get_model_version_by_alias(model.name, "champion").tags["verified"] == "true"


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
    """How long an undisturbed run takes here."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    database.make(project.folder / "mlflow.db")
    begun = time.monotonic()
    done = project.command("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    assert done.returncode == 0, done.stderr
    assert "registered digits-cnn version 1 as champion" in done.stdout
    return time.monotonic() - begun


def as_parameters(options):
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs for part in ("-P", f"{name.removeprefix('--')}={value}")]


def send(project, process, target, number):
    """Send the signal; returns whether there was anything to send it to."""
    if target == "the process that trains":
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
    """Each signal to each target; a row of the table is a target."""
    for target in TARGETS:
        fault = pytest.mark.fault(
            f"a signal to {target}",
            "SIGINT, SIGTERM and SIGKILL at a random moment of a run",
            "no process is left; the exit code is not 0; the store opens; no run stays open once anything runs again",
        )
        yield from (pytest.param(target, number, marks=fault) for number in SIGNALS)


@pytest.mark.long
@pytest.mark.parametrize(("target", "number"), [*cases()])
def test_a_signal_at_a_random_moment(project, seconds, target, number, attempt, record_property):
    process = project.start("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    moment = random.Random(f"{target} {number} {attempt}").uniform(0, seconds)
    time.sleep(moment)
    sent = send(project, process, target, number)
    code = process.wait(timeout=120)
    assert_nothing_is_left(project)
    if sent:
        assert code != 0
    record_property("times", int(sent))  # it may not have begun, or have ended before


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of `mlflow run`",
    "while its process trains",
    "that ends in order, and says why",
)
def test_mlflow_run_is_killed(project):
    process = project.start("mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING))
    saved = project.folder / "checkpoints"
    wait_until(lambda: list(saved.glob("*/*.pt")), seconds=120, for_what="an epoch")
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(project), seconds=60, for_what="the end of all processes")
    (run,) = project.runs()
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "the process that started it is gone")


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of a repetition",
    "while two seeds train",
    "no process is left; no run stays open once anything runs again",
)
def test_a_killed_repetition_takes_its_seeds_along(project):
    options = ["--dataset", "digits", "--epochs", "100", "--seeds", "2", "--jobs", "2"]
    process = project.start(sys.executable, "-m", "src.run", "repeat", "--step", "step4", *options)
    saved = project.folder / "checkpoints"
    wait_until(lambda: len({file.parent for file in saved.glob("*/*.pt")}) == 2, seconds=120, for_what="two seeds")
    assert len(processes_of(project)) == 3
    process.kill()
    process.wait()
    assert_nothing_is_left(project)
    ended = {run.info.run_name: run.info.status for run in project.runs() if run.info.run_name != "compare"}
    assert ended == {"repeat step4": "KILLED", "step4 seed 0": "KILLED", "step4 seed 1": "KILLED"}


@pytest.mark.long
@pytest.mark.fault(
    "a database that was never finished",
    "SIGKILL while MLflow makes its tables",
    "whatever runs next makes it anew",
)
def test_a_database_that_was_never_finished(tmp_path):
    project = Project(tmp_path)
    file = tmp_path / "mlflow.db"
    code = f"import mlflow; mlflow.MlflowClient('sqlite:///{file}').search_experiments()"
    process = project.start(sys.executable, "-c", code)
    wait_until(file.exists, seconds=60, for_what="the first table")
    process.kill()
    process.wait()
    assert not database.is_whole(file, silence=0)
    done = project.command(sys.executable, "-m", "src.run", "compare", "--dataset", "digits")
    assert "the store has no finished run to compare" in done.stderr
    assert [run.info.run_name for run in project.runs()] == ["compare"]


@pytest.fixture
def many_connections(monkeypatch):
    """For stores that are opened after this: some of the signals cost a connection each."""
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "1000")


@pytest.mark.fault(
    "a signal while the database is asked",
    "SIGTERM at every 300th line that runs while metrics are logged",
    "the process is stopped, and the database still takes what closes its run",
)
def test_a_signal_while_the_database_is_asked(many_connections, store, monkeypatch, record_property):
    monkeypatch.setattr(process, "PATIENCE", 0)
    before = signal.signal(signal.SIGTERM, process._stop)
    run_id = store.create_run("0").info.run_id
    store.log_metric(run_id, "accuracy", 99.0)

    def log(moment):
        """Log a metric, with a signal at this line of all that runs; returns how many lines ran."""
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
                assert log(300 * times) <= 300 * times  # it was over before; no signal is lost
                break
            except process.Stopped as stop:
                store.set_tag(run_id, "error", stop.reason)  # takes seconds where it is locked, and fails
        assert times > 20
        record_property("times", times)
    finally:
        signal.signal(signal.SIGTERM, before)
