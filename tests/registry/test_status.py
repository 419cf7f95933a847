"""The status shows what the store holds, and writes nothing to it."""

import contextlib
import itertools
import re
from datetime import UTC, datetime

import mlflow
import pytest
from filelock import FileLock

from drilldown import __main__, process
from drilldown.registry import registry
from drilldown.registry.champion import set_champion
from drilldown.tracking import runs
from drilldown.tracking.store import checkpoints
from drilldown.tracking.tags import ours, prefixed
from tests.support.interruption import interrupted_after_an_epoch
from tests.test_cli import refused


@pytest.fixture
def status(store, tmp_path, capsys):
    """Run the command; returns its lines, once they are compared: the database is as it was, to the byte."""

    def run(*arguments):
        before = (tmp_path / "mlflow.db").read_bytes()
        capsys.readouterr()
        __main__.main(["status", *arguments])
        assert (tmp_path / "mlflow.db").read_bytes() == before
        return capsys.readouterr().out.splitlines()

    return run


def add_version(store, name="digits-cnn", accuracy="98.5", parameters="7364", **tags):
    """Register a version as a training does, without its files; returns its number."""
    with contextlib.suppress(mlflow.MlflowException):
        store.create_registered_model(name)
    run = store.create_run("0", tags={"mlflow.user": "ada"})
    store.set_terminated(run.info.run_id)
    tags = {"step": "step4", "test_accuracy": accuracy, "parameters": parameters} | tags
    version = str(store.create_model_version(name, "nowhere", run.info.run_id, tags=prefixed(tags)).version)
    store.set_registered_model_alias(name, "challenger", version)
    return version


def make_champion(store, version, kind, why, name="digits-cnn"):
    before = store.get_registered_model(name).aliases.get("champion")
    set_champion(name, store.get_model_version(name, before) if before else None, version, kind, why)


def cells(lines, heading):
    """The table below the line with this heading: its rows, as lists of cells."""
    rows = itertools.takewhile(lambda line: line.startswith("  "), lines[lines.index(heading) + 1 :])
    return [re.split(r"  +", row.strip()) for row in rows]


def test_an_empty_store_is_one_line_that_says_what_to_do(status, store, tmp_path, monkeypatch, capsys):
    (line,) = status()
    assert line == "Default: no run and no registered model yet; train a step first: python -m drilldown step4"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert status()[0].startswith("an experiment that does not exist yet: no run")
    assert store.get_experiment_by_name("mine") is None
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'nowhere.db'}")
    __main__.main(["status"])
    assert capsys.readouterr().out.startswith("no run and no registered model yet; train a step first: ")
    assert not (tmp_path / "nowhere.db").exists()


def test_versions_with_their_roles_and_figures(status, store, monkeypatch):
    for number, accuracy in (("1", "98.5"), ("2", "99.0"), ("3", "98.75")):
        assert add_version(store, accuracy=accuracy) == number
    make_champion(store, "1", "promotion", "step4 passed the gate")
    monkeypatch.setattr("getpass.getuser", lambda: "grace")
    make_champion(store, "2", "promotion", "better")
    lines = status()
    head, *rows = cells(lines, "registered model digits-cnn")
    today = datetime.now(UTC).date().isoformat()
    assert head[:6] == ["version", "role", "test accuracy (%)", "parameters", "step", "since (UTC)"]
    shown = [(*row[:5], row[5].split()[0], row[6]) for row in rows]
    assert shown == [
        ("3", "challenger", "98.75", "7,364", "step4", today, "ada"),
        ("2", "champion", "99.00", "7,364", "step4", today, "grace"),
        ("1", "earlier champion", "98.50", "7,364", "step4", today, "ada"),
    ]
    assert 'load the champion: mlflow.pyfunc.load_model("models:/digits-cnn@champion")' in lines
    changes = [row[1:4] + row[5:] for row in cells(lines, "changes of the champion of digits-cnn")[1:]]
    assert changes == [["promotion", "none", "1", "step4 passed the gate"], ["promotion", "1", "2", "better"]]


@pytest.mark.slow
def test_a_champion_of_long_ago_is_shown_beside_the_newest_versions(status, store):
    for _ in range(14):
        add_version(store)
    make_champion(store, "2", "promotion", "the best")
    lines = status()
    numbers = [row[0] for row in cells(lines, "registered model digits-cnn")[1:]]
    assert numbers == [*map(str, range(14, 4, -1)), "2"]
    assert "… and 3 older versions" in lines


