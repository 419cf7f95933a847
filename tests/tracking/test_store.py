"""The store answers soon or is refused; runs whose process is gone are closed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.store.tracking.dbmodels.models import SqlExperimentTag
from mlflow.tracking._tracking_service.utils import _get_git_url_if_present

from drilldown import process
from drilldown.errors import ParameterError, StoreError
from drilldown.steps import ROOT
from drilldown.tracking.store import (
    EXPERIMENT,
    SHORT_TIMEOUTS,
    beside_others,
    close_by_hand,
    close_run,
    connect,
    connect_to_read,
    describe_experiment,
    exists,
)
from drilldown.tracking.tags import ours
from tests.support.concurrency import at_once, meeting_before_a_row


@pytest.mark.fault(
    "open runs of other machines, folders and programs",
    "runs with the locks of such processes in the store",
    "they are left alone; those whose process is gone here are closed",
)
def test_the_runs_of_processes_that_are_gone_are_closed(store, monkeypatch):
    process.liveness_lock.cache_clear()  # the folder in which an earlier test took it may have moved
    here, file = process.liveness_lock().split(":")
    folder = Path(file).parent
    locks = {
        "alive": process.liveness_lock(),
        "gone": f"{here}:{folder / 'gone'}",
        "on another machine": f"elsewhere:{folder / 'gone'}",
        "in a folder that is not here": f"{here}:{folder / 'nowhere' / 'gone'}",
    }
    runs = {name: store.create_run("0", tags={"drilldown.process": lock}).info.run_id for name, lock in locks.items()}
    runs["gone, of version 0.1.0"] = store.create_run("0", tags={"process": locks["gone"]}).info.run_id
    runs["of another program"] = store.create_run("0").info.run_id
    of_project = {"mlflow.source.type": "PROJECT", "mlflow.source.name": _get_git_url_if_present(str(ROOT))}
    runs["just opened by mlflow run"] = store.create_run("0", tags=of_project).info.run_id
    long_ago = time.time_ns() // 10**6 - 60_000
    runs["opened by mlflow run, for nobody"] = store.create_run("0", long_ago, of_project).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", store.create_run("0", long_ago, of_project).info.run_id)
    process.liveness_lock.cache_clear()
    runs["about to be taken over"] = Path(process.liveness_lock()).name
    elsewhere = of_project | {"mlflow.source.name": "another project"}
    runs["of another project"] = store.create_run("0", long_ago, elsewhere).info.run_id
    connect()
    closed = {name for name, run_id in runs.items() if store.get_run(run_id).info.status != "RUNNING"}
    assert closed == {"gone", "gone, of version 0.1.0", "opened by mlflow run, for nobody"}
    closed_run = store.get_run(runs["gone"])
    assert (closed_run.info.status, ours(closed_run.data.tags)["error"]) == (
        "KILLED", "its process is gone: it was killed, or the machine went down",
    )  # fmt: skip
    process.liveness_lock.cache_clear()


def test_closing_a_run_that_ended_by_itself_leaves_it_as_it_is(store):
    run_id = store.create_run("0").info.run_id
    store.set_terminated(run_id)
    close_run(run_id, "KILLED", "its process is gone")
    run = store.get_run(run_id)
    assert (run.info.status, ours(run.data.tags).get("error")) == ("FINISHED", None)


def test_an_experiment_is_described_once_and_a_users_words_stay(store):
    def description():
        return store.get_experiment("0").tags.get("mlflow.note.content")

    assert description() is None
    for _ in range(2):
        describe_experiment("0")
        assert "drilldown" in description()
    for written in ("my own words", ""):
        store.set_experiment_tag("0", "mlflow.note.content", written)
        describe_experiment("0")
        assert description() == written


def test_two_commands_describe_an_experiment_at_once(store):
    with meeting_before_a_row(SqlExperimentTag) as met:
        at_once(*(lambda: describe_experiment("0"),) * 2)
    assert met.is_set()
    assert "drilldown" in store.get_experiment("0").tags["mlflow.note.content"]


def test_what_the_database_refuses_twice_is_an_error(store):
    write = Mock(side_effect=MlflowException("too long", BAD_REQUEST))
    with pytest.raises(MlflowException, match="too long"):
        beside_others(write)
    assert write.call_count == 2


def test_a_run_whose_process_was_killed_before_it_had_a_name_gets_one(store, monkeypatch):
    entry_points = {"main": "train", "step3": "train", "repeat": "repeat"}
    for entry_point, kind in entry_points.items():
        run_id = store.create_run("0", tags={"mlflow.project.entryPoint": entry_point}).info.run_id
        close_run(run_id, "KILLED", "its process is gone")
        run = store.get_run(run_id)
        assert (run.info.run_name, ours(run.data.tags)["kind"]) == (entry_point, kind)


def test_connecting_to_read_writes_nothing(store, tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    store.create_run("0")
    before = database.read_bytes()
    connect_to_read()
    assert database.read_bytes() == before
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'nowhere.db'}")
    connect_to_read()
    assert not exists()
    assert not (tmp_path / "nowhere.db").exists()


def test_a_store_that_does_not_answer(store, monkeypatch):
    monkeypatch.setitem(SHORT_TIMEOUTS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # not to wait in a test
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"MLFLOW_TRACKING_URI is 'http://127.0.0.1:9': the store there"):
        connect()


@pytest.mark.slow
def test_processes_that_start_together_create_one_database_and_one_experiment(warm_start, tmp_path):
    code = "from drilldown.tracking import store; store.connect()"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT / "src")}
    for selected in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        environment.pop(selected, None)
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    names = [experiment.name for experiment in mlflow.MlflowClient(uri).search_experiments()]
    assert sorted(names) == ["Default", EXPERIMENT]


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", None])
def test_runs_go_into_the_named_experiment_unless_the_user_names_another(store, monkeypatch, variable):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    if variable:
        monkeypatch.setenv(variable, "mine")
    connect()
    with mlflow.start_run() as run:
        pass
    assert store.get_experiment(run.info.experiment_id).name == ("mine" if variable else EXPERIMENT)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)


def test_a_run_is_closed_by_hand_unless_its_process_lives_here(store):
    alive = store.create_run("0", tags={"drilldown.process": process.liveness_lock()}, run_name="alive").info.run_id
    with pytest.raises(ParameterError, match="the process of 'alive' lives on this machine: end it first"):
        close_by_hand(alive)
    parent = store.create_run("0", tags={"drilldown.process": "elsewhere:/there/x"}, run_name="parent").info.run_id
    tags = {"drilldown.process": process.liveness_lock(), "mlflow.parentRunId": parent}
    nested = store.create_run("0", tags=tags, run_name="nested").info.run_id
    with pytest.raises(ParameterError, match="the process of 'nested' lives on this machine"):
        close_by_hand(parent)
    assert {store.get_run(run_id).info.status for run_id in (alive, parent, nested)} == {"RUNNING"}
    store.set_terminated(nested)
    assert close_by_hand(parent) == ["parent"]
    assert (store.get_run(parent).info.status, store.get_run(nested).info.status) == ("KILLED", "FINISHED")
    with pytest.raises(ParameterError, match="and that run is KILLED"):
        close_by_hand(parent)
    with pytest.raises(ParameterError, match=f"run is {'f' * 32!r}: .*, and the store says"):
        close_by_hand("f" * 32)
