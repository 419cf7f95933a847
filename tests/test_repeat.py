"""Many seeds of one step: their spread and their pass rate."""

import pytest

from src.learning.recipe import Target
from src.lifecycle import repeat
from src.lifecycle.nested import Outcome

TARGET = Target(accuracy=99.4)


def outcome(seed, *accuracies, passed=True, **more):
    return Outcome(
        "step4", seed, f"run-{seed}", passed=passed, accuracies=accuracies, seconds=10.0 * (seed + 1), **more
    )


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
    outcomes = [outcome(0, 99.5), Outcome("step4", 1, "run-1", error="training diverged")]
    summary = repeat.summarise("step4", outcomes, TARGET, "test")
    assert (summary["passed"], summary["failed"], summary["pass_rate"][0]) == (1, 1, 0.5)
    assert summary["spread"]["final_test_accuracy"] == {"mean": 99.5, "min": 99.5, "max": 99.5}


def test_nothing_but_failures_is_still_a_summary():
    summary = repeat.summarise("step4", [Outcome("step4", 0, "run-0", error="no")], TARGET, "test")
    assert (summary["failed"], summary["spread"]) == (1, {})


def test_a_figure_of_the_validation_slice_never_goes_by_a_test_figures_name():
    summary = repeat.summarise("step4", [outcome(0, 99.5)], TARGET, "validation")
    assert not {"passed", "pass_rate"} & summary.keys()
    assert "gate" not in repeat.summary_lines(summary)
    assert set(summary["spread"]) == {
        "final_validation_accuracy", "best_validation_accuracy", "validation_streak_accuracy", "run_seconds",
    }  # fmt: skip
