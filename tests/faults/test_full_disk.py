"""A full disk: with the data, the training states, the database, the artifacts or the temporary files."""

import os
import shutil
import subprocess
import tempfile

import mlflow
import pytest
from mlflow import MlflowClient

from drilldown.__main__ import main
from drilldown.learning import data
from drilldown.tracking.database import is_complete
from drilldown.tracking.tags import ours
from tests.faults.small_disk import fill, mounted
from tests.support import warm
from tests.support.project import ROOT
from tests.test_cli import refused, run_status

STEP = ["step2", "--dataset", "digits", "--threads", "1", "--target", "0", "--engine", "torch"]  # compiles nothing
PASSING = [*STEP, "--epochs", "5"]  # as many as the gate judges
FULL = "No space left on device"
CLEAR = "a clear error; run FAILED, nothing registered; with free space it works again"
TAGS = {"step", "dataset.digest", "parameters", "min_accuracy_last_k", "test_accuracy"}  # of a complete version


def assert_nothing_half_registered(store):
    """Each version has all its tags, and nothing false is said of a champion: its alias is set before its statement."""
    for model in store.search_registered_models():
        for version in store.search_model_versions(f"name = '{model.name}'"):
            assert set(ours(version.tags)) >= TAGS
        if champion := model.aliases.get("champion"):
            assert ours(store.get_model_version(model.name, champion).tags).get("promotion.promoted") in (None, "True")


def assert_registered(store):
    """A training that passed the gate registered a complete champion."""
    (model,) = store.search_registered_models()
    assert set(model.aliases) == {"challenger", "champion"}
    assert_nothing_half_registered(store)
    champion = store.get_model_version(model.name, model.aliases["champion"])
    assert ours(champion.tags)["promotion.promoted"] == "True"


@pytest.mark.mnist
@pytest.mark.fault("full disk: data", "a tmpfs with too little space, four sizes", "a clear error")
@pytest.mark.parametrize("kilobytes", [0, 10_000, 46_500, 53_664])  # the files take 45,940, 60, 7,660 and 12
def test_full_data_folder(kilobytes, tmp_path, store, capsys):
    with mounted(tmp_path / "disk", "size=80m") as folder:
        filling = fill(folder, leave=kilobytes)
        free = shutil.disk_usage(folder).free
        for name in ("mnist", "auto"):  # other data would not help
            code, line = refused(capsys, "step2", "--dataset", name, "--data_dir", str(folder))
            if "no mirror gave it" in line:
                pytest.skip(line)
            assert (code, FULL in line, str(folder) in line) == (1, True, True)
        kept = sum(file.stat().st_size for file in folder.rglob("*ubyte"))
        assert free - shutil.disk_usage(folder).free <= kept + 2**14  # no partial file takes space
        assert {status for _, status in run_status(store)} == {"FAILED"}
        filling.unlink()
        assert data.load("mnist", folder).name == "mnist"


@pytest.mark.fault("full disk: training states", "no space; space for half a state", CLEAR)
@pytest.mark.parametrize("kilobytes", [0, 100])
def test_no_space_for_the_first_state(kilobytes, tmp_path, store, capsys):
    with mounted(tmp_path / "checkpoints", "size=4m") as folder:
        fill(folder, leave=kilobytes)
        code, line = refused(capsys, *PASSING)
        assert code == 1
        (entry,) = store.search_runs(["0"])
        assert line == (
            f"the state after epoch 1 cannot be saved as checkpoints/{entry.info.run_id}/epoch-0001.pt ({FULL})"
        )
        assert entry.info.status == "FAILED"
        assert store.search_registered_models() == []


@pytest.mark.slow
@pytest.mark.fault("full disk: training states", "space for one and a half states; then freed", CLEAR)
def test_no_space_for_a_later_state(tmp_path, store, capsys):
    with mounted(tmp_path / "checkpoints", "size=4m") as folder:
        filling = fill(folder, leave=200)
        code, line = refused(capsys, *PASSING)
        (entry,) = store.search_runs(["0"])
        run_id = entry.info.run_id
        assert (code, entry.info.status) == (1, "FAILED")
        assert line == (
            f"the state after epoch 2 cannot be saved as checkpoints/{run_id}/epoch-0002.pt ({FULL}); "
            f"resume={run_id} goes on from the state before it"
        )
        filling.unlink()
        main(["step2", "--resume", run_id])  # as the message says
        assert "resumes after epoch 1" in capsys.readouterr().out
        assert_registered(store)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("full disk: artifacts", "at the first artifact, the figures, the model; then freed", CLEAR)
