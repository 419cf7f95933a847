"""Several seeds that are trained at the same time fill a run each; a stand-in trains them here, as there is no GPU."""

import pytest
import torch

from drilldown import training
from drilldown.errors import DataError, DivergedError
from drilldown.learning import side_by_side, train
from drilldown.learning.side_by_side import Trained
from drilldown.options import TrainOptions
from drilldown.tracking import runs
from drilldown.tracking.tags import ours
from drilldown.training import Task
from tests.support.own_data import mirrored, write_npz

pytestmark = pytest.mark.slow


def fit_one_after_the_other(make_network, recipe, dataset, seeds):
    """Stands in for `fit_side_by_side`, on the CPU; the last seed ends first, and seed 1 diverges."""
    for seed in reversed(seeds):
        device = train.prepare(seed, "cpu")
        state = train.init_state(make_network(), recipe, dataset, seed, device)
        for _ in train.fit(state, recipe, dataset, "torch"):
            pass
        yield Trained(seed, state, DivergedError("training diverged") if seed == 1 else None)


def test_seeds_that_are_trained_together_fill_a_run_each(store, digits, monkeypatch):
    monkeypatch.setattr(side_by_side, "fit_side_by_side", fit_one_after_the_other)
    parent = store.create_run("0").info.run_id
    options = {seed: TrainOptions(seed=seed, dataset="digits", epochs=2, threads=1) for seed in (0, 1, 2)}
    tasks = [
        Task("step4", options[seed], runs.open_nested(parent, training.run_name("step4", seed), digits))
        for seed in options
    ]
    ended = []
    threads = torch.get_num_threads()
    training.train_together(tasks, digits, lambda task, error: ended.append((task.options.seed, str(error))))
    torch.set_num_threads(threads)
    assert ended == [(2, "None"), (1, "training diverged"), (0, "None")]
    found = {task.options.seed: store.get_run(task.run_id) for task in tasks}
    assert {seed: run.info.status for seed, run in found.items()} == {0: "FINISHED", 1: "FAILED", 2: "FINISHED"}
    assert ours(found[1].data.tags)["error"] == "training diverged"
    for seed, run in found.items():
        assert (run.info.run_name, run.data.params["run.seed"]) == (f"step4 seed {seed}", str(seed))
        history = store.get_metric_history(run.info.run_id, "test_accuracy")
        assert [entry.step for entry in history] == [1, 2]
    assert ours(found[0].data.tags)["gate"] == "failed"
    models = store.search_logged_models(["0"])
    assert {model.source_run_id for model in models} == {tasks[0].run_id, tasks[2].run_id}


def test_data_that_changed_since_the_run_was_opened_is_noticed(store, digits, tmp_path):
    arrays = mirrored(digits)
    path = write_npz(tmp_path / "letters.npz", arrays)
    options = TrainOptions(dataset=str(path), epochs=1, target=0.0, threads=1)
    parent = store.create_run("0").info.run_id
    run_id = runs.open_nested(parent, "step4 seed 0", training.load_dataset(options))
    write_npz(path, {**arrays, "y_train": 9 - arrays["y_train"]})
    with pytest.raises(DataError, match=f"^dataset: {path} has changed: its digest was "):
        training.train_run("step4", options, run_id=run_id)
    assert store.get_run(run_id).info.status == "FAILED"
