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
    again; nothing was ever kept in that.
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
        fresh.replace(file)


def is_whole(file: Path, silence: float = SILENCE) -> bool:
    """Whether MLflow made the database to the end; what is being made is waited for until it is silent."""
    while file.exists():
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
            try:
                if database.execute("SELECT count(*) FROM experiments").fetchone() != (0,):
                    return True  # MLflow's last step is the first experiment
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
        if time.time() - file.stat().st_mtime > silence:
            return False
        time.sleep(0.2)  # another process is making it
    return False


if __name__ == "__main__":
    make(Path(sys.argv[1]))
