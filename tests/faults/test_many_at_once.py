"""Many trainings that start at once in a folder without a database."""

import contextlib
import shlex
import sys

import mlflow
import pytest

from drilldown.registry.champion import champion_history
from drilldown.tracking.tags import ours
from tests.faults.test_signals import TRAINING, as_parameters
from tests.support.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.long]
MANY = 8
MLFLOW_RUN = shlex.join(["mlflow", "run", ".", "-e", "step4", "--env-manager", "local", *as_parameters(TRAINING)])
STARTED = {
    "python -m drilldown": [sys.executable, "-m", "drilldown", "step4", *TRAINING, "--seed"],
    # What `make` does:
    "make": ["sh", "-c", f'python -m drilldown.tracking.database mlflow.db && {MLFLOW_RUN} -P seed="$0"'],
}


@pytest.mark.fault(
    "eight trainings at once, which all register",
    "started together in a new folder without a database",
    "all finish with all metrics; eight versions, one champion, a consistent champion history",
)
@pytest.mark.parametrize("how", STARTED)
def test_many_trainings_at_once(tmp_path, how):
    project = Project(tmp_path)
    logs = [tmp_path / f"log {seed}" for seed in range(MANY)]
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(file.open("w")) for file in logs]
        processes = [project.start(*STARTED[how], str(seed), stderr=output) for seed, output in enumerate(outputs)]
        codes = [process.wait(timeout=900) for process in processes]
    assert codes == [0] * MANY, [file.read_text() for file, code in zip(logs, codes, strict=True) if code]
    runs, client = project.runs(), project.client()
    assert [run.info.status for run in runs] == ["FINISHED"] * MANY
    assert sorted(run.data.params["run.seed"] for run in runs) == [str(seed) for seed in range(MANY)]
    for run in runs:
        for metric in ("train_loss", "test_accuracy", "epoch_seconds"):
            assert len(client.get_metric_history(run.info.run_id, metric)) == 5
        assert "error" not in ours(run.data.tags)
    versions = client.search_model_versions("name = 'digits-cnn'")
    assert sorted(model.run_id for model in versions) == sorted(run.info.run_id for run in runs)
    assert all(ours(model.tags)["verified"] == "true" for model in versions)
    champion = client.get_model_version_by_alias("digits-cnn", "champion")
    mlflow.set_tracking_uri(project.tracking_uri)
    history = champion_history("digits-cnn")
    assert all(change.made for change in history)
    assert [change.before for change in history] == [None, *(change.after for change in history[:-1])]
    assert history[-1].after == str(champion.version)
