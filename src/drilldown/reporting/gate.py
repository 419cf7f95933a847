"""The gate: decides whether the model of a run may be registered."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from drilldown.learning.recipe import Goal
from drilldown.reporting.statistics import summarize


@dataclass(frozen=True)
class Verdict:
    """The gate's decision, with its reasons."""

    passed: bool
    reasons: tuple[str, ...]  # one for each missed limit; if passed, one sentence
    metrics: dict[str, float]  # the numbers that were compared with the limits


def can_pass(accuracies: Sequence[float], split: str, goal: Goal) -> bool:
    """Tell whether a run can pass whose last epoch is still to come: the epochs judged with it reach the accuracy."""
    before = goal.last - 1
    judged = accuracies[max(0, len(accuracies) - before) :]
    return split == "test" and len(judged) == before and all(accuracy >= goal.accuracy for accuracy in judged)


def judge(accuracies: Sequence[float], split: str, num_parameters: int, goal: Goal) -> Verdict:
    """Compare a run's accuracies (percent, one per epoch, measured on `split`) and its model's size with the goal.

    A run that was not measured on the test set, or has no epoch, never passes. MLflow's validation of evaluation
    results compares each figure with its limit; nothing is logged.
    """
    if split != "test" or not accuracies:
        return Verdict(False, ("not measured on the test set: such a run serves to choose a recipe",), {})

    import mlflow
    from mlflow.models import EvaluationResult, MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    summary, judged, epochs = summarize(accuracies, goal), accuracies[-goal.last :], len(accuracies)
    lowest = summary.min_accuracy_last_k
    metrics: dict[str, float] = {
        **asdict(summary),
        "epochs": epochs,
        "epochs_judged": len(judged),
        "parameters": num_parameters,
    }
    length = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    lowest_epoch = epochs - len(judged) + 1 + int(np.argmin(judged))  # np.argmin finds a NaN, too
    limits = {  # limit, whether greater values are better, what was found and what is needed in words
        "min_accuracy_last_k": (
            goal.accuracy,
            True,
            f"{_percent_below(lowest, goal.accuracy)} in epoch {lowest_epoch}",
            f"{{:g}} % are needed in each of the last {goal.last}",
        ),
        "epochs_judged": (goal.last, True, length, "at least {} are needed"),
        "epochs": (goal.max_epochs, False, length, "at most {} are allowed"),
        "parameters": (goal.max_parameters, False, f"{num_parameters:,} parameters", "at most {:,} are allowed"),
    }
    result, reasons = EvaluationResult(metrics, artifacts={}), []
    for name, (limit, greater, found, needed) in limits.items():
        if limit is None:
            continue
        try:
            mlflow.validate_evaluation_results({name: MetricThreshold(limit, greater_is_better=greater)}, result)
        except ModelValidationFailedException:
            reasons.append(f"{found}: {needed.format(limit)}")
    if reasons:
        return Verdict(False, tuple(reasons), metrics)
    reason = f"the last {goal.last} epochs are all at or above {goal.accuracy:.2f} %, the lowest at {lowest:.2f} %"
    return Verdict(True, (reason,), metrics)


def _percent_below(accuracy: float, limit: float) -> str:
    """An accuracy below the limit, with as many decimals, at least two, as it takes to see that it is below."""
    decimals = next((count for count in range(2, 10) if round(accuracy, count) < limit), 2)
    return f"{accuracy:.{decimals}f} %"
