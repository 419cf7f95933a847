"""Trainings in processes of their own: what one's failure does to the others, and what stopping leaves behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from benchmarks.programs import wait_until
from src.learning.recipe import Target
from src.lifecycle import nested
from src.lifecycle.nested import Outcome

TARGET = Target(accuracy=99.4)


def test_a_line_for_the_screen():
    accuracies = (99.0, 99.4, 99.5, 99.6, 99.5, 99.41)
    outcome = Outcome("step4", 3, "run", passed=True, accuracies=accuracies, seconds=40.0, reused=True)
    assert nested.outcome_line(outcome, TARGET) == (
        "step4 seed 3: final 99.41 %  best 99.60 %  lowest of the last 5 99.40 %  gate passed  40 s  (reused)"
    )  # fmt: skip
    failed = Outcome("step2", 1, "run", error="training diverged")
    assert nested.outcome_line(failed, TARGET) == "step2 seed 1: failed: training diverged"


def test_failures_are_an_error_that_names_the_first():
    good = Outcome("step1", 0, "run")
    nested.check([good])
    failed = [Outcome(step, seed, "run", error="broken") for step, seed in (("step3", 0), ("step2", 7))]
    with pytest.raises(nested.NestedError, match="^2 of 3 runs failed, the first of them step2 seed 7: broken$"):
        nested.check([good, *failed])


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def child_of_seed(pid, seed):
    """Wait for the process that trains the seed."""

    def found():
        commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(pid)}
        return next((child for child, command in commands.items() if f"--seed\0{seed}\0" in command), None)

    return wait_until(found, seconds=60, for_what=f"a process that trains seed {seed}")


finds_processes = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")


def begin_repeat(project, *parameters):
    """Two seeds of step 4 on the digits, at a time."""
    command = [
        sys.executable, "-m", "src.run", "repeat", "--step", "step4", "--dataset", "digits", "--seeds", "2",
        "--jobs", "2", *parameters,
    ]  # fmt: skip
    return project.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@finds_processes
def test_a_repetition_that_is_stopped_leaves_no_process_and_no_open_run(tmp_path):
    project = Project(tmp_path)
    process = begin_repeat(project, "--epochs", "100")  # minutes
    trained = [child_of_seed(process.pid, seed) for seed in (0, 1)]
    wait_until(lambda: len(list(tmp_path.glob("checkpoints/*/*.pt"))) >= 2, seconds=120, for_what="saved epochs")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{child}").exists() for child in trained)
    assert {run.info.status for run in project.runs()} == {"KILLED"}
    assert len(project.runs()) == 3


@pytest.mark.slow
@finds_processes
def test_a_killed_seed_costs_no_other_and_the_next_repetition_reuses_what_finished(tmp_path):
    project = Project(tmp_path)
    process = begin_repeat(project, "--epochs", "6", "--target", "20")
    os.kill(child_of_seed(process.pid, 1), signal.SIGKILL)
    shown, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "step4 seed 1: failed: its process was ended by signal 9" in shown
    assert "error: 1 of 2 runs failed, the first of them step4 seed 1: its process was ended by signal 9" in said
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

    process = begin_repeat(project, "--epochs", "6", "--target", "20")
    shown, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [line.endswith("(reused)") for line in shown.splitlines() if line.startswith("step4 seed")] == [True, False]
    parent = project.runs()[1]  # the newest is seed 1's
    kept = json.loads(Path(project.client().download_artifacts(parent.info.run_id, "repeat.json")).read_text())
    assert [(run["seed"], run["reused"], run["error"]) for run in kept["runs"]] == [(0, True, None), (1, False, None)]
    assert kept["runs"][0]["run_id"] == runs["step4 seed 0"].info.run_id
    assert kept["spread"]["final_test_accuracy"]["mean"] == pytest.approx(
        sum(run["accuracies"][-1] for run in kept["runs"]) / 2
    )
    assert parent.data.metrics["pass_rate"] == kept["passed"] / 2
