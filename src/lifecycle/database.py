"""The tracking database is whole, or it is not there: `python -m src.lifecycle.database mlflow.db` sees to it."""

import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from filelock import FileLock

SILENCE = 10  # seconds; a process that makes its tables writes more often


def make(file: Path) -> None:
    """Make the database, if there is none, or one whose making was cut off.

    MLflow makes its tables in dozens of steps. Killed between two of them, it leaves a database that it never opens
    again. Nothing was ever kept in that; still it is set aside, not deleted.
    """
    if not file.parent.is_dir() or is_whole(file):
        return
    with FileLock(f"{file}.lock"):  # made by several at a time, it would be damaged
        if is_whole(file):
            return
        import mlflow  # takes seconds, and is needed once

        fresh = file.with_name(f"{file.name}.new")
        fresh.unlink(missing_ok=True)
        mlflow.MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        if file.exists():
            file.replace(file.with_name(f"{file.name}.unfinished"))
        fresh.replace(file)


def is_whole(file: Path, silence: float = SILENCE) -> bool:
    """Whether anything is kept in the database: MLflow's last step in making it is its first experiment.

    What is being made is waited for, until nothing was written to it for so many seconds.
    """
    written, since = None, time.monotonic()
    while file.exists():
        if _has_rows(file):
            return True
        if (latest := file.stat().st_mtime) != written:
            written, since = latest, time.monotonic()
        if time.monotonic() - since >= silence:
            return False
        time.sleep(0.2)
    return False


def _has_rows(file: Path) -> bool:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return any(
            database.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0]
            for name in tables
            if name not in ("alembic_version", "workspaces")  # filled on the way
        )


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except Exception as error:  # SQLite's, SQLAlchemy's, MLflow's
        sys.exit(f"error: the database {sys.argv[1]} cannot be opened or made: {' '.join(str(error).split())}")
