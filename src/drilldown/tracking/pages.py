"""Addresses of MLflow's pages; `python -m drilldown.tracking.pages [options of mlflow ui]` prints that of the runs."""

import argparse
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
    parser.add_argument("--backend-store-uri", default=mlflow.get_tracking_uri())
    parser.add_argument("--host", "-h", default="127.0.0.1")
    parser.add_argument("--port", "-p", default="5000")
    given, _ = parser.parse_known_args(arguments)
    mlflow.set_tracking_uri(given.backend_store_uri)
    experiment = store.current_experiment() if store.exists() else None
    server = f"http://{given.host}:{given.port}"
    print(
        "the runs:",
        experiment_page(experiment.experiment_id, server) if experiment else f"{server}/#/experiments{VIEW}",
    )


if __name__ == "__main__":
    store.quiet_mlflow()
    main(sys.argv[1:])
