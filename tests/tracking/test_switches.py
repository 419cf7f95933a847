"""MLflow's own switches: a training works with them, or one line says why not."""

import shutil

import mlflow
import pytest

from drilldown import __main__
from drilldown.tracking import switches
from tests.support.registered import verify_in_process
from tests.test_cli import refused


def test_system_metrics_without_psutil(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setattr(switches.importlib.util, "find_spec", lambda name: None)
    code, line = refused(capsys, "step2", "--dataset", "digits")
    assert (code, line.startswith("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is set: ")) == (2, True)
    assert store.search_runs(["0"]) == []  # MLflow would have left a run open


def test_an_experiment_that_is_deleted(store, monkeypatch, capsys):
    experiment = store.create_experiment("mnist-drilldown")
    store.delete_experiment(experiment)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    code, line = refused(capsys, "step2", "--dataset", "digits")
    assert (code, "Cannot set a deleted experiment 'mnist-drilldown'" in line) == (1, True)


@pytest.mark.slow
@pytest.mark.fault(
    "MLflow's switches",
    "system metrics, asynchronous logging, autologging and a registry apart, at once",
    "one run with every metric of every epoch; the model is registered there",
)
def test_a_training_with_every_switch(store, empty_database, monkeypatch, tmp_path):
    verify_in_process(monkeypatch)
    shutil.copy(empty_database, tmp_path / "registry.db")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path / 'registry.db'}")
    mlflow.pytorch.autolog(silent=True)
    try:
        __main__.main(["step2", "--dataset", "digits", "--epochs", "5", "--target", "0", "--engine", "torch"])
        champion = mlflow.MlflowClient().get_model_version_by_alias("digits-cnn", "champion")
    finally:
        mlflow.pytorch.autolog(disable=True, silent=True)
    (run,) = store.search_runs(["0"])
    assert (run.info.status, champion.run_id) == ("FINISHED", run.info.run_id)
    history = store.get_metric_history(run.info.run_id, "test_accuracy")
    assert sorted(entry.step for entry in history) == [1, 2, 3, 4, 5]
    assert store.search_registered_models() == []  # in the store with the runs
