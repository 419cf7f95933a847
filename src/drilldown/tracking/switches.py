"""MLflow's own switches: what this project cannot work with is set aside, or refused in one line."""

import importlib.util

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_ASYNC_LOGGING, MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

from drilldown.errors import ParameterError


def settle() -> None:
    """Settle the switches that the environment or the program that imports this one has set.

    Raises: ParameterError when one of them cannot be obeyed.
    """
    if MLFLOW_ENABLE_ASYNC_LOGGING.get():
        mlflow.config.enable_async_logging(False)  # what a command logs, it reads again: to resume, judge and compare
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() and importlib.util.find_spec("psutil") is None:
        raise ParameterError(
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is set: MLflow measures the system by the package psutil, which is "
            "not installed; install it, or unset the variable"
        )
