"""Many runs that start together, where nothing is yet."""

import contextlib
import shlex
import sys

import mlflow
import pytest
from conftest import Project
from test_signals import TRAINING, as_parameters

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
def test_many_at_once(tmp_path, how):
    project = Project(tmp_path)
    said = [tmp_path / f"said {seed}" for seed in range(MANY)]
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(file.open("w")) for file in said]
        processes = [project.start(*STARTED[how], str(seed), stderr=output) for seed, output in enumerate(outputs)]
        codes = [process.wait(timeout=900) for process in processes]
    assert codes == [0] * MANY, [file.read_text() for file, code in zip(said, codes, strict=True) if code]
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
    mlflow.set_tracking_uri(project.tracking_uri)
    trail = registry.trail("digits-cnn")
    assert all(change.made for change in trail)
    assert [change.before for change in trail] == [None, *(change.after for change in trail[:-1])]
    assert trail[-1].after == str(champion.version)
