"""Many seeds of one step: their spread and their pass rate."""

import json

import pytest

from drilldown.errors import ParameterError
from drilldown.experiments import repeat
from drilldown.experiments.nested import Outcome
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.reporting.plots import Caption

GOAL = Goal(accuracy=99.4)


def outcome(seed, *accuracies, passed=True, **more):
    return Outcome(
        "step4", seed, f"run-{seed}", passed=passed, accuracies=accuracies, seconds=10.0 * (seed + 1), **more
    )


def summarize(outcomes, split="test"):
    """The summary, and the same as in repeat.json."""
    summary = repeat.summarize("step4", outcomes, GOAL, split)
    return summary, json.loads(json.dumps(summary.as_dict()))


def test_summary():
    outcomes = [
        outcome(1, 90.0, 99.5, 99.6, 99.4, 99.5, 99.7),
        outcome(0, 90.0, 99.4, 99.5, 99.4, 99.5, 99.5),
        outcome(2, 90.0, 99.0, 99.5, 99.4, 99.5, 99.3, passed=False),
    ]
    summary, kept = summarize(outcomes)
    assert (kept["step"], kept["target"]["accuracy"]) == ("step4", 99.4)
    assert (kept["seeds"], kept["passed"], kept["failed"]) == (3, 2, 0)
    assert [run["seed"] for run in kept["runs"]] == [0, 1, 2]
    assert [run.seed for run in summary.runs] == [0, 1, 2]
    assert kept["spread"]["final_test_accuracy"] == pytest.approx({"mean": 99.5, "std": 0.2, "min": 99.3, "max": 99.7})
    assert kept["spread"]["min_accuracy_last_k"]["min"] == 99.0
    assert kept["spread"]["best_test_accuracy"]["mean"] == pytest.approx(99.5 + 0.2 / 3)
    assert kept["spread"]["run_seconds"] == pytest.approx({"mean": 20, "std": 10, "min": 10, "max": 30})
    shown = repeat.summary_lines(summary).splitlines()
    assert shown[0].split() == ["over", "the", "seeds", "mean", "std", "min", "max"]
    assert shown[1].split() == ["final_test_accuracy", "99.50", "0.20", "99.30", "99.70"]


def test_pass_rate_with_its_interval():
    summary, kept = summarize([outcome(seed, 99.5, passed=seed < 8) for seed in range(10)])
    assert kept["pass_rate"] == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)  # by Wilson's formula
    assert "gate passed by 8 of 10 seeds" in repeat.summary_lines(summary)
    assert summary.metrics() == pytest.approx(
        {"seeds": 10, "failed": 0, "passed": 8, "pass_rate": 0.8, "pass_rate_low": 0.49016, "pass_rate_high": 0.94332}
        | {f"final_test_accuracy_{name}": value for name, value in kept["spread"]["final_test_accuracy"].items()}
        | {f"best_test_accuracy_{name}": value for name, value in kept["spread"]["best_test_accuracy"].items()}
        | {f"min_accuracy_last_k_{name}": value for name, value in kept["spread"]["min_accuracy_last_k"].items()}
        | {f"run_seconds_{name}": value for name, value in kept["spread"]["run_seconds"].items()},
        abs=1e-5,
    )


def test_a_model_of_these_seeds_has_their_pass_rate_as_tags():
    summary, _ = summarize([outcome(seed, 99.5) for seed in range(10)])
    assert summary.all_passed
    assert summary.tags() == {
        "consistency": "10/10", "pass_rate": "1.0000", "pass_rate_low": "0.7225", "pass_rate_high": "1.0000"
    }  # fmt: skip
    assert not summarize([outcome(0, 99.5), outcome(1, 99.5, passed=False)])[0].all_passed
    assert not summarize([outcome(0, 99.5), Outcome("step4", 1, "run-1", error="no")])[0].all_passed
    assert not summarize([outcome(0, 99.5)], "validation")[0].all_passed


def test_the_seed_to_register_is_one_that_is_trained_and_measured_on_the_test_images():
    repeat.check_register(9, 10, TrainOptions())
    with pytest.raises(ParameterError, match="^register is 10: it takes one of the seeds that are trained, 0 to 9$"):
        repeat.check_register(10, 10, TrainOptions())
    with pytest.raises(ParameterError, match="^register is 0: with validation=500 no model is measured on the test"):
        repeat.check_register(0, 10, TrainOptions(validation=500))


def test_a_failed_seed_counts_against_the_rate():
    summary, kept = summarize([outcome(0, 99.5), Outcome("step4", 1, "run-1", error="training diverged")])
    assert (kept["passed"], kept["failed"], kept["pass_rate"][0]) == (1, 1, 0.5)
    assert kept["spread"]["final_test_accuracy"] == {"mean": 99.5, "min": 99.5, "max": 99.5}
    assert "final_test_accuracy_std" not in summary.metrics()


def test_a_summary_of_failed_seeds_only():
    summary, kept = summarize([Outcome("step4", 0, "run-0", error="no")])
    assert (kept["failed"], kept["spread"]) == (1, {})
    assert (summary.failed, summary.pass_rate.passed) == (1, 0)


def test_the_caption_of_the_seeds_tells_them_apart(digits):
    summary, _ = summarize([outcome(0, 99.5), outcome(1, 99.3, passed=False), Outcome("step4", 2, "run-2", error="no")])
    assert repeat.caption(summary, digits, "3f2a91c0d4") == Caption(
        "step4: 2 of 3 seeds, gate passed by 1", "99.40 ± 0.14 % of the digits test images, run 3f2a91c0"
    )
    summary, _ = summarize([Outcome("step4", 0, "run-0", error="no")], "validation")
    assert repeat.caption(summary, digits, "3f2a91c0d4") == Caption("step4: 0 of 1 seeds", "run 3f2a91c0")


def test_figures_of_the_validation_slice_never_have_the_name_of_a_test_figure():
    summary, kept = summarize([outcome(0, 99.5)], "validation")
    assert not {"passed", "pass_rate"} & (kept.keys() | summary.metrics().keys())
    assert "gate" not in repeat.summary_lines(summary)
    assert set(kept["spread"]) == {
        "final_validation_accuracy", "best_validation_accuracy", "validation_min_accuracy_last_k", "run_seconds",
    }  # fmt: skip
