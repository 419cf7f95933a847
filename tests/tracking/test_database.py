"""The database is created whole, and nothing that was kept in one is ever lost."""

import sqlite3
from contextlib import closing

import pytest

from drilldown.tracking import database


@pytest.mark.slow
def test_a_database_is_created_once(tmp_path):
    file = tmp_path / "mlflow.db"
    database.ensure(file)
    assert database.is_complete(file)
    before = file.stat()
    database.ensure(file)
    assert file.stat() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my experiment", "Default"])
def test_the_experiment_of_the_environment_is_created_with_it(tmp_path, monkeypatch, name):
    """Several `mlflow run` at once would each try to create it, and all but one would fail."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    database.ensure(tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {found.name for found in client.search_experiments()} == {"Default", name}


def test_a_database_with_rows_is_left_alone_whoever_created_it(tmp_path):
    file = tmp_path / "others.db"
    with closing(sqlite3.connect(file)) as others:
        others.execute("CREATE TABLE kept (value)")
        others.execute("INSERT INTO kept VALUES (1)")
        others.commit()
    before = file.read_bytes()
    database.ensure(file)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_an_unfinished_database_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(database.is_complete, "__defaults__", (0,))
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as unfinished:
        unfinished.execute("CREATE TABLE experiments (name)")
    before = file.read_bytes()
    database.ensure(file)
    assert database.is_complete(file)
    assert (tmp_path / "mlflow.db.unfinished").read_bytes() == before
