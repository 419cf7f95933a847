"""Many seeds of one step: their spread, their pass rate, and what one seed's failure does to the others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project, wait_until

from src.learning.recipe import Target
from src.lifecycle import repeat
from src.lifecycle.repeat import Outcome

TARGET = Target(accuracy=99.4)


def outcome(seed, *accuracies, passed=True, **more):
    return Outcome(seed, f"run-{seed}", passed=passed, accuracies=accuracies, seconds=10.0 * (seed + 1), **more)


def test_summary():
    outcomes = [
        outcome(1, 90.0, 99.5, 99.6, 99.4, 99.5, 99.7),
        outcome(0, 90.0, 99.4, 99.5, 99.4, 99.5, 99.5),
        outcome(2, 90.0, 99.0, 99.5, 99.4, 99.5, 99.3, passed=False),
    ]
    summary = repeat.summarise("step4", outcomes, TARGET, "test")
    assert (summary["seeds"], summary["passed"], summary["failed"]) == (3, 2, 0)
    assert [run["seed"] for run in summary["runs"]] == [0, 1, 2]
    assert summary["spread"]["final_test_accuracy"] == pytest.approx(
        {"mean": 99.5, "std": 0.2, "min": 99.3, "max": 99.7}
    )
    assert summary["spread"]["streak_accuracy"]["min"] == 99.0
    assert summary["spread"]["best_test_accuracy"]["mean"] == pytest.approx(99.5 + 0.2 / 3)
    assert summary["spread"]["run_seconds"] == pytest.approx({"mean": 20, "std": 10, "min": 10, "max": 30})


@pytest.mark.parametrize(
    ("passed", "seeds", "low", "high"),
    [(10, 10, 0.72247, 1.0), (8, 10, 0.49016, 0.94332), (0, 5, 0.0, 0.43448)],  # by Wilson's formula
)
def test_pass_rate_with_its_interval(passed, seeds, low, high):
    outcomes = [outcome(seed, 99.5, passed=seed < passed) for seed in range(seeds)]
    summary = repeat.summarise("step4", outcomes, TARGET, "test")
    assert summary["pass_rate"] == pytest.approx((passed / seeds, low, high), abs=1e-5)
    assert f"gate passed by {passed} of {seeds} seeds" in repeat.summary_lines(summary)


def test_a_failed_seed_counts_against_the_rate():
    outcomes = [outcome(0, 99.5), Outcome(1, "run-1", error="training diverged")]
    summary = repeat.summarise("step4", outcomes, TARGET, "test")
    assert (summary["passed"], summary["failed"], summary["pass_rate"][0]) == (1, 1, 0.5)
    assert summary["spread"]["final_test_accuracy"] == {"mean": 99.5, "min": 99.5, "max": 99.5}
    assert repeat.outcome_line(outcomes[1], TARGET) == "seed 1: failed: training diverged"


def test_nothing_but_failures_is_still_a_summary():
    summary = repeat.summarise("step4", [Outcome(0, "run-0", error="no")], TARGET, "test")
    assert (summary["failed"], summary["spread"]) == (1, {})


def test_a_figure_of_the_validation_slice_never_goes_by_a_test_figures_name():
    summary = repeat.summarise("step4", [outcome(0, 99.5)], TARGET, "validation")
    assert set(summary["spread"]) == {
        "final_validation_accuracy", "best_validation_accuracy", "validation_streak_accuracy", "run_seconds",
    }  # fmt: skip


def test_a_line_for_the_screen():
    line = repeat.outcome_line(outcome(3, 99.0, 99.4, 99.5, 99.6, 99.5, 99.41, reused=True), TARGET)
    assert line == (
        "seed 3: final 99.41 %  best 99.60 %  lowest of the last 5 99.40 %  gate passed  40 s  (reused)"
    )  # fmt: skip


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
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
    assert "seed 1: failed: its process was ended by signal 9" in shown
    assert "error: 1 of 2 seeds failed, the first of them seed 1: its process was ended by signal 9" in said
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
    assert [line.endswith("(reused)") for line in shown.splitlines() if line.startswith("seed")] == [True, False]
    parent = project.runs()[1]  # the newest is seed 1's
    kept = json.loads(Path(project.client().download_artifacts(parent.info.run_id, "repeat.json")).read_text())
    assert [(run["seed"], run["reused"], run["error"]) for run in kept["runs"]] == [(0, True, None), (1, False, None)]
    assert kept["runs"][0]["run_id"] == runs["step4 seed 0"].info.run_id
    assert kept["spread"]["final_test_accuracy"]["mean"] == pytest.approx(
        sum(run["accuracies"][-1] for run in kept["runs"]) / 2
    )
    assert parent.data.metrics["pass_rate"] == kept["passed"] / 2
