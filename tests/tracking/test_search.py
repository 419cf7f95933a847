"""Runs are found in the experiments that are asked for, and nowhere else."""

import mlflow
import pytest

from drilldown.errors import ParameterError
from drilldown.tracking import search
from drilldown.tracking.store import EXPERIMENT
from drilldown.tracking.tags import packed, prefixed


def test_finished_runs_are_those_on_the_test_images_of_both_editions(store):
    """Version 0.1.0 wrote its tags without a prefix."""

    def add(validation="0", status="FINISHED", **tags):
        run = store.create_run("0", tags={name.replace("_", "."): value for name, value in tags.items()})
        store.log_param(run.info.run_id, "run.validation", validation)
        store.log_param(run.info.run_id, "run.dataset", "mnist")
        store.set_terminated(run.info.run_id, status)
        return run.info.run_id

    old = add(step="step4", dataset_digest="d1")
    new = add(drilldown_step="step4", drilldown_dataset_digest="d1")
    other_data = add(drilldown_step="step4", drilldown_dataset_digest="d2")
    other_step = add(drilldown_step="step3", drilldown_dataset_digest="d1")
    add(validation="5000", drilldown_step="step4", drilldown_dataset_digest="d1")
    add(status="FAILED", drilldown_step="step4", drilldown_dataset_digest="d1")

    def found(**wanted):
        return {run.info.run_id for run in search.finished_runs(["0"], **wanted)}

    assert found() == {old, new, other_data, other_step}
    assert found(step="step4", digest="d1", dataset="mnist") == {old, new}
    assert found(step="step4") == {old, new, other_data}
    assert found(dataset="digits") == set()


def test_only_the_experiments_asked_for_are_searched(store):
    other = store.create_experiment("other")
    found = {}
    for experiment in ("0", other):
        run = store.create_run(experiment)
        store.log_param(run.info.run_id, "run.validation", "0")
        store.set_terminated(run.info.run_id)
        found[experiment] = run.info.run_id

    def finished(experiments):
        return [run.info.run_id for run in search.finished_runs(experiments)]

    assert finished(["0"]) == [found["0"]]
    assert finished(search.experiments("other")) == [found[other]]
    assert set(finished(search.experiments("all"))) == set(found.values())
    assert finished([]) == []
    assert search.has_runs([other])
    assert not search.has_runs([store.create_experiment("empty")])


def test_the_experiment_that_a_command_runs_in(store, monkeypatch):
    """As MLflow selects it: the run that `mlflow run` opened, then the variables, then this project's."""
    mine = store.create_experiment("mine")
    assert search.experiments() == {"0": "Default"}  # MLFLOW_EXPERIMENT_ID of the fixture
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert search.experiments() == {mine: "mine"}
    monkeypatch.setenv("MLFLOW_RUN_ID", store.create_run("0").info.run_id)
    assert search.experiments() == {"0": "Default"}
    with mlflow.start_run():  # takes that run over, and removes the variable
        assert search.experiments() == {"0": "Default"}
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable)
    assert search.experiments() == {}  # and it is not created
    ours = store.create_experiment(EXPERIMENT)
    assert search.experiments() == {ours: EXPERIMENT}


def test_a_missing_experiment(store):
    store.create_experiment("mine")
    message = "experiment is 'yours': it takes all, or an experiment of this store: 'Default', 'mine'"
    with pytest.raises(ParameterError, match=message):
        search.experiments("yours")


FINGERPRINT = {"code.digest": "c0de", "dataset.digest": "da7a", "versions.torch": "2"}


@pytest.mark.parametrize("tags", [FINGERPRINT, packed("fingerprint", FINGERPRINT)], ids=["a tag each", "one tag"])
def test_a_reusable_run_has_the_same_fingerprint_whichever_way_it_was_written(store, tags):
    with mlflow.start_run(tags=prefixed({"step": "step2", **tags})) as run:
        mlflow.log_param("run.seed", 3)

    def found(seed=3, step="step2", experiment="0", **other):
        return search.find_reusable([experiment], step, seed, FINGERPRINT | other)

    assert found().info.run_id == run.info.run_id
    assert found(seed=4) is None
    assert found(step="step3") is None
    assert found(**{"code.digest": "another"}) is None
    assert found(experiment=store.create_experiment("other")) is None
    store.set_terminated(run.info.run_id, "FAILED")
    assert found() is None


def test_unfinished_runs_are_all_but_the_one_of_this_command(store, monkeypatch):
    ends = {store.create_run("0").info.run_id: end for end in (None, "KILLED", "FAILED", "FINISHED")}
    for run_id, end in ends.items():
        if end:
            store.set_terminated(run_id, end)
    of_this_command = store.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", of_this_command)
    unfinished = {run.info.run_id for run in search.unfinished_runs(["0"])}
    assert unfinished == {run_id for run_id, end in ends.items() if end != "FINISHED"}
