"""The tracking store: opened, waited for no longer than it is worth, and rid of runs whose process is gone."""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _get_git_url_if_present
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE
from sqlalchemy import event
from sqlalchemy.pool import Pool

from src import process
from src.lifecycle import database
from src.lifecycle.messages import one_line
from src.lifecycle.provenance import ROOT

# A query that is cut off keeps SQLite's file locked while its traceback lives, also to what would close the run.
event.listen(Pool, "checkout", lambda connection, record, proxy: process.hold_signals(id(record)))
event.listen(Pool, "checkin", lambda connection, record: process.release_signals(id(record)))

START = 5  # seconds; a process that `mlflow run` starts leaves its sign sooner


def hush() -> None:
    """Leave out what MLflow says of its own doings; warnings stay."""
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it shows the traceback of what it raises
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # they are small, and many


class StoreError(Exception):
    """The tracking store is out of reach, or takes nothing more."""


def connect() -> None:
    """Open the tracking store, and close in it the runs whose process is gone.

    Raises StoreError when the store does not answer.
    """
    try:
        if file := _store_file():
            database.make(Path(file))
        with impatient():
            close_abandoned()
    except Exception as error:  # MLflow's, SQLAlchemy's, SQLite's: whatever it is, the store does not open
        uri = mlflow.get_tracking_uri()
        raise StoreError(
            f"MLFLOW_TRACKING_URI is {uri!r}: the store there does not answer ({explain(error)})"
        ) from error


def explain(error: Exception) -> str:
    """What is wrong with the store: of a database's error where and why, not the statement that met it."""
    link = error
    while link and not hasattr(link, "orig"):  # SQLAlchemy's has the database's own
        link = link.__cause__ or link.__context__
    return f"{mlflow.get_tracking_uri()}: {link.orig}" if link else str(error)


def turn(name: str) -> contextlib.AbstractContextManager:
    """While one process has its turn with the store, the others of this machine (a server's: of this folder) wait."""
    if file := _store_file():
        return FileLock(f"{file}.{name}.lock")
    try:
        process.SIGNS.mkdir(exist_ok=True)
    except OSError:
        return contextlib.nullcontext()  # it cannot be written: nobody trains here
    server = hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()[:16]  # its address may hold a password
    return FileLock(process.SIGNS / f"{server}.{name}.lock")


def _store_file() -> str | None:
    uri = mlflow.get_tracking_uri()
    return uri.removeprefix("sqlite:///").partition("?")[0] if uri.startswith("sqlite:///") else None


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Wait some seconds for a server, in place of the minutes that a training waits for it to come back."""
    hurry = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in hurry}
    os.environ.update(hurry)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def close_abandoned() -> None:
    """Close the runs whose process is gone; those that live, or that live elsewhere, are left alone."""
    running = mlflow.search_runs(
        filter_string="attributes.status = 'RUNNING'", search_all_experiments=True, output_format="list"
    )
    for found in filter(_is_abandoned, running):
        with contextlib.suppress(MlflowException):  # it was deleted meanwhile
            close(found.info.run_id, "KILLED", "its process is gone: it was killed, or the machine went down")


def _is_abandoned(found: Run) -> bool:
    tags = found.data.tags
    if sign := tags.get("process"):
        return process.is_gone(sign)
    # `mlflow run` has opened it and the process that takes it over has not come so far. Should it come after all, late
    # because its environment is being built, it opens the run again.
    ours = tags.get(MLFLOW_SOURCE_TYPE) == "PROJECT" and tags[MLFLOW_SOURCE_NAME] == _get_git_url_if_present(str(ROOT))
    late = time.time() - found.info.start_time / 1000 > START
    here = _store_file() or (process.SIGNS / found.info.run_id).exists()
    return bool(ours and late and here) and process.is_gone(process.sign_of(found.info.run_id))


def close(run_id: str, status: str, error: str) -> None:
    """End a run whose process is gone, unless it ended itself."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status)
        client.set_tag(run_id, "error", error)


def note_error(message: str, run_id: str | None = None) -> None:
    """Leave the message on the run, or on the one that `mlflow run` has opened and nothing has taken over yet."""
    if run_id := run_id or os.environ.get("MLFLOW_RUN_ID"):
        with contextlib.suppress(Exception), impatient():  # the store itself may be what failed
            mlflow.MlflowClient().set_tag(run_id, "error", one_line(message))
