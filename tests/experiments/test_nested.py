"""Trainings in processes of their own: a failure stops no other training, and stopping leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drilldown.errors import NestedError
from drilldown.experiments import nested
from drilldown.experiments.nested import Outcome
from drilldown.experiments.worker import Report
from drilldown.learning import mapped
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.tracking.tags import PREFIX, ours
from tests.experiments.finished import finished_run
from tests.support.programs import wait_until
from tests.support.project import Project, finds_processes

GOAL = Goal(accuracy=99.4)


def test_a_line_for_the_screen():
    accuracies = (99.0, 99.4, 99.5, 99.6, 99.5, 99.41)
    outcome = Outcome("step4", 3, "run", passed=True, accuracies=accuracies, seconds=40.0, reused=True)
    assert nested.outcome_line(outcome, GOAL) == (
        "step4 seed 3: final 99.41 %  best 99.60 %  lowest of the last 5 99.40 %  gate passed  40 s  (reused)"
    )  # fmt: skip
    failed = Outcome("step2", 1, "run", error="training diverged")
    assert nested.outcome_line(failed, GOAL) == "step2 seed 1: failed: training diverged"


def test_the_error_of_several_failures_names_the_first():
    good = Outcome("step1", 0, "run")
    nested.check([good])
    failed = [Outcome(step, seed, "run", error="broken") for step, seed in (("step3", 0), ("step2", 7))]
    with pytest.raises(NestedError, match="^2 of 3 runs failed, the first of them step2 seed 7: broken$"):
        nested.check([good, *failed])


@pytest.mark.slow
@pytest.mark.parametrize("version_0_1", [False, True])
def test_the_outcome_of_a_finished_run(store, version_0_1):
    run_id = finished_run("step4", 3, [99.0, 99.5], gate="passed", version_0_1=version_0_1)
    outcome = Outcome.from_run("step4", 3, run_id, "test", reused=True)
    assert (outcome.passed, outcome.accuracies, outcome.reused, outcome.error) == (True, (99.0, 99.5), True, None)
    assert outcome.seconds > 0


class Seen:
    """Stands in for `Progress`: keeps what it is told."""

    def __init__(self):
        self.seen = []

    def epoch(self, name, epoch):
        self.seen.append((name, epoch))

    def end(self, name):
        self.seen.append(f"end of {name}")


@pytest.fixture
def workers(store, monkeypatch):
    """Stand-ins for processes; returns those that were started, each with the batches of seeds that it trained."""
    started = []

    class StandIn:
        """Fails for seed 1, ends when it trains seed 2, and does what it should for the others."""

        def __init__(self, file):
            self.trained, self.alive = [], True
            assert mapped.read(f"/dev/fd/{file.fileno()}").name == "digits"
            started.append(self.trained)

        def train(self, tasks, show):
            assert self.alive
            self.trained.append([task.options.seed for task in tasks])
            for task in tasks:
                seed = task.options.seed
                show(f"epoch  {seed}/9  train")
                self.alive = seed != 2
                if not self.alive or (seed == 1 and len(tasks) == 1):
                    left = tasks[tasks.index(task) :] if seed == 2 else [task]
                    yield from (Report(one.run_id, "no", is_lost=seed == 2, killed=seed == 2) for one in left)
                    return
                tags = {f"{PREFIX}gate": "passed", f"{PREFIX}register": str(task.register)}
                for tag, value in tags.items():
                    store.set_tag(task.run_id, tag, value)
                store.log_metric(task.run_id, "test_accuracy", seed)
                store.set_terminated(task.run_id)
                yield Report(task.run_id)

        def errors(self):
            return "a traceback"

        def is_alive(self):
            return self.alive

        def let_go(self):
            self.alive = False

        def end(self):
            self.alive = False

    monkeypatch.setattr(nested, "Worker", StandIn)
    return started


def train_seeds(store, digits, progress, seeds, **how):
    parent = store.create_run("0").info.run_id
    trainings = [("step2", TrainOptions(seed=seed)) for seed in seeds]
    return nested.train(trainings, parent=parent, dataset=digits, progress=progress, jobs=1, **how)


def by_seed(outcomes):
    return {outcome.seed: outcome for outcome in outcomes}


@pytest.mark.slow
def test_a_process_trains_one_run_after_the_other_and_one_in_which_a_training_failed_is_replaced(
    store, digits, workers
):
    progress = Seen()
    outcomes = by_seed(train_seeds(store, digits, progress, [3, 4, 1, 5, 2, 6]))
    assert workers == [[[3], [4], [1]], [[5], [2]], [[6]]]
    assert {seed: outcome.error for seed, outcome in outcomes.items()} == {
        3: None, 4: None, 1: "no", 5: None, 2: "no", 6: None
    }  # fmt: skip
    assert progress.seen[:4] == [("step2 seed 3", 0), ("step2 seed 3", 3), "end of step2 seed 3", ("step2 seed 4", 0)]
    found = {seed: store.get_run(outcome.run_id) for seed, outcome in outcomes.items()}
    assert {seed: run.info.status for seed, run in found.items()} == {
        3: "FINISHED", 4: "FINISHED", 1: "FAILED", 5: "FINISHED", 2: "KILLED", 6: "FINISHED"
    }  # fmt: skip
    assert found[1].info.run_name == "step2 seed 1"
    assert ours(found[1].data.tags)["error"] == "no"
    assert ours(found[1].data.tags)["dataset.digest"] == digits.digest  # by which a process sees that the data changed
    assert ours(found[3].data.tags)["register"] == "False"


def test_seeds_that_a_process_trains_together_are_trained_alone_if_it_ends(store, digits, workers):
    outcomes = by_seed(train_seeds(store, digits, Seen(), [3, 4, 5, 2, 6, 7], together=3, register=True))
    assert workers == [[[3, 4, 5], [2, 6, 7]], [[2]], [[6], [7]]]
    assert [seed for seed, outcome in outcomes.items() if outcome.error] == [2]
    assert ours(store.get_run(outcomes[6].run_id).data.tags)["register"] == "True"


def test_an_outcome_is_known_while_the_process_trains_the_others(store, digits, workers, monkeypatch):
    known = threading.Event()

    class Waiting(nested.Worker):
        """Ends the second training once the outcome of the first is known."""

        def train(self, tasks, show):
            reports = super().train(tasks, show)
            yield next(reports)
            assert known.wait(20)
            yield from reports

    monkeypatch.setattr(nested, "Worker", Waiting)
    monkeypatch.setattr(nested, "LOOK_SECONDS", 0.01)
    outcomes = train_seeds(store, digits, Seen(), [3, 4], together=2)
    assert next(outcomes).seed == 3
    known.set()
    assert [outcome.seed for outcome in outcomes] == [4]


REPEAT = (  # two seeds of step 4 on the digits, at the same time
    *(sys.executable, "-m", "drilldown", "repeat", "--step", "step4", "--dataset", "digits"),
    *("--seeds", "2", "--jobs", "2"),
)


def start_repeat(project, *parameters):
    """Start a repetition, to be stopped."""
    return project.start(*REPEAT, *parameters, cold=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@finds_processes
def test_a_repetition_that_is_stopped_leaves_no_process_and_no_open_run(tmp_path):
    project = Project(tmp_path)
    process = start_repeat(project, "--epochs", "100")  # minutes
    trainings = [project.wait_for_process(f"step4 seed {seed}") for seed in (0, 1)]
    wait_until(lambda: len(list(tmp_path.glob("checkpoints/*/*.pt"))) >= 2, seconds=120, for_what="saved epochs")
    process.terminate()
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert stdout.splitlines()[-1] == (
        "to go on, reusing the finished runs: "
        "python -m drilldown repeat --step step4 --seeds 2 --jobs 2 --dataset digits --epochs 100"
    )
    assert not any(Path(f"/proc/{child}").exists() for child in trainings)
    assert {run.info.status for run in project.runs()} == {"KILLED"}
    assert len(project.runs()) == 3


@pytest.mark.slow
@finds_processes
def test_a_killed_seed_stops_no_other_and_the_next_repetition_reuses_the_finished_one(tmp_path):
    project = Project(tmp_path)
    process = start_repeat(project, "--epochs", "6", "--target", "20")
    os.kill(project.wait_for_process("step4 seed 1"), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "step4 seed 1: failed: its process was ended by signal 9" in stdout
    assert "error: 1 of 2 runs failed, the first of them step4 seed 1: its process was ended by signal 9" in stderr
    runs = {run.info.run_name: run for run in project.runs()}
    assert {name: run.info.status for name, run in runs.items()} == {
        "repeat step4": "FAILED",
        "step4 seed 0": "FINISHED",
        "step4 seed 1": "KILLED",
    }
    parent = runs["repeat step4"]
    for seed in (0, 1):
        assert runs[f"step4 seed {seed}"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["failed"] == 1
    assert parent.data.metrics["seeds"] == 2
    assert "seeds.png" in {file.path for file in project.client().list_artifacts(parent.info.run_id)}

    done = project.command(*REPEAT, "--epochs", "6", "--target", "20")
    assert done.returncode == 0, done.stderr
    reused = [line.endswith("(reused)") for line in done.stdout.splitlines() if line.startswith("step4 seed")]
    assert reused == [True, False]
    parent = project.runs()[1]  # the newest is seed 1's
    kept = json.loads(Path(project.client().download_artifacts(parent.info.run_id, "repeat.json")).read_text())
    assert [(run["seed"], run["reused"], run["error"]) for run in kept["runs"]] == [(0, True, None), (1, False, None)]
    assert kept["runs"][0]["run_id"] == runs["step4 seed 0"].info.run_id
    assert kept["spread"]["final_test_accuracy"]["mean"] == pytest.approx(
        sum(run["accuracies"][-1] for run in kept["runs"]) / 2
    )
    assert parent.data.metrics["pass_rate"] == kept["passed"] / 2