def test_a_version_that_somebody_else_registered(status, store):
    store.create_registered_model("theirs")
    store.create_model_version("theirs", "nowhere")
    (_, row) = cells(status(), "registered model theirs")
    assert (row[:5], row[6]) == (["1", "–", "–", "–", "–"], "–")
    assert cells(status(), "changes of the champion of theirs") == [["none"]]


def test_one_model_by_its_name(status, store, capsys):
    add_version(store)
    add_version(store, name="mnist-cnn")
    assert [line for line in status("--model", "mnist-cnn") if line.startswith("registered")] == [
        "registered model mnist-cnn"
    ]
    code, line = refused(capsys, "status", "--model", "cifar-cnn")
    assert (code, line) == (
        2,
        "model is 'cifar-cnn': it takes all, or a registered model of this store: digits-cnn, mnist-cnn",
    )


@pytest.fixture
def interrupted(store):
    """The id of a training that was interrupted after its first epoch."""
    process.LIVENESS_FOLDER.mkdir(exist_ok=True)  # this process keeps its own lock where it took it first
    with interrupted_after_an_epoch(), pytest.raises(SystemExit):
        __main__.main(["step2", "--dataset", "digits", "--epochs", "3", "--engine", "torch", "--seed", "4"])
    (run,) = store.search_runs(["0"])
    return run.info.run_id


@pytest.mark.slow
def test_interrupted_trainings_with_the_command_that_resumes_them(status, store, interrupted):
    expected = ["step2 seed 4", "1 of 3", f"python -m drilldown step2 --resume {interrupted}"]
    (_, row) = cells(status(), "interrupted trainings, and how to resume them")
    assert row == expected
    store.update_run(interrupted, "RUNNING")  # the process was killed outright, and nothing has closed its run yet
    (process.LIVENESS_FOLDER / "dead").touch()
    store.set_tag(interrupted, "drilldown.process", process.lock_name("dead"))
    for _ in range(2):
        lines = status()
        assert cells(lines, "interrupted trainings, and how to resume them")[1:] == [expected]
        assert cells(lines, "runs in progress in Default") == [["none"]]
        assert (process.LIVENESS_FOLDER / "dead").exists()  # by it, the next command closes the run
    assert store.get_run(interrupted).info.status == "RUNNING"
    (checkpoints() / interrupted).rename(checkpoints() / "elsewhere")
    assert cells(status(), "interrupted trainings, and how to resume them") == [["none"]]


@pytest.mark.slow
def test_runs_in_progress(status, store, interrupted):
    with FileLock(process.LIVENESS_FOLDER.absolute() / "alive"):
        store.update_run(interrupted, "RUNNING")
        store.set_tag(interrupted, "drilldown.process", process.lock_name("alive"))
        lines = status()
    (_, row) = cells(lines, "runs in progress in Default")
    assert (row[:2], row[3]) == (["step2 seed 4", "1 of 3"], interrupted)
    assert cells(lines, "interrupted trainings, and how to resume them") == [["none"]]


@pytest.mark.slow
def test_only_runs_of_the_experiment_are_shown(status, store, interrupted):
    store.create_experiment("other")
    add_version(store)
    heading = "interrupted trainings, and how to resume them"
    assert cells(status("--experiment", "other"), heading) == [["none"]]
    for name in ("Default", "all"):
        assert len(cells(status("--experiment", name), heading)) == 2


def test_under_mlflow_run_the_run_that_it_opened_gets_a_name_and_nothing_else_is_written(store, monkeypatch, capsys):
    opened = store.create_run("0", run_name="random-name-1")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    __main__.main(["status"])
    assert "no run and no registered model yet" in capsys.readouterr().out
    (run,) = store.search_runs(["0"])
    assert (run.info.run_name, ours(run.data.tags)["kind"], run.info.status) == ("status", "status", "RUNNING")
    assert "mlflow.note.content" not in store.get_experiment("0").tags


@pytest.mark.slow
def test_a_model_that_was_trained_and_registered(status, store, trained, digits, monkeypatch):
    from tests.support.registered import register, verify_in_process
    from tests.support.tracked import track

    verify_in_process(monkeypatch)
    with runs.run("other", {"kind": "train"}):
        pass
    assert isinstance(register(track(trained, digits), digits), registry.Registration)
    (_, row) = cells(status(), "registered model digits-cnn")
    accuracy = trained.history[-1].eval_accuracy
    assert row[:5] == ["1", "challenger and champion", f"{accuracy:.2f}", "1,000", "small"]