def test_no_space_for_artifacts(tmp_path, store, capsys, monkeypatch, record_property):
    with mounted(tmp_path / "disk", "size=4m") as folder:
        experiment = store.create_experiment("on a small disk", artifact_location=folder.as_uri())
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        filling = fill(folder)
        assert_full(refused(capsys, *PASSING), folder)  # it has logged only its parameters
        for kilobytes in (4, 100, 200):
            filling = fill(folder, leave=kilobytes)
            begun = store.search_runs([experiment])[0].info.run_id if kilobytes > 4 else None
            assert_full(refused(capsys, *(["step2", "--resume", begun] if begun else PASSING)), folder)
            assert {entry.info.status for entry in store.search_runs([experiment])} == {"FAILED"}
            assert store.search_registered_models() == []
        assert {model.status for model in store.search_logged_models([experiment])} != {"READY"}
        filling.unlink()
        main(["step2", "--resume", begun])
        assert_registered(store)
        record_property("times", 4)


def assert_full(answer, folder):
    """The command's one line says what is full, and where."""
    code, line = answer
    assert code == 1
    assert FULL in line or "database or disk is full" in line
    assert str(folder) in line
    assert "SQL:" not in line  # followed by thousands of values


@pytest.fixture
def small_store(empty_database, store, tmp_path, monkeypatch):
    """A store on a small disk; its artifacts are elsewhere."""
    with mounted(tmp_path / "disk", "size=8m") as folder:
        uri = f"sqlite:///{shutil.copy(empty_database, folder)}"
        mlflow.set_tracking_uri(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield MlflowClient()
        while mlflow.active_run():
            mlflow.end_run()


def fill_before(call, number, folder, monkeypatch):
    """Fill the disk just before the nth call of an MlflowClient's method.

    SQLite reuses its pages, so a disk of a fixed size would be full at few different moments only.
    """
    method, calls = getattr(MlflowClient, call), iter(range(1, 1000))

    def watched(*given, **named):
        if next(calls) == number:
            fill(folder)
        return method(*given, **named)

    monkeypatch.setattr(MlflowClient, call, watched)


@pytest.mark.fault("full disk: database", "before the run is opened", "a clear error; no run")
def test_no_space_to_open_a_run(small_store, tmp_path, capsys):
    filling = fill(tmp_path / "disk")
    assert_full(refused(capsys, *STEP), tmp_path / "disk")
    filling.unlink()
    assert small_store.search_runs(["0"]) == []


@pytest.mark.slow
@pytest.mark.fault("full disk: database", "before it is created, three sizes", "with free space it is created")
@pytest.mark.parametrize("kilobytes", [0, 100, 500])
def test_no_space_to_create_the_database(kilobytes, tmp_path, store, monkeypatch, capsys):
    with mounted(tmp_path / "disk", "size=8m") as folder:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        filling = fill(folder, leave=kilobytes)
        assert_full(refused(capsys, *STEP), folder)
        filling.unlink()
        command = [warm.python(), "-m", "drilldown.tracking.database", folder / "mlflow.db"]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, check=True)
        assert is_complete(folder / "mlflow.db")
        assert {file.name for file in folder.iterdir()} <= {
            "mlflow.db",
            "mlflow.db.lock",
        }


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault(
    "full disk: database",
    "at each kind of write while a training is logged and registered",
    "a clear error; nothing half-registered; with free space the store opens and the run is resumed",
)
def test_no_space_while_logging_and_registering(small_store, tmp_path, capsys, monkeypatch, record_property):
    monkeypatch.setenv("DRILLDOWN_CHECKPOINTS", str(tmp_path / "checkpoints"))  # beside the database there is no space
    folder = tmp_path / "disk"
    moments = [
        ("create_run", 1),
        ("log_batch", 1),
        ("log_batch", 3),
        ("create_registered_model", 1),
        ("create_model_version", 1),
        ("set_registered_model_alias", 1),
        ("set_model_version_tag", 1),
        ("set_registered_model_tag", 1),
        ("set_registered_model_alias", 1),  # it is challenger by now: this makes it champion
        ("set_registered_model_tag", 2),
    ]
    for call, number in moments:
        saved = sorted((tmp_path / "checkpoints").glob("*/epoch-*.pt"))
        arguments = ["step2", "--resume", saved[-1].parent.name] if saved else PASSING
        with pytest.MonkeyPatch.context() as patch:
            fill_before(call, number, folder, patch)
            assert_full(refused(capsys, *arguments), folder)
        (folder / "filling").unlink()
        assert "FINISHED" not in {status for _, status in run_status(small_store)}
        assert_nothing_half_registered(small_store)
    main(arguments)
    assert "resumes after epoch 5" in capsys.readouterr().out
    assert_registered(small_store)
    record_property("times", len(moments))


@pytest.mark.slow
@pytest.mark.fault("full disk: temporary files", "a tmpfs without space", CLEAR)
def test_no_space_for_temporary_files(tmp_path, store, capsys, monkeypatch):
    with mounted(tmp_path / "disk", "size=4m") as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        fill(folder)
        code, line = refused(capsys, *PASSING)
        assert (code, FULL in line, str(folder) in line) == (1, True, True)
        assert run_status(store) == [("step2 seed 0", "FAILED")]
