"""The store is opened quickly or refused, and rid of runs whose process is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT
from mlflow.tracking._tracking_service.utils import _get_git_url_if_present

from src import process
from src.lifecycle.store import StoreError, close, connect


@pytest.mark.fault(
    "open runs of other machines, folders and programs",
    "runs with such signs in the store",
    "they are left alone; those whose process is gone here are closed",
)
def test_the_runs_of_processes_that_are_gone_are_closed(store, monkeypatch):
    here, file = process.sign().split(":")
    folder = Path(file).parent
    signs = {
        "alive": process.sign(),
        "gone": f"{here}:{folder / 'gone'}",
        "on another machine": f"elsewhere:{folder / 'gone'}",
        "in a folder that is not here": f"{here}:{folder / 'nowhere' / 'gone'}",
    }
    runs = {name: store.create_run("0", tags={"process": sign}).info.run_id for name, sign in signs.items()}
    runs["of another program"] = store.create_run("0").info.run_id
    of_project = {"mlflow.source.type": "PROJECT", "mlflow.source.name": _get_git_url_if_present(str(ROOT))}
    runs["just opened by mlflow run"] = store.create_run("0", tags=of_project).info.run_id
    long_ago = time.time_ns() // 10**6 - 60_000
    runs["opened by mlflow run, for nobody"] = store.create_run("0", long_ago, of_project).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", store.create_run("0", long_ago, of_project).info.run_id)
    process.sign.cache_clear()
    runs["about to be taken over"] = Path(process.sign()).name
    elsewhere = of_project | {"mlflow.source.name": "another project"}
    runs["of another project"] = store.create_run("0", long_ago, elsewhere).info.run_id
    connect()
    closed = {name for name, run_id in runs.items() if store.get_run(run_id).info.status != "RUNNING"}
    assert closed == {"gone", "opened by mlflow run, for nobody"}
    said = store.get_run(runs["gone"])
    assert (said.info.status, said.data.tags["error"]) == (
        "KILLED", "its process is gone: it was killed, or the machine went down",
    )  # fmt: skip
    process.sign.cache_clear()


def test_closing_a_run_that_ended_by_itself_leaves_it_as_it_is(store):
    run_id = store.create_run("0").info.run_id
    store.set_terminated(run_id)
    close(run_id, "KILLED", "its process is gone")
    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags.get("error")) == ("FINISHED", None)


def test_a_store_that_does_not_answer(store, monkeypatch):
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"MLFLOW_TRACKING_URI is 'http://127.0.0.1:9': the store there"):
        connect()


@pytest.mark.slow
def test_processes_that_start_together_make_one_database(tmp_path):
    code = "from src.lifecycle import store; store.connect()"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
