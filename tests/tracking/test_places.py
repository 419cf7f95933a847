"""A store whose files have moved is seen and mended; a relative address, or a wrong one, makes no database."""

import contextlib
import shlex
import shutil
import sqlite3

import mlflow
import pytest

from drilldown import __main__
from drilldown.errors import ParameterError, StoreError
from drilldown.registry import registry
from drilldown.registry.integrity import fetch
from drilldown.tracking import database as tracking_database
from drilldown.tracking import places
from drilldown.tracking.store import local_path
from tests.support.registered import register, verify_in_process
from tests.support.tracked import track
from tests.test_cli import refused


@pytest.fixture
def moved(store, digits, trained, tmp_path, monkeypatch):
    """A project that has moved from "old" to "new" since a model was registered; yields both folders."""
    verify_in_process(monkeypatch)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.move(tmp_path / "mlflow.db", old)
    use(old, monkeypatch)
    experiment = mlflow.MlflowClient().create_experiment("mine", str(old / "mlruns" / "1"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    register(track(trained, digits), digits)
    old.rename(new)
    use(new, monkeypatch)
    return old, new


def use(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.mark.fault(
    "a project that has moved", "its folder has another name", "each command names what is gone; relocate mends it"
)
def test_a_project_that_has_moved(moved, capsys, digits):
    old, new = moved
    expected = f"there is no folder {old / 'mlruns' / '1'}; it seems to be {new} now: "
    for arguments in (["predict", "--images", "."], ["step2", "--dataset", "digits"], ["compare"]):
        code, line = refused(capsys, *arguments)
        assert code == 1
        assert expected in line
        assert line.endswith(f"relocate --old {old} --new {new}")
    assert not old.exists()  # nothing was written there
    __main__.main(shlex.split(line.rpartition("python -m drilldown ")[2]))  # as it is printed
    said = capsys.readouterr().out
    assert said.startswith(f"4 addresses lead to {new} now, no more to {old}; ")  # an experiment, a run, two of a model
    assert places.missing_files() is None
    (copy,) = new.glob("mlflow.db.before-relocate-*")
    with contextlib.closing(sqlite3.connect(copy)) as kept:
        ((address,),) = kept.execute("SELECT artifact_location FROM experiments WHERE name = 'mine'").fetchall()
    assert address == str(old / "mlruns" / "1")
    done = registry.promote("digits-cnn", "1", digits, why="it has moved")  # loads the files
    assert done.reason == "it is the champion already"


@pytest.mark.slow
def test_what_relocate_refuses(moved):
    old, new = moved
    with pytest.raises(ParameterError, match=r"new is '.*nowhere': none of the store's files is there"):
        places.relocate(str(old), "nowhere")
    with pytest.raises(ParameterError, match=r"old is '.*other': no address of this store begins with it"):
        places.relocate("other", str(new))
    assert "there is no folder" in places.missing_files()
    assert not list(new.glob("*.before-*"))  # nothing was changed, so no copy
    places.relocate("", "")
    with pytest.raises(ParameterError, match="old is not given, and nothing of this store is gone"):
        places.relocate("", "")


@pytest.mark.fault(
    "files of a registered model are gone",
    "its folder, all its files, one of them",
    "the file is named with its path: it was not altered",
)
def test_files_that_are_gone_are_not_altered(moved, digits, tmp_path):
    places.relocate("", "")
    version = mlflow.MlflowClient().get_model_version("digits-cnn", "1")
    folder = local_path(mlflow.MlflowClient().get_model_version_download_uri("digits-cnn", "1"))
    (folder / "MLmodel").rename(tmp_path / "MLmodel")
    with pytest.raises(registry.RegistryError, match=rf"files of .* are gone: there is no MLmodel in {folder}"):
        registry.promote("digits-cnn", "1", digits, why="a look at the champion")
    (tmp_path / "copy").mkdir()
    for name in [file.name for file in folder.iterdir()]:
        (folder / name).rename(tmp_path / name)
    with pytest.raises(registry.RegistryError, match="are gone: there is no MLmodel"):
        fetch(version, tmp_path / "copy")
    folder.rmdir()
    with pytest.raises(registry.RegistryError, match=f"version 1 are gone: there is no folder {folder}"):
        fetch(version, tmp_path / "copy")


@pytest.mark.parametrize("address", ["/old dir/mlruns/1", "file:///old%20dir/mlruns/1"])
def test_addresses_with_a_space(address, tmp_path):
    from pathlib import Path

    now = places._relocated(address, Path("/old dir"), Path("/new dir"))
    assert now == address.replace("old", "new")
    assert places._relocated(address, Path("/old d"), Path("/new")) is None  # a beginning of a name is no folder


@pytest.mark.fault(
    "a relative store", "`mlflow run` of a project in another folder", "one line says so; no second database"
)
def test_a_relative_store_that_mlflow_run_opened_elsewhere(store, monkeypatch, tmp_path, capsys):
    run_id = store.create_run("0").info.run_id
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    code, line = refused(capsys, "step2", "--dataset", "digits")
    assert code == 1
    assert line.startswith("MLFLOW_TRACKING_URI is 'sqlite:///mlflow.db', which is relative: ")
    assert f"the project runs in {tmp_path / 'project'}; it takes an absolute address" in line
    assert not list((tmp_path / "project").glob("*.db"))
    monkeypatch.chdir(tmp_path)  # the same folder: the same store
    places.check_address()


@pytest.mark.fault("a wrong address of the store", "a name with a slip", "one line that says so; no database is made")
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--images", "."],
        ["compare"],
        ["promote", "--version", "1"],
        ["rollback"],
        ["serve"],
        ["register", "--run", "1"],
        ["record", "--step", "step4"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_uses_a_store_makes_none(store, tmp_path, capsys, arguments):
    uri = f"sqlite:///{tmp_path / 'slip.db'}"
    mlflow.set_tracking_uri(uri)
    code, line = refused(capsys, *arguments)
    assert (code, line.startswith(f"MLFLOW_TRACKING_URI is {uri!r}: there is no store; ")) == (1, True)
    assert not (tmp_path / "slip.db").exists()


def test_a_store_that_is_no_sqlite_database_is_not_looked_at(store):
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    assert places.missing_files() is None
    with pytest.raises(ParameterError, match="relocate takes a store that is a SQLite database"):
        places.relocate("", "")
    with contextlib.suppress(StoreError):
        places.check_address()


@pytest.mark.fault("a busy database", "another process holds it locked", "a line that names it")
def test_a_database_that_stays_locked_is_one_line(moved, monkeypatch):
    old, new = moved
    monkeypatch.setattr(places, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(tracking_database, "is_complete", lambda _: True)  # it was before it was locked
    reason = r"mlflow.db': the store there does not answer \(database is locked\)$"
    with contextlib.closing(sqlite3.connect(new / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use_the_store in (places.missing_files, lambda: places.relocate(str(old), str(new))):
            with pytest.raises(StoreError, match=reason):
                use_the_store()


@pytest.mark.parametrize("command", ["compare", "status", "relocate"])
def test_a_file_that_is_no_database_is_one_line(store, tmp_path, capsys, command):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'notes.txt'}")
    (tmp_path / "notes.txt").write_text("this is no database, but text\n" * 10)
    code, line = refused(capsys, command)
    assert code == 1
    assert line.endswith("notes.txt': the store there does not answer (file is not a database)")
