"""The addresses lead to MLflow's pages of experiments and runs, not to those of traces."""

import os

import mlflow
import pytest

from drilldown.tracking import pages
from drilldown.tracking.store import EXPERIMENT
from tests.support.browser import needs_chromium, open_page
from tests.support.programs import server

VIEW = "?workflowType=machine_learning"


def test_the_page_of_a_run():
    assert pages.run_page("1", "a") == f"http://127.0.0.1:5000/#/experiments/1/runs/a{VIEW}"
    page = pages.run_page("1", "a", "https://mlflow.example.org")
    assert page == f"https://mlflow.example.org/#/experiments/1/runs/a{VIEW}"


@pytest.mark.parametrize(
    ("arguments", "server"),
    [
        ([], "http://127.0.0.1:5000"),
        (["--workers", "1", "--port", "5055", "--host=0.0.0.0"], "http://0.0.0.0:5055"),
        (["-p5055"], "http://127.0.0.1:5055"),
    ],
)
def test_the_page_of_the_runs(store, monkeypatch, capsys, arguments, server):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    pages.main(arguments)
    assert capsys.readouterr().out == f"the runs: {server}/#/experiments{VIEW}\n"  # no experiment yet
    store.create_experiment("another")
    ours = store.create_experiment(EXPERIMENT)
    pages.main(arguments)
    assert capsys.readouterr().out == f"the runs: {server}/#/experiments/{ours}/runs{VIEW}\n"


def test_the_page_of_the_runs_of_a_store_that_is_named(store, tmp_path, capsys):
    nowhere = tmp_path / "nowhere.db"
    pages.main(["--backend-store-uri", f"sqlite:///{nowhere}"])
    assert capsys.readouterr().out == f"the runs: http://127.0.0.1:5000/#/experiments{VIEW}\n"
    assert not nowhere.exists()


@pytest.mark.slow
@needs_chromium
def test_the_address_opens_the_runs_in_a_fresh_browser(store):
    """Without its query, MLflow shows pages for traces."""
    experiment = store.create_experiment("mine")
    store.create_run(experiment, run_name="step4 seed 0")
    command = ["mlflow", "ui", "--workers", "1", "--backend-store-uri", mlflow.get_tracking_uri()]
    with (
        server(command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as port,
        open_page(pages.experiment_page(experiment, f"http://127.0.0.1:{port}"), until="step4 seed 0") as page,
    ):
        assert "Overview" not in page.content()  # the first entry of the menu for traces
