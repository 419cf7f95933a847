"""Many runs that start together, where nothing is yet."""

import shlex
import sys

import pytest
from conftest import Project
from test_signals import TRAINING, as_parameters, start

from src.lifecycle import registry

pytestmark = [pytest.mark.slow, pytest.mark.long]
MANY = 8
MLFLOW_RUN = shlex.join(["mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING)])
STARTED = {
    "python -m src.run": [sys.executable, "-m", "src.run", "step4", *TRAINING, "--seed"],
    "make": ["sh", "-c", f'python -m src.lifecycle.database mlflow.db && {MLFLOW_RUN} -P seed="$0"'],  # what it does
}


@pytest.mark.fault(
    "eight runs at once, all of which register",
    "they start together in a fresh folder that has no database",
    "all finish with all their metrics; eight versions, one champion, and a trail that leads to it",
)
@pytest.mark.parametrize("how", STARTED)
def test_many_at_once(tmp_path, monkeypatch, how):
    project = Project(tmp_path)
    processes = [start(project, *STARTED[how], str(seed)) for seed in range(MANY)]
    assert [process.wait(timeout=900) for process in processes] == [0] * MANY
    runs, client = project.runs(), project.client()
    assert [run.info.status for run in runs] == ["FINISHED"] * MANY
    assert sorted(run.data.params["run.seed"] for run in runs) == [str(seed) for seed in range(MANY)]
    for run in runs:
        for metric in ("train_loss", "test_accuracy", "epoch_seconds"):
            assert len(client.get_metric_history(run.info.run_id, metric)) == 5
        assert "error" not in run.data.tags
    versions = client.search_model_versions("name = 'digits-cnn'")
    assert sorted(model.run_id for model in versions) == sorted(run.info.run_id for run in runs)
    assert all(model.tags["verified"] == "true" for model in versions)
    champion = client.get_model_version_by_alias("digits-cnn", "champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    trail = registry.trail("digits-cnn")
    assert all(change.made for change in trail)
    assert [change.before for change in trail] == [None, *(change.after for change in trail[:-1])]
    assert trail[-1].after == str(champion.version)
