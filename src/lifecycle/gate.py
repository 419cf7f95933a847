"""The gate: may the model of this history be registered?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlflow
import numpy as np
from mlflow.models import EvaluationResult, MetricThreshold
from mlflow.models.evaluation.validation import ModelValidationFailedException

from src.learning.recipe import Target


@dataclass(frozen=True)
class Verdict:
    """What the gate said, and why."""

    passed: bool
    reasons: tuple[str, ...]  # one a limit that was missed, or the one sentence that says what was met
    metrics: dict[str, float]  # the figures it was decided on


def summarise(accuracies: Sequence[float], target: Target) -> dict[str, float]:
    """The figures of a whole run, from its accuracy (percent) at the end of each epoch.

    `streak_accuracy` is the lowest of the last `target.last` epochs.
    """
    return {
        "final_accuracy": accuracies[-1],
        "best_accuracy": float(np.max(accuracies)),
        "epochs_at_target": sum(accuracy >= target.accuracy for accuracy in accuracies),
        "streak_accuracy": float(np.min(accuracies[-target.last :])),  # unlike min(), NaN if one of them is
    }


def judge(history: Sequence[Mapping[str, float]], parameters: int, target: Target) -> Verdict:
    """Hold a history (a row an epoch, with `test_accuracy` in percent) against its target; nothing is written.

    The comparison is MLflow's own validation of an evaluation result. A history without test accuracies (one that
    was measured on a validation slice) never passes.
    """
    if not history or any("test_accuracy" not in row for row in history):
        return Verdict(False, ("not measured on the test set: such a run serves to choose a recipe",), {})
    accuracies = [row["test_accuracy"] for row in history]
    metrics = {
        **summarise(accuracies, target),
        "epochs": len(history),
        "epochs_in_streak": len(accuracies[-target.last :]),
        "parameters": parameters,
    }
    thresholds = {
        "streak_accuracy": MetricThreshold(target.accuracy, greater_is_better=True),
        "epochs_in_streak": MetricThreshold(target.last, greater_is_better=True),
    }
    if target.max_epochs:
        thresholds["epochs"] = MetricThreshold(target.max_epochs, greater_is_better=False)
    if target.max_parameters:
        thresholds["parameters"] = MetricThreshold(target.max_parameters, greater_is_better=False)
    try:
        mlflow.validate_evaluation_results(thresholds, EvaluationResult(metrics, artifacts={}))
    except ModelValidationFailedException as failure:
        return Verdict(False, tuple(failure.message.splitlines()), metrics)
    met = f"the last {target.last} epochs are all at or above {target.accuracy:.2f} %, the lowest at "
    return Verdict(True, (f"{met}{metrics['streak_accuracy']:.2f} %",), metrics)
