"""Register the model of a run that has finished."""

import ast
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from drilldown.errors import ParameterError, RegistryError, VerificationError
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import percent
from drilldown.learning.recipe import Goal
from drilldown.registry import registry
from drilldown.registry.verify import Verifier
from drilldown.reporting import gate
from drilldown.tracking import store
from drilldown.tracking.tags import ours

ROUNDING = 0.05  # percent that the same model on a CPU and on a GPU may differ by


def find_run(run_id: str) -> Run:
    """The finished training with this id that was measured on the test images.

    Raises: ParameterError when it is none.
    """
    refusal = f"run is {run_id!r}: it takes the id of a finished training that passed the gate, and "
    run = store.find_run(run_id, refusal)
    tags = ours(run.data.tags)
    if "step" not in tags:
        raise ParameterError(f"{refusal}that is no training")
    if run.info.status != "FINISHED":
        raise ParameterError(f"{refusal}that run is {run.info.status}")
    if tags.get("gate") != "passed":
        raise ParameterError(f"{refusal}that run did not: {tags.get('gate.reason', 'it was not judged')}")
    return run


def register_run(
    run_id: str, dataset: Dataset, tags: Mapping[str, str] | None = None, verifier: Verifier | None = None
) -> registry.Registration:
    """Register the model of a finished run, with all the checks of a run that registers its model itself.

    The gate judges the run's accuracies again, and a fresh process computes the model's accuracy on the test images.

    Args:
        run_id: of the run.
        dataset: the data that the run was trained on.
        tags: for the version, besides those that every version has; by their names without our prefix.

    Raises: ParameterError when there is no such run; RegistryError when it has no model, was trained on other data, or
    did not pass the gate; VerificationError when the model does not have the accuracy that was logged.
    """
    run = find_run(run_id)
    known = ours(run.data.tags)
    if (digest := known.get("dataset.digest")) != dataset.digest:
        raise RegistryError(
            f"run {run_id} was trained on other data than this: its dataset digest is {digest}, that of {dataset.name} "
            f"is {dataset.digest}"
        )
    history = sorted(MlflowClient().get_metric_history(run_id, "test_accuracy"), key=lambda entry: entry.step)
    accuracies = [entry.value for entry in history]
    verdict = gate.judge(accuracies, dataset.split, int(run.data.metrics["parameters"]), _goal(run))
    if not verdict.passed:
        raise RegistryError(f"run {run_id} did not pass the gate: {'; '.join(verdict.reasons)}")
    model = _model(run)
    with registry.started(verifier) as verifier:
        accuracy = _measure(model, dataset, verifier)
        allowed = ROUNDING if run.data.params["run.device"] == "cuda" else 0
        if abs(accuracy - accuracies[-1]) > allowed:
            raise VerificationError(
                f"the model of run {run_id} has {accuracy:.2f} % when reloaded, and had {accuracies[-1]:.2f} % when "
                "logged"
            )
        return registry.register(model, run_id, known["step"], verdict, accuracy, dataset, verifier, tags or {})


def _goal(run: Run) -> Goal:
    """What the run was judged by; MLflow stores the text of each field."""
    given = {field.name: run.data.params.get(f"target.{field.name}", "None") for field in fields(Goal)}
    return Goal(**{name: ast.literal_eval(text) for name, text in given.items()})


def _model(run: Run) -> LoggedModel:
    """The run's newest model; a run that was resumed after its end has logged two."""
    models = mlflow.search_logged_models(
        experiment_ids=[run.info.experiment_id],
        filter_string=f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        max_results=1,
        output_format="list",
    )
    if not models:
        raise RegistryError(f"run {run.info.run_id} has no model: it was deleted")
    newest: LoggedModel = models[0]
    return newest


def _measure(model: LoggedModel, dataset: Dataset, verifier: Verifier) -> float:
    """The accuracy (percent) of the model on the test images, in a fresh process."""
    labels = dataset.test_labels.numpy()
    with TemporaryDirectory() as folder:
        copy = Path(mlflow.artifacts.download_artifacts(model.model_uri, dst_path=folder))
        (answers,) = verifier.predict([copy], dataset.test_images.numpy())
    return percent((answers == labels).sum(), len(labels))
