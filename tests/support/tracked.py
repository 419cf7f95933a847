"""Runs in a test's own store."""

import pytest
from mlflow.models.model import ModelInfo

from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import Evaluation, evaluate
from drilldown.learning.recipe import Goal
from drilldown.learning.train import TrainState
from drilldown.options import TrainOptions
from drilldown.reporting import gate
from drilldown.tracking import runs
from tests.support.networks import SMALL_RECIPE

GOAL = Goal(accuracy=90.0)


def track(
    trained: TrainState, dataset: Dataset, seed: int = 7, *, figures: bool = False
) -> tuple[str, gate.Verdict, ModelInfo, Evaluation]:
    """Log the small network's training as a run, by default without its figures, which take a second.

    Returns: the run's id, its verdict, its model and its evaluation.
    """
    evaluation = evaluate(trained.eval_model, dataset.test_images, dataset.test_labels)
    accuracies = [row.eval_accuracy for row in trained.history]
    verdict = gate.judge(accuracies, dataset.split, trained.classifier.num_parameters, GOAL)
    fingerprint = {"dataset.digest": dataset.digest, "code.digest": "c0de"}
    with (
        pytest.MonkeyPatch.context() as patch,
        runs.run(f"small seed {seed}", {"kind": "train", "step": "small"}) as run_id,
    ):
        if not figures:
            patch.setattr(runs, "_log_figures", lambda *args: None)
        runs.log_start(fingerprint, trained, SMALL_RECIPE, GOAL, dataset, TrainOptions(seed=seed), "torch")
        for row in trained.history:
            runs.log_epoch(row, dataset.split)
        model = runs.log_end(trained, evaluation, verdict, GOAL, dataset, "# a report", f"small-seed{seed}")
    return run_id, verdict, model, evaluation
