"""A whole search: its trials, its confirmation, what it leaves, and what it never reads."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from drilldown import training
from drilldown.commands import tune as commands
from drilldown.errors import ParameterError, TuneError
from drilldown.experiments import nested, schedule
from drilldown.experiments.nested import Outcome
from drilldown.experiments.worker import Report
from drilldown.learning import data, mapped
from drilldown.learning.recipe import Recipe, Target
from drilldown.options import TrainOptions, TuneOptions
from drilldown.steps import Step
from drilldown.tracking import search
from drilldown.tracking.tags import ours
from tests.support.networks import SMALL_RECIPE
from tests.support.programs import wait_until
from tests.support.project import Project, finds_processes


class Network(nn.Module):
    """The small network of a width."""

    def __init__(self, width: int = 8, normalize: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, width, 5, bias=False),
            nn.BatchNorm2d(width) if normalize else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(width, 10, 10, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)


SPACE = {
    "lr": CategoricalDistribution([0.1, 0.2, 1e30]),
    "width": IntDistribution(4, 16),
    "momentum": FloatDistribution(0, 0.99),
}
STEP = Step("step4", Network, replace(SMALL_RECIPE, epochs=2), Target(max_parameters=13_000), "", SPACE)


class Unreadable:
    """Stands in for the test images and their labels: no use of them goes unseen."""

    def __getattr__(self, name):
        raise AssertionError(f"the test images are read: {name}")


@pytest.fixture
def in_process(monkeypatch, store, digits):
    """Lets trainings run in this process, on a step of two seconds; returns the datasets that they got."""
    seen = []

    class StandIn:
        def __init__(self, file):
            self.dataset = mapped.read(f"/dev/fd/{file.fileno()}")
            seen.append(self.dataset)

        def train(self, tasks, show):
            (task,) = tasks
            try:
                training.train_run(
                    "step4", task.options, run_id=task.run_id, dataset=self.dataset, register=task.register
                )
            except Exception as error:
                yield Report(task.run_id, str(error))
            else:
                yield Report(task.run_id)

        def is_alive(self):
            return True

        def let_go(self):
            pass

        def end(self):
            pass

        terminate, wait = end, end

        def errors(self):
            return ""

    monkeypatch.setattr(nested, "Worker", StandIn)
    for module in (training, commands, schedule):
        monkeypatch.setattr(module, "load_step", lambda name: STEP)
    without_test_images = replace(digits, test_images=Unreadable(), test_labels=Unreadable())
    monkeypatch.setattr(data, "load", lambda *given: without_test_images)
    return seen


def tune(validation=200, **given):
    options = TrainOptions(dataset="digits", threads=1, engine="torch")
    commands.tune_step("step4", 1, validation, options, TuneOptions(**given))


def parents(store):
    return [run for run in store.search_runs(["0"]) if ours(run.data.tags)["kind"] == "tune"]


@pytest.mark.slow
def test_a_search_its_confirmation_and_what_it_leaves(store, digits, in_process, capsys):
    tune(trials=6, confirm=1, confirm_seeds=2)
    shown = capsys.readouterr().out
    (parent,) = parents(store)
    kept = {file.path for file in store.list_artifacts(parent.info.run_id)}
    assert {"tune.html", "trials.csv", "pareto.csv", "recommended.py"} <= kept

    def artifact(name):
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{parent.info.run_id}/{name}"))

    trials = pd.read_csv(artifact("trials.csv")).set_index("trial")
    own = trials.loc[0]
    assert (own["state"], own["lr"], own["width"], own["momentum"]) == ("complete", 0.1, 8, 0.9)
    states = trials["state"].value_counts()
    assert states["complete"] >= 2
    assert states["complete"] + states["fail"] == 6
    assert set(trials["state"]) == {"complete", "fail", "refused"}  # with this seed it meets them all
    for _, trial in trials.iterrows():
        assert (trial["state"] == "refused") == (trial["parameters"] > 13_000)
        assert trial["state"] != "fail" or (trial["lr"] == 1e30 and "diverged" in trial["reason"])
    runs = {run.info.run_id: run for run in store.search_runs(["0"])}
    for number, trial in trials[trials["state"] == "complete"].iterrows():
        run = runs[trial["runs"]]
        tags = ours(run.data.tags)
        assert (tags["trial"], tags["study"]) == (str(number), ours(parent.data.tags)["study"])
        assert run.info.run_name == f"step4 trial {number} seed 0"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (float(run.data.params["recipe.momentum"]), run.data.metrics["parameters"]) == (
            trial["momentum"], trial["parameters"]
        )  # fmt: skip
        assert run.data.metrics["validation_min_accuracy_last_k"] == trial["value"]
    failed = runs[trials[trials["state"] == "fail"].iloc[0]["runs"]]
    assert failed.info.status == "FAILED"

    tags = ours(parent.data.tags)
    (candidate,) = [name for name in tags if name.startswith("confirmed.") and name != "confirmed.trial-0"]
    confirmed = [runs[run_id] for name in ("confirmed.trial-0", candidate) for run_id in tags[name].split()]
    assert [run.data.params["run.seed"] for run in confirmed] == ["1000", "1001"] * 2
    assert "recommended: " in shown
    page = artifact("tune.html").read_text()
    assert len(re.findall("data:image/png;base64", page)) >= 3
    assert all(heading in page for heading in ("Confirmation", "Parameters against accuracy", "All trials"))
    namespace = {"Recipe": Recipe}
    exec(artifact("recommended.py").read_text(), namespace)
    assert namespace["RECIPE"].epochs == 2

    # The test images: the driver would have raised, and the trainings got the others only.
    assert in_process
    for dataset in in_process:
        assert (dataset.split, len(dataset.test_images)) == ("validation", 200)
        assert torch.equal(torch.cat([dataset.train_images, dataset.test_images]), digits.train_images)
    assert list(store.search_registered_models()) == []

    tune(trials=6, confirm=1, confirm_seeds=2)  # nothing is left to train
    shown = capsys.readouterr().out
    assert "goes on after 6 trials" in shown
    assert shown.count("(reused)") == 4
    assert len(store.search_runs(["0"])) == len(runs) + 1


@pytest.mark.slow
def test_a_search_without_a_finished_trial_says_why(in_process, monkeypatch):
    recipe, network = replace(STEP.recipe, lr=1e30), partial(Network, normalize=False)
    step = replace(STEP, network=network, recipe=recipe, space={"momentum": SPACE["momentum"]})
    for module in (training, commands, schedule):
        monkeypatch.setattr(module, "load_step", lambda name: step)
    with pytest.raises(TuneError, match="^none of 2 trials has finished, the first because: training diverged"):
        tune(trials=2)


def test_bad_parameters_end_in_one_line(in_process):
    with pytest.raises(ParameterError, match="^pruner is 'median': with seeds_per_trial=2 it takes none"):
        tune(pruner="median", seeds_per_trial=2)
    with pytest.raises(ParameterError, match="^validation is 1437: it takes a whole number from 0 to 1436"):
        tune(validation=1437)


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_is_finished_and_pruned_and_not_reused(store, digits, in_process):
    dataset = digits.hold_out(200)
    options = TrainOptions(dataset="digits", engine="torch", study="a study", trial=3, validation=200)
    run_id = store.create_run("0").info.run_id
    store.set_tag(run_id, "drilldown.stop", "it is behind")
    training.train_run("step4", options, run_id=run_id, dataset=dataset, register=False)
    run = store.get_run(run_id)
    assert (run.info.status, ours(run.data.tags)["pruned"]) == ("FINISHED", "it is behind")
    assert search.trial_runs("a study", 3)[0].info.run_id == run_id
    outcome = Outcome.from_run("step4", 0, run_id, "validation", trial=3)
    assert (len(outcome.accuracies), outcome.passed) == (1, False)
    fingerprint = json.loads(run.data.tags["drilldown.fingerprint"])
    assert search.find_reusable(["0"], "step4", 0, fingerprint) is None
    store.delete_tag(run_id, "drilldown.pruned")
    assert search.find_reusable(["0"], "step4", 0, fingerprint)
    assert not Path("checkpoints").exists() or not list(Path("checkpoints").glob("*/*.pt"))


@pytest.mark.slow
@finds_processes
def test_a_killed_search_goes_on_and_a_killed_trial_is_told_as_failed(tmp_path):
    project = Project(tmp_path)
    command = [
        sys.executable, "-m", "drilldown", "tune", "--step", "step2", "--dataset", "digits", "--engine", "torch",
        "--epochs", "8", "--trials", "3", "--jobs", "1", "--confirm", "0", "--threads", "1",
    ]  # fmt: skip

    def trains(number):
        runs = {run.info.run_name: run for run in project.runs()} if (tmp_path / "mlflow.db").exists() else {}
        run = runs.get(f"step2 trial {number} seed 0")
        return run and "validation_accuracy" in run.data.metrics and run.info.status == "RUNNING"

    driver = project.start(*command, cold=False)
    searcher = project.wait_for_process("tune step2")
    wait_until(lambda: trains(1), seconds=300, for_what="the second trial")
    os.kill(searcher, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    driver = project.start(*command, cold=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    trial = project.wait_for_process("step2 trial 2 seed 0")
    wait_until(lambda: trains(2), seconds=300, for_what="the trial that is trained again")
    os.kill(trial, signal.SIGKILL)
    stdout, stderr = driver.communicate(timeout=500)
    assert driver.returncode == 0, stderr
    assert "goes on after 1 trials" in stdout
    assert "trial 2: fail  its process was ended by signal 9" in stdout
    runs = {run.info.run_name: run for run in project.runs()}
    assert {name: run.info.status for name, run in runs.items() if "trial" in name} == {
        "step2 trial 0 seed 0": "FINISHED",
        "step2 trial 1 seed 0": "KILLED",
        "step2 trial 2 seed 0": "KILLED",
        "step2 trial 3 seed 0": "FINISHED",
    }
    lost, again = (runs[f"step2 trial {number} seed 0"].data.params for number in (1, 2))
    assert lost["recipe.lr"] == again["recipe.lr"]  # what was lost with the command is trained again
    (finished, killed) = (run for run in project.runs() if run.info.run_name == "tune step2")
    assert (finished.info.status, killed.info.status) == ("FINISHED", "KILLED")
    assert finished.data.metrics["trials_fail"] == 1
    assert project.client().search_registered_models() == []
