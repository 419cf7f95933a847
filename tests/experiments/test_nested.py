"""Trainings in processes of their own: a failure stops no other training, and stopping leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drilldown.errors import NestedError
from drilldown.experiments import nested
from drilldown.experiments.nested import Outcome
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.steps import ROOT
from drilldown.tracking.tags import ours
from tests.experiments.finished import finished_run
from tests.support.programs import wait_until
from tests.support.project import Project

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


def test_a_process_gets_its_options_its_run_and_the_import_path_and_its_last_line_is_the_error(
    store, digits, monkeypatch, tmp_path
):
    started = []

    class Process:
        returncode = 2

        def __init__(self, command, **settings):
            started.append((command, settings))
            settings["stderr"].write(b"a warning\nerror: lr is 0\n")
            settings["stdout"].write(b"step2, seed 5: 12,584 parameters\nepoch  1/3  train\nepoch  2/3  train\n")
            settings["stdout"].flush()

        def wait(self, seconds=None):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("MNIST_MIRROR", "a mirror")
    options = TrainOptions(seed=9, dataset="digits", epochs=3)
    parent, progress = store.create_run("0").info.run_id, Seen()
    (outcome,) = nested.train([("step2", 5)], options, jobs=2, parent=parent, dataset=digits, progress=progress)
    assert progress.seen == [("step2 seed 5", 0), ("step2 seed 5", 1), ("step2 seed 5", 2), "end of step2 seed 5"]
    assert (outcome.step, outcome.seed, outcome.error) == ("step2", 5, "lr is 0")
    ((command, settings),) = started
    assert command[:4] == [sys.executable, "-m", "drilldown", "step2"]
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert (given["--seed"], given["--dataset"], given["--epochs"], given["--lr"]) == ("5", "digits", "3", "")
    environment = settings["env"]
    assert "cwd" not in settings
    assert environment["MLFLOW_RUN_ID"] == outcome.run_id
    assert environment["MLFLOW_TRACKING_URI"] == os.environ["MLFLOW_TRACKING_URI"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT / "src"), str(ROOT), "elsewhere"]
    assert environment["MNIST_MIRROR"] == "a mirror"
    assert environment["DRILLDOWN_STARTER"] == "python"  # its hints begin as this command did
    run = store.get_run(outcome.run_id)
    assert (run.info.status, run.info.run_name) == ("FAILED", "step2 seed 5")
    assert ours(run.data.tags)["error"] == "lr is 0"
    assert ours(run.data.tags)["dataset.digest"] == digits.digest  # by which the process sees that the data changed


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def child_of_seed(pid, seed):
    """Wait for the process that trains the seed."""

    def found():
        commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(pid)}
        return next((child for child, command in commands.items() if f"--seed\0{seed}\0" in command), None)

    return wait_until(found, seconds=120, for_what=f"a process that trains seed {seed}")


finds_processes = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")


REPEAT = (  # two seeds of step 4 on the digits, at the same time
    *(sys.executable, "-m", "drilldown", "repeat", "--step", "step4", "--dataset", "digits"),
    *("--seeds", "2", "--jobs", "2"),
)


def start_repeat(project, *parameters):
    """Start a repetition, to be stopped."""
    return project.start(*REPEAT, *parameters, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@finds_processes
def test_a_repetition_that_is_stopped_leaves_no_process_and_no_open_run(tmp_path):
    project = Project(tmp_path)
    process = start_repeat(project, "--epochs", "100")  # minutes
    trainings = [child_of_seed(process.pid, seed) for seed in (0, 1)]
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
    os.kill(child_of_seed(process.pid, 1), signal.SIGKILL)
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
