"""The store holds what happened."""

import contextlib
import io
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.store.tracking.dbmodels.models import SqlDataset

from drilldown import process
from drilldown.learning.calibration import Calibration
from drilldown.learning.evaluate import evaluate
from drilldown.reporting import gate
from drilldown.tracking import export, runs
from drilldown.tracking.store import note_error
from drilldown.tracking.tags import ours
from tests.support.concurrency import at_once, meeting_before_a_row
from tests.support.tracked import GOAL, track


@pytest.fixture
def tracked(store, trained, digits):
    return track(trained, digits, figures=True)


def test_two_runs_log_the_same_new_dataset_at_once(store, digits):
    def begin():
        with mlflow.start_run():
            runs.log_dataset(digits)

    with meeting_before_a_row(SqlDataset) as met:
        at_once(begin, begin)
    assert met.is_set()
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
    assert params["run.engine"] == "torch"

    rows = [row.named("test") for row in trained.history]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "epoch_seconds"):
        logged = {entry.step: entry.value for entry in store.get_metric_history(run_id, name)}
        assert logged == {row["epoch"]: row[name] for row in rows}
    metrics = run.data.metrics
    accuracies = [row.eval_accuracy for row in trained.history]
    assert metrics["final_test_accuracy"] == accuracies[-1] == evaluation.accuracy
    assert metrics["best_test_accuracy"] == max(accuracies)
    assert metrics["min_accuracy_last_k"] == min(accuracies)
    assert metrics["epochs_at_target"] == sum(accuracy >= 90 for accuracy in accuracies)
    assert metrics["parameters"] == trained.classifier.num_parameters

    assert {name for name in run.data.tags if not name.startswith(("mlflow.", "drilldown."))} == set()
    tags = ours(run.data.tags)
    assert (tags["step"], tags["dataset.digest"]) == ("small", digits.digest)
    assert tags["gate"] == ("passed" if verdict.passed else "failed")
    assert tags["gate.reason"] == "; ".join(verdict.reasons)
    assert tags["code.digest"] == "c0de"
    assert {name for name in run.data.tags if name.startswith("drilldown.")} == {
        f"drilldown.{name}"
        for name in ("kind", "step", "gate", "gate.reason", "fingerprint", "machine", "process", "dataset.location")
    }  # no more than people read, but for the last ones

    names = {file.path for file in store.list_artifacts(run_id)}
    assert {"model_summary.txt", "history.csv", "curves.png", "confusion_matrix.png", "mistakes.png", "calibration.png",
            "report.md", "gate.json"} <= names  # fmt: skip
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
        filter_string=f"metrics.min_accuracy_last_k >= {min(accuracies)}", output_format="list"
    )
    assert [(entry.model_id, entry.name) for entry in found] == [(model.model_id, "small-seed7")]
    metrics = {metric.key: (metric.value, metric.dataset_name) for metric in found[0].metrics}
    assert len(metrics) == len(found[0].metrics) == 6
    assert 0 <= metrics["test_calibration_error"][0] < 0.2
    assert metrics["parameters"] == (trained.classifier.num_parameters, None)
    assert metrics["min_accuracy_last_k"] == (min(accuracies), "digits test")
    too_much = f"metrics.min_accuracy_last_k >= {min(accuracies) + 0.01}"
    assert mlflow.search_logged_models(filter_string=too_much, output_format="list") == []

    loaded = mlflow.pyfunc.load_model(model.model_uri)
    for count in (0, 1, 2, 33):
        images = digits.test_images[:count]
        probabilities = loaded.predict(images.numpy())
        assert probabilities.shape == (count, 10)
        np.testing.assert_allclose(probabilities, evaluation.probabilities[:count], atol=1e-5)
    for wrong in (np.zeros((28, 28), np.uint8), np.zeros((1, 27, 28), np.uint8), np.full((1, 28, 28), 0.5)):
        with pytest.raises(mlflow.MlflowException, match="the model takes uint8 pixel values from 0 to 255"):
            loaded.predict(wrong)
    assert loaded.metadata.signature == export.SIGNATURE
    kept = loaded.metadata.metadata
    assert kept["input"] == export.INPUT
    assert kept["predictions.digest"] == export.predictions_digest(evaluation.predictions.numpy())
    assert Calibration.from_metadata(kept["calibration"]).threshold > 0
    assert set(kept) == {"input", "predictions.digest", "calibration"}


@pytest.mark.slow
def test_every_figure_says_what_it_shows_and_of_which_run(store, trained, digits, monkeypatch):
    logged = {}
    monkeypatch.setattr(runs.mlflow, "log_figure", lambda figure, name: logged.update({name: figure.texts}))
    monkeypatch.setattr(export, "log_model", lambda *_: type("Info", (), {"model_id": None}))
    monkeypatch.setattr(runs, "MAX_MISTAKES", 3)
    run_id, _, _, evaluation = track(trained, digits, figures=True)
    count = len(evaluation.mistakes())
    assert count > 3
    assert {name: texts[0].get_text() for name, texts in logged.items()} == {
        "curves.png": "small seed 7: accuracy and loss",
        "confusion_matrix.png": "small seed 7: confusion matrix",
        "mistakes.png": f"small seed 7: 3 of {count} mistakes, most confident first",
        "calibration.png": "small seed 7: calibration",
    }
    details = f"{evaluation.accuracy:.2f} % of 360 digits test images, run {run_id[:8]}"
    assert {texts[1].get_text() for texts in logged.values()} == {details}


@pytest.mark.slow
def test_a_figure_of_the_validation_slice_never_has_a_test_figures_name(store, trained, digits, monkeypatch):
    held = digits.hold_out(100)
    logged = {}
    monkeypatch.setattr(runs.mlflow, "log_metrics", lambda metrics, **_: logged.update(metrics))
    monkeypatch.setattr(export, "log_model", lambda *_: type("Info", (), {"model_id": "m-0"}))
    evaluation = evaluate(trained.eval_model, held.test_images, held.test_labels)
    verdict = gate.judge([row.eval_accuracy for row in trained.history], held.split, 1, GOAL)
    with runs.run("x", {}):
        runs.log_end(trained, evaluation, verdict, GOAL, held, "", "small-seed7")
    assert set(logged) == {
        "final_validation_accuracy", "best_validation_accuracy", "validation_epochs_at_target",
        "validation_min_accuracy_last_k", "validation_calibration_error",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("no\ngood"), "FAILED", "no good"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (process.Stopped(15, "stopped by SIGTERM"), "KILLED", "stopped by SIGTERM"),
        (None, "FINISHED", None),
    ],
)
def test_a_run_has_the_status_of_how_it_ended(store, error, status, message):
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, runs.run("doomed", {}) as run_id:
        if error:
            raise error
    run = store.get_run(run_id)
    assert (run.info.status, ours(run.data.tags).get("error")) == (status, message)


def test_the_run_that_mlflow_run_opened_is_taken_over(store, monkeypatch):
    opened = store.create_run("0", run_name="random-name")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    note_error("what was wrong")
    assert ours(store.get_run(opened.info.run_id).data.tags)["error"] == "what was wrong"
    with runs.run("step4 seed 0", {"step": "step4"}) as run_id:
        assert run_id == opened.info.run_id
    run = store.get_run(run_id)
    assert run.info.run_name == "step4 seed 0"
    assert "error" not in ours(run.data.tags)  # it went on, and well
