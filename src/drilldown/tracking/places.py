"""Where the store keeps files: its relative addresses, folders that are gone, and their move to where they are now."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import mlflow
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError, StoreError
from drilldown.tracking import invocation, store

BUSY_SECONDS = 30.0  # for another process that writes to the database
# MLflow keeps absolute addresses in these columns.
ADDRESSES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
# The experiments in which a model was logged: of these, there is a folder for certain.
USED = """
SELECT artifact_location FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id IN
(SELECT experiment_id FROM logged_models WHERE lifecycle_stage = 'active')
"""


def check_address() -> None:
    """Raise StoreError when this run was opened in a store that is relative to another working directory.

    `mlflow run` starts a project in the project's folder, and a relative address then leads to another database.
    """
    file, run_id = store.sqlite_file(), os.environ.get("MLFLOW_RUN_ID")
    if file and run_id and not Path(file).is_absolute() and not _has_run(run_id):
        raise StoreError(
            f"MLFLOW_TRACKING_URI is {mlflow.get_tracking_uri()!r}, which is relative: `mlflow run` took it from the "
            f"folder where you started it, and the project runs in {Path.cwd()}; it takes an absolute address, as "
            f"sqlite:////FOLDER/{Path(file).name}"
        )


def check_store() -> None:
    """Raise StoreError when there is no store: under a wrong address, MLflow would make one."""
    if not store.exists():
        raise StoreError(
            f"MLFLOW_TRACKING_URI is {mlflow.get_tracking_uri()!r}: there is no store; a training makes one: "
            f"{invocation.command('step4')}"
        )


def _has_run(run_id: str) -> bool:
    if not store.exists():
        return False
    try:
        mlflow.MlflowClient().get_run(run_id)
    except MlflowException:
        return False
    return True


def check_files() -> None:
    """Raise StoreError when a folder with files of this store is gone."""
    if missing := missing_files():
        raise StoreError(missing)


def missing_files() -> str | None:
    """Say which folder with files of this store is gone, and what to do; None if there is none.

    Only a SQLite database is looked at: the folders of a server may be on another machine.
    """
    file = store.sqlite_file()
    if not file or not store.exists():
        return None
    folders = [path for (address,) in _read(file, USED) if (path := store.local_path(address))]
    gone = sorted(folder for folder in folders if not folder.is_dir())
    if not gone:
        return None
    new = _moved(gone[0], Path(file).absolute().parent)
    where = f"it seems to be {new[1]} now" if new else "if it has moved, say where"
    old, found = new or (gone[0].parent, "FOLDER")
    return (
        f"files of this store, {file}, are gone: there is no folder {gone[0]}; {where}: "
        f"{invocation.command('relocate', old=old, new=found)}"
    )


def _moved(gone: Path, beside: Path) -> tuple[Path, Path] | None:
    """The part of a path that has changed, before and now, if the same files lie beside the database."""
    for old in gone.parents:
        if old.name and (beside / gone.relative_to(old)).is_dir():
            return old, beside
    return None


def relocate(old: str, new: str) -> tuple[Path, Path, int, Path]:
    """Change every address of the store that begins with `old` to begin with `new`, in one transaction.

    Either may be empty: then it is what `missing_files` finds. A copy of the database is kept.

    Returns: the folder before, the folder now, the number of addresses, and the copy.
    Raises: ParameterError when there is nothing to change, or the files are not in the new folder.
    """
    file = store.sqlite_file()
    if not file or not store.exists():
        raise ParameterError(
            f"MLFLOW_TRACKING_URI is {mlflow.get_tracking_uri()!r}: relocate takes a store that is a SQLite database"
        )
    folder = Path(file).absolute().parent
    gone = [path for (address,) in _read(file, USED) if (path := store.local_path(address)) and not path.is_dir()]
    found = next(filter(None, (_moved(path, folder) for path in gone)), None)
    if not old and not found:
        raise ParameterError("old is not given, and nothing of this store is gone: it takes the folder that has moved")
    before = Path(os.path.abspath(old)) if old else found[0]  # type: ignore[index]  # noqa: PTH100 (it is gone)
    after = Path(os.path.abspath(new)) if new else (found[1] if found else folder)  # noqa: PTH100
    copy = Path(f"{file}.before-relocate-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    with _opened(file, "rw") as database, database:
        database.execute("BEGIN IMMEDIATE")  # nobody else writes until the end
        moved = {
            (table, address): now
            for table, column in ADDRESSES.items()
            for (address,) in database.execute(f"SELECT DISTINCT {column} FROM {table}")
            if (now := _relocated(address, before, after)) is not None
        }
        if not moved:
            raise ParameterError(f"old is {str(before)!r}: no address of this store begins with it")
        if not any((path := store.local_path(now)) and path.is_dir() for now in moved.values()):
            raise ParameterError(f"new is {str(after)!r}: none of the store's files is there")
        with closing(sqlite3.connect(file)) as reader, closing(sqlite3.connect(copy)) as kept:
            reader.backup(kept)
        changed = 0
        for (table, address), now in moved.items():
            column = ADDRESSES[table]
            statement = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
            changed += database.execute(statement, (now, address)).rowcount
    return before, after, changed, copy


def _relocated(address: str | None, old: Path, new: Path) -> str | None:
    """The address with another beginning; None if it does not begin with the old one."""
    for before, after in ((str(old), str(new)), (f"file://{quote(str(old))}", f"file://{quote(str(new))}")):
        if address and (address == before or address.startswith(f"{before}/")):
            return after + address.removeprefix(before)
    return None


def _read(file: str, query: str) -> list[tuple[str]]:
    with _opened(file, "ro") as database:
        return database.execute(query).fetchall()


@contextmanager
def _opened(file: str, mode: str) -> Iterator[sqlite3.Connection]:
    """Open a database; wait while another process writes to it. Raises: StoreError if that lasts, or it is damaged."""
    address = f"{Path(file).absolute().as_uri()}?mode={mode}"
    with store.answering(), closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database:
        yield database
