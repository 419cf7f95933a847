"""Create MLflow's SQLite database whole or not at all: `python -m drilldown.tracking.database mlflow.db`."""

import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from filelock import FileLock

SETTLE_SECONDS = 10  # a process that is creating the tables writes more often than this


def ensure(file: Path) -> None:
    """Create the database, if there is none or if its creation was cut off.

    MLflow creates its tables in dozens of steps. Killed between two of them, it leaves a database that it never opens
    again. Such a file holds no runs; it is renamed to `*.unfinished`, not deleted.
    """
    if not file.parent.is_dir() or is_complete(file):
        return
    with FileLock(f"{file}.lock"):  # two processes that create the same database would damage it
        if is_complete(file):
            return
        from mlflow import MlflowClient  # takes seconds, and is needed once

        fresh = file.with_name(f"{file.name}.new")
        fresh.unlink(missing_ok=True)
        client = MlflowClient(f"sqlite:///{fresh}")
        client.search_experiments(max_results=1)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if name and client.get_experiment_by_name(name) is None:  # of several `mlflow run`, only one could create it
            client.create_experiment(name)
        if file.exists():
            file.replace(file.with_name(f"{file.name}.unfinished"))
        fresh.replace(file)


def is_complete(file: Path, settle_seconds: float = SETTLE_SECONDS) -> bool:
    """Whether the database has rows: MLflow adds its first experiment last of all.

    Waits for a database that is being created, until nothing has been written to it for so many seconds.
    """
    written, since = None, time.monotonic()
    while file.exists():
        if _has_rows(file):
            return True
        if (latest := file.stat().st_mtime) != written:
            written, since = latest, time.monotonic()
        if time.monotonic() - since >= settle_seconds:
            return False
        time.sleep(0.2)
    return False


def _has_rows(file: Path) -> bool:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return any(
            database.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0]
            for name in tables
            if name not in ("alembic_version", "workspaces")  # filled while the tables are created
        )


if __name__ == "__main__":
    try:
        ensure(Path(sys.argv[1]))
    except Exception as error:  # SQLite's, SQLAlchemy's, MLflow's
        sys.exit(f"error: the database {sys.argv[1]} cannot be opened or created: {' '.join(str(error).split())}")
