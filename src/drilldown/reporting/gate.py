"""The gate: decides whether the model of a run may be registered."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from drilldown.learning.recipe import Goal
from drilldown.reporting.statistics import summarize


@dataclass(frozen=True)
class Verdict:
    """The gate's decision, with its reasons."""

    passed: bool
    reasons: tuple[str, ...]  # one for each missed limit; if passed, one sentence
    metrics: dict[str, float]  # the numbers that were compared with the limits


def judge(accuracies: Sequence[float], split: str, num_parameters: int, goal: Goal) -> Verdict:
    """Compare a run's accuracies (percent, one per epoch, measured on `split`) and its model's size with the goal.

    A run that was not measured on the test set, or has no epoch, never passes. MLflow's validation of evaluation
    results does the comparison; nothing is logged.
    """
    if split != "test" or not accuracies:
        return Verdict(False, ("not measured on the test set: such a run serves to choose a recipe",), {})

    import mlflow
    from mlflow.models import EvaluationResult, MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    summary = summarize(accuracies, goal)
    metrics: dict[str, float] = {
        **asdict(summary),
        "epochs": len(accuracies),
        "epochs_judged": len(accuracies[-goal.last :]),
        "parameters": num_parameters,
    }
    limits = {  # limit, and whether greater values are better
        "min_accuracy_last_k": (goal.accuracy, True),
        "epochs_judged": (goal.last, True),
        "epochs": (goal.max_epochs, False),
        "parameters": (goal.max_parameters, False),
    }
    thresholds = {
        name: MetricThreshold(limit, greater_is_better=greater)
        for name, (limit, greater) in limits.items()
        if limit is not None
    }
    result = EvaluationResult(metrics, artifacts={})
    try:
        mlflow.validate_evaluation_results(thresholds, result)
    except ModelValidationFailedException as failure:
        return Verdict(False, tuple(failure.message.splitlines()), metrics)
    reason = (
        f"the last {goal.last} epochs are all at or above {goal.accuracy:.2f} %, "
        f"the lowest at {summary.min_accuracy_last_k:.2f} %"
    )
    return Verdict(True, (reason,), metrics)
