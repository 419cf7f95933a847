"""The database is made whole, and nothing that was kept is ever lost by it."""

import sqlite3
from contextlib import closing

from src.lifecycle import database


def test_a_database_is_made_once(tmp_path):
    file = tmp_path / "mlflow.db"
    database.make(file)
    assert database.is_whole(file)
    before = file.stat()
    database.make(file)
    assert file.stat() == before


def test_what_has_rows_is_left_alone_whoever_made_it(tmp_path):
    file = tmp_path / "others.db"
    with closing(sqlite3.connect(file)) as others:
        others.execute("CREATE TABLE kept (value)")
        others.execute("INSERT INTO kept VALUES (1)")
        others.commit()
    before = file.read_bytes()
    database.make(file)
    assert file.read_bytes() == before


def test_what_was_never_finished_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "SILENCE", 0)
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as unfinished:
        unfinished.execute("CREATE TABLE experiments (name)")
    before = file.read_bytes()
    database.make(file)
    assert database.is_whole(file)
    assert (tmp_path / "mlflow.db.unfinished").read_bytes() == before
