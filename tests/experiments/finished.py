"""Finished runs in the test's store."""

from dataclasses import asdict

import mlflow

from drilldown.experiments.records import RENAMED
from drilldown.learning.recipe import Recipe
from drilldown.tracking.tags import packed, prefixed

TABLE = """----------------------------------------------------------------
        Layer (type)               Output Shape         Param #
================================================================
            Conv2d-1            [-1, 4, 26, 26]              36
       BatchNorm2d-2            [-1, 4, 26, 26]               8
            Conv2d-3            [-1, 8, 24, 24]             288
================================================================
"""
FORMER_NAMES = {new: old for old, new in RENAMED.items()}


def finished_run(
    step,
    seed,
    accuracies,
    *,
    dataset="mnist",
    validation=0,
    gate="failed",
    status="FINISHED",
    layers=TABLE,
    code="a",
    commit="c0ffee",
    engine="numba",
    version_0_1=False,
    **recipe,
):
    """Log a run as a training does, or as version 0.1 did; returns its id."""
    tags = {"step": step, "machine": "2 × CPU", "gate": gate}
    fingerprint = {
        "dataset.digest": f"of {dataset}",
        "code.digest": code,
        "recipe.digest": f"of seed {seed}",
        "versions.torch": "2",
    }
    fields = asdict(Recipe(**{"epochs": len(accuracies)} | recipe))
    params = {"run.seed": seed, "run.dataset": dataset, "run.validation": validation, "run.device": "cpu"}
    params |= {"run.threads": 2, "target.accuracy": 99.4, "target.last": 5}
    if version_0_1:
        fields = {FORMER_NAMES.get(name, name): value for name, value in fields.items()}
        tags |= fingerprint
    else:
        tags = prefixed(tags | packed("fingerprint", fingerprint))
        params["run.engine"] = engine
    with mlflow.start_run() as run:
        mlflow.set_tags(tags | {"mlflow.source.git.commit": commit})
        mlflow.log_params({f"recipe.{name}": value for name, value in fields.items()} | params)
        mlflow.log_metric("parameters", 1000 * int(step[-1]))
        mlflow.log_text(layers, "model_summary.txt")
        for epoch, accuracy in enumerate(accuracies, start=1):
            values = {"train_accuracy": accuracy - 1, "test_accuracy": accuracy, "epoch_seconds": 2.0 * epoch}
            mlflow.log_metrics(values, step=epoch)
    if status != "FINISHED":
        mlflow.MlflowClient().set_terminated(run.info.run_id, status)
    return run.info.run_id
