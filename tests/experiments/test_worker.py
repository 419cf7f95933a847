"""A process that trains one run after the other."""

import os
import signal
import tempfile
from pathlib import Path

import mlflow
import pytest
import torch

from drilldown import training
from drilldown.experiments.worker import Worker
from drilldown.learning import mapped
from drilldown.options import TrainOptions
from drilldown.tracking import runs
from drilldown.tracking.tags import ours
from drilldown.training import Task

pytestmark = pytest.mark.slow
OPTIONS = {"dataset": "digits", "device": "cpu", "threads": 1}


@pytest.fixture
def worker(digits, warm_start):
    with tempfile.TemporaryFile() as file:
        mapped.write(digits, file)
        worker = Worker(file)
        yield worker
        worker.end()


@pytest.fixture
def task(store, digits):
    """Makes a task in a nested run."""
    parent = store.create_run("0").info.run_id

    def make(step, seed, **options):
        run_id = runs.open_nested(parent, training.run_name(step, seed), digits)
        return Task(step, TrainOptions(seed=seed, **OPTIONS | options), run_id)

    return make


def weights(run_id):
    (model,) = mlflow.search_logged_models(
        experiment_ids=["0"], filter_string=f"source_run_id = '{run_id}'", output_format="list"
    )
    (file,) = Path(mlflow.artifacts.download_artifacts(model.model_uri)).rglob("*.pt2")
    return torch.export.load(file).state_dict


def losses(store, run_id):
    return [(entry.step, entry.value) for entry in store.get_metric_history(run_id, "train_loss")]


def test_a_process_trains_one_run_after_the_other_with_the_bits_of_a_process_of_its_own(store, digits, worker, task):
    shown = []

    def train(task):
        (ended,) = worker.train([task], shown.append)
        assert ended.run_id == task.run_id
        return ended

    first = task("step4", 5, epochs=1, target=0)
    assert train(first).error is None
    assert any(line.startswith("epoch  1/1") for line in shown)
    assert not any(line.startswith("\x1e") for line in shown)
    run = store.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "step4 seed 5")
    process = ours(run.data.tags)["process"]

    diverging = task("step2", 0, epochs=1, lr=1e30)
    assert train(diverging).error.startswith("training diverged")
    run = store.get_run(diverging.run_id)
    assert run.info.status == "FAILED"
    assert ours(run.data.tags)["error"].startswith("training diverged")
    assert worker.is_alive()

    other_recipe = task("step4", 1, epochs=5, target=0, recipe_fields={"momentum": 0.5})
    assert train(other_recipe).error is None
    run = store.get_run(other_recipe.run_id)
    assert (run.data.params["recipe.momentum"], ours(run.data.tags)["gate"]) == ("0.5", "passed")
    assert list(store.search_registered_models()) == []  # the task does not ask for it

    third = task("step4", 1, epochs=2)
    assert train(third).error is None
    run = store.get_run(third.run_id)
    assert run.info.status == "FINISHED"
    assert ours(run.data.tags)["process"] == process
    alone = task("step4", 1, epochs=2)
    threads = torch.get_num_threads()
    training.train_run("step4", alone.options, run_id=alone.run_id, register=False)
    torch.set_num_threads(threads)
    assert losses(store, third.run_id) == losses(store, alone.run_id)
    expected = weights(alone.run_id)
    assert expected.keys() == weights(third.run_id).keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(third.run_id).items())

    killed = task("step4", 2, epochs=100)
    ended = worker.train([killed], lambda line: os.kill(worker.pid, signal.SIGKILL) if "epoch" in line else None)
    (lost,) = ended
    assert (lost.error, lost.is_lost, lost.killed) == ("its process was ended by signal 9", True, True)
    (lost,) = worker.train([task("step4", 3)], shown.append)
    assert lost.is_lost
