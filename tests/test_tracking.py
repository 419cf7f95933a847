"""What is written to the store is what happened."""

import contextlib
import io
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_RECIPE, at_once, watch_turns

from src import process
from src.learning.evaluate import evaluate
from src.learning.recipe import Target
from src.lifecycle import gate, tracking
from src.lifecycle.store import note_error

TARGET = Target(accuracy=90.0)


def track(trained, dataset, seed=7):
    """Write the small network's training as a run; returns the run's id, its verdict and its model."""
    evaluation = evaluate(trained.result, dataset.test_images, dataset.test_labels)
    verdict = gate.judge(trained.history, trained.classifier.parameters_count, TARGET)
    with tracking.run("small seed 7", {"step": "small"}) as run_id:
        cpu = torch.device("cpu")
        same = {"dataset.digest": dataset.digest, "code.digest": "c0de"}
        tracking.log_start(same, trained.classifier, SMALL_RECIPE, TARGET, dataset, seed, cpu)
        for row in trained.history:
            tracking.log_epoch(row)
        model = tracking.log_end(
            classifier=trained.result, history=trained.history, evaluation=evaluation, verdict=verdict, target=TARGET,
            dataset=dataset, report="# a report",
        )  # fmt: skip
    return run_id, verdict, model, evaluation


@pytest.fixture
def tracked(store, trained, digits):
    return track(trained, digits)


def test_runs_that_bring_the_same_dataset_at_once_take_turns(store, digits, monkeypatch):
    def begin():
        with mlflow.start_run():
            tracking.log_dataset(digits)

    together, met = watch_turns(monkeypatch, mlflow, "log_input")
    at_once(begin, begin)
    assert together.broken
    assert not met.is_set()
    assert [len(run.inputs.dataset_inputs) for run in store.search_runs(["0"])] == [2, 2]


@pytest.mark.slow
def test_a_whole_run(store, trained, digits, tracked):
    run_id, verdict, model, evaluation = tracked
    run = store.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("small seed 7", "FINISHED")

    params = run.data.params
    assert params["recipe.lr"] == "0.1"
    assert params["recipe.schedule"] == "one-cycle"
    assert params["target.accuracy"] == "90.0"
    assert (params["run.seed"], params["run.dataset"], params["run.validation"]) == ("7", "digits", "0")

    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "epoch_seconds"):
        logged = {entry.step: entry.value for entry in store.get_metric_history(run_id, name)}
        assert logged == {row["epoch"]: row[name] for row in trained.history}
    metrics = run.data.metrics
    accuracies = [row["test_accuracy"] for row in trained.history]
    assert metrics["final_test_accuracy"] == accuracies[-1] == evaluation.accuracy
    assert metrics["best_test_accuracy"] == max(accuracies)
    assert metrics["streak_accuracy"] == min(accuracies)
    assert metrics["epochs_at_target"] == sum(accuracy >= 90 for accuracy in accuracies)
    assert metrics["parameters"] == trained.classifier.parameters_count

    tags = run.data.tags
    assert (tags["step"], tags["dataset.digest"]) == ("small", digits.digest)
    assert tags["gate"] == ("passed" if verdict.passed else "failed")
    assert tags["gate.reason"] == "; ".join(verdict.reasons)
    assert tags["code.digest"] == "c0de"

    names = {file.path for file in store.list_artifacts(run_id)}
    assert {"model_summary.txt", "history.csv", "curves.png", "confusion_matrix.png", "mistakes.png", "report.md",
            "gate.json"} <= names  # fmt: skip
    table = pd.read_csv(io.StringIO(mlflow.artifacts.load_text(f"runs:/{run_id}/history.csv")))
    assert table["test_accuracy"].tolist() == pytest.approx(accuracies)
    kept = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/gate.json"))
    assert kept["passed"] is verdict.passed
    assert kept["target"]["accuracy"] == 90.0
    assert "Total params" in mlflow.artifacts.load_text(f"runs:/{run_id}/model_summary.txt")

    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert {context: entry.name for context, entry in inputs.items()} == {
        "training": "digits training",
        "test": "digits test",
    }
    assert {entry.digest for entry in inputs.values()} == {digits.digest}

    found = mlflow.search_logged_models(
        filter_string=f"metrics.streak_accuracy >= {min(accuracies)}", output_format="list"
    )
    assert [entry.model_id for entry in found] == [model.model_id]
    too_much = f"metrics.streak_accuracy >= {min(accuracies) + 0.01}"
    assert mlflow.search_logged_models(filter_string=too_much, output_format="list") == []

    loaded = mlflow.pyfunc.load_model(model.model_uri)
    for count in (0, 1, 2, 33):
        images = digits.test_images[:count]
        probabilities = loaded.predict(images.numpy())
        assert probabilities.shape == (count, 10)
        np.testing.assert_allclose(probabilities, evaluation.probabilities[:count], atol=1e-5)
    for wrong in (np.zeros((28, 28), np.uint8), np.zeros((1, 27, 28), np.uint8), np.zeros((1, 28, 28), np.float32)):
        with pytest.raises(mlflow.MlflowException, match="Failed to enforce schema"):
            loaded.predict(wrong)
    assert loaded.metadata.signature == tracking.SIGNATURE


def test_a_figure_of_the_validation_slice_never_goes_by_a_test_figures_name(store, trained, digits, monkeypatch):
    held = digits.hold_out(100)
    history = [{key.replace("test_", "validation_"): value for key, value in row.items()} for row in trained.history]
    logged = {}
    monkeypatch.setattr(tracking.mlflow, "log_metrics", lambda metrics, **_: logged.update(metrics))
    monkeypatch.setattr(tracking, "log_model", lambda *_: type("Info", (), {"model_id": "m-0"}))
    evaluation = evaluate(trained.result, held.test_images, held.test_labels)
    with tracking.run("x", {}):
        tracking.log_end(
            classifier=trained.result, history=history, evaluation=evaluation,
            verdict=gate.judge(history, 1, TARGET), target=TARGET, dataset=held, report="",
        )  # fmt: skip
    assert set(logged) == {
        "final_validation_accuracy", "best_validation_accuracy", "validation_epochs_at_target",
        "validation_streak_accuracy", "parameters",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("no\ngood"), "FAILED", "no good"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (process.Stopped(15, "stopped by SIGTERM"), "KILLED", "stopped by SIGTERM"),
        (None, "FINISHED", None),
    ],
)
def test_a_run_ends_as_it_truly_did(store, error, status, said):
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, tracking.run("doomed", {}) as run_id:
        if error:
            raise error
    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags.get("error")) == (status, said)


def test_the_run_that_mlflow_run_opened_is_taken_over(store, monkeypatch):
    opened = store.create_run("0", run_name="random-name")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    note_error("what was wrong")
    assert store.get_run(opened.info.run_id).data.tags["error"] == "what was wrong"
    with tracking.run("step4 seed 0", {"step": "step4"}) as run_id:
        assert run_id == opened.info.run_id
    run = store.get_run(run_id)
    assert run.info.run_name == "step4 seed 0"
    assert "error" not in run.data.tags  # it went on, and well


def test_a_models_requirements_are_the_pinned_ones():
    requirements = tracking.model_requirements()
    pinned = tracking.REQUIREMENTS.read_text().split()
    assert [line.partition("==")[0] for line in requirements] == sorted(tracking.MODEL_PACKAGES)
    assert all(line in pinned for line in requirements)
