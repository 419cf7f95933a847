"""Attempts to train a run on a cluster: each is counted, and a later one goes on from the states in the store."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import mlflow

from drilldown import process
from drilldown.errors import NestedError
from drilldown.tracking import store
from drilldown.tracking.tags import PREFIX, ours

STATES = "states"  # the folder of the artifacts with saved training states
MAX_ATTEMPTS = 2  # to train a run on a cluster
LOST = f"its worker was lost {MAX_ATTEMPTS} times"
LOST_SECONDS = 15  # in which the process of a lost worker ends


def begin(run_id: str) -> int:
    """Count an attempt to train the run on a cluster; of all attempts but the first, the worker before was lost.

    That worker's process may still live: it is given the time to see that it is alone, and to close the run.
    Raises: NestedError when there were too many.
    """
    client = mlflow.MlflowClient()
    attempt = int(ours(client.get_run(run_id).data.tags).get("attempt", 0)) + 1
    if attempt > MAX_ATTEMPTS:
        raise NestedError(LOST)
    client.set_tag(run_id, f"{PREFIX}attempt", str(attempt))
    end = time.monotonic() + LOST_SECONDS
    while attempt > 1 and time.monotonic() < end:
        run = client.get_run(run_id)
        lock = ours(run.data.tags).get("process")
        if run.info.status not in store.OPEN or not lock or process.is_gone(lock, keep=True):
            break
        time.sleep(0.5)
    return attempt


def has_started() -> bool:
    """Whether `log_start` was done for the active run, by an earlier attempt."""
    active = mlflow.active_run()
    assert active is not None
    return "parameters" in mlflow.get_run(active.info.run_id).data.metrics


def keep_state(file: Path) -> None:
    """Keep a saved training state in the store, for another machine."""
    mlflow.log_artifact(str(file), STATES)


def fetch_states(run_id: str, folder: Path) -> None:
    """Get the saved training states of the run from the store, if it has any."""
    client = mlflow.MlflowClient()
    for kept in client.list_artifacts(run_id, STATES):
        with tempfile.TemporaryDirectory() as download:
            file = client.download_artifacts(run_id, kept.path, download)
            shutil.move(file, folder / Path(file).name)


def drop_states(run_id: str) -> None:
    """Remove the saved training states from the store; those that cannot be removed stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with contextlib.suppress(Exception):  # whatever the store of the artifacts raises
        if mlflow.MlflowClient().list_artifacts(run_id, STATES):
            get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri).delete_artifacts(STATES)
