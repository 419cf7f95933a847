"""The gate on the study's real histories, at its limits, and on runs that must never pass."""

import json
import math

import pytest

from drilldown.learning.recipe import Goal
from drilldown.reporting.gate import can_pass, judge
from tests.support.project import ROOT

STUDY = json.loads((ROOT / "results" / "study.json").read_text())["steps"]
GOAL = Goal(accuracy=99.4, max_epochs=15, max_parameters=7_999)


@pytest.mark.parametrize("step", ["step1", "step2", "step3"])
def test_the_first_three_steps_of_the_study_fail(step):
    verdict = judge(STUDY[step]["test_accuracy"], "test", STUDY[step]["parameters"], Goal(accuracy=99.4))
    assert not verdict.passed
    last = STUDY[step]["test_accuracy"][-5:]
    epoch = len(STUDY[step]["test_accuracy"]) - 4 + last.index(min(last))
    reason = f"{min(last):.2f} % in epoch {epoch}: 99.4 % are needed in each of the last 5"
    assert verdict.reasons == (reason,)


def test_fifteen_epochs_of_the_fourth_step_of_the_study_pass():
    verdict = judge(STUDY["step4"]["test_accuracy"][:15], "test", 9_300, Goal(accuracy=99.4, max_epochs=15))
    assert verdict.passed
    assert verdict.metrics["min_accuracy_last_k"] == 99.48
    assert verdict.metrics["epochs_at_target"] == 9
    assert verdict.reasons == ("the last 5 epochs are all at or above 99.40 %, the lowest at 99.48 %",)


def test_its_parameters_and_all_twenty_epochs_are_too_many():
    verdict = judge(STUDY["step4"]["test_accuracy"], "test", 9_300, GOAL)
    assert not verdict.passed
    assert verdict.reasons == ("20 epochs: at most 15 are allowed", "9,300 parameters: at most 7,999 are allowed")


def test_the_reasons_of_a_short_run():
    assert judge([90.0, 96.67], "test", 1, Goal(accuracy=97)).reasons == (
        "90.00 % in epoch 1: 97 % are needed in each of the last 5",
        "2 epochs: at least 5 are needed",
    )
    assert judge([98.0], "test", 1, Goal(accuracy=97)).reasons == ("1 epoch: at least 5 are needed",)


@pytest.mark.parametrize(
    ("lowest", "words"),
    [
        (98.9966, "98.997 % in epoch 3: 99 % are needed in each of the last 5"),  # 99.00 % would look like a pass
        (98.99, "98.99 % in epoch 3: 99 % are needed in each of the last 5"),
        (math.nan, "nan % in epoch 3: 99 % are needed in each of the last 5"),
    ],
)
def test_the_accuracy_that_missed_the_target_is_seen_to_miss_it(lowest, words):
    assert judge([100.0, 100.0, lowest, 100.0, 100.0, 100.0, 100.0], "test", 1, Goal(accuracy=99)).reasons == (words,)


@pytest.mark.parametrize(
    ("accuracies", "passed"),
    [
        ([99.4] * 5, True),
        ([10.0] + [99.4] * 5, True),
        ([99.4] * 4, False),
        ([99.39] + [99.9] * 4, False),
        ([99.9] * 4 + [99.39], False),
        ([99.9] * 9 + [math.nan], False),
        ([99.9] * 4 + [math.nan] + [99.9] * 2, False),
        ([], False),
    ],
)
def test_the_last_five_epochs_decide(accuracies, passed):
    assert judge(accuracies, "test", 7_999, GOAL).passed is passed


def test_one_parameter_too_many():
    assert not judge([100.0] * 5, "test", 8_000, GOAL).passed


def test_a_validation_run_never_passes():
    verdict = judge([100.0] * 5, "validation", 1, GOAL)
    assert not verdict.passed
    assert "not measured on the test set" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("accuracies", "split", "last", "expected"),
    [
        ([90, 99, 99], "test", 3, True),  # the last epoch decides
        ([99, 99, 98], "test", 3, False),
        ([99, float("nan")], "test", 3, False),
        ([99], "test", 3, False),  # too few epochs
        ([], "test", 1, True),
        ([99, 99], "validation", 3, False),
    ],
)
def test_whether_a_run_can_pass_before_its_last_epoch(accuracies, split, last, expected):
    assert can_pass(accuracies, split, Goal(98.5, last=last)) is expected
