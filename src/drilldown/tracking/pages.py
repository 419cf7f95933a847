"""Addresses of MLflow's pages; `python -m drilldown.tracking.pages [options of mlflow ui]` prints that of the runs."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

import mlflow

from drilldown.tracking import store

UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens
# Without it, MLflow shows its pages for traces of language models, where nothing of this project is.
VIEW = "?workflowType=machine_learning"


def experiment_page(experiment_id: str, server: str = UI) -> str:
    """The address of the page with the experiment's runs."""
    return f"{server}/#/experiments/{experiment_id}/runs{VIEW}"


def run_page(experiment_id: str, run_id: str, server: str = UI) -> str:
    """The address of a run's page."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}{VIEW}"


def main(arguments: Sequence[str]) -> None:
    """Print where `mlflow ui`, started with these arguments, shows this project's runs."""
    parser = argparse.ArgumentParser(add_help=False)
    variables = os.environ.get  # those of `mlflow ui`
    parser.add_argument("--backend-store-uri", default=variables("MLFLOW_BACKEND_STORE_URI", mlflow.get_tracking_uri()))
    parser.add_argument("--host", "-h", default=variables("MLFLOW_HOST", "127.0.0.1"))
    parser.add_argument("--port", "-p", default=variables("MLFLOW_PORT", "5000"))
    given, _ = parser.parse_known_args(arguments)
    server = f"http://{given.host}:{given.port}"
    page = f"{server}/#/experiments{VIEW}"
    with store.short_timeouts(), contextlib.suppress(Exception):  # the UI itself says what is wrong with the store
        mlflow.set_tracking_uri(given.backend_store_uri)
        if store.exists() and (experiment := store.current_experiment()):
            page = experiment_page(experiment.experiment_id, server)
    print("the runs:", page)


if __name__ == "__main__":
    store.quiet_mlflow()
    main(sys.argv[1:])
