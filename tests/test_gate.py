"""The gate on the study's real histories, at its bounds, and on what must never pass."""

import json
import math
from pathlib import Path

import pytest

from src.learning.recipe import Target
from src.lifecycle.gate import judge, summarise

STUDY = json.loads((Path(__file__).parents[1] / "results" / "study.json").read_text())["steps"]
TARGET = Target(accuracy=99.4, max_epochs=15, max_parameters=7_999)


def rows(accuracies):
    return [{"epoch": epoch, "test_accuracy": accuracy} for epoch, accuracy in enumerate(accuracies, start=1)]


@pytest.mark.parametrize("step", ["step1", "step2", "step3"])
def test_the_studys_first_three_steps_fail(step):
    verdict = judge(rows(STUDY[step]["test_accuracy"]), STUDY[step]["parameters"], Target(accuracy=99.4))
    assert not verdict.passed
    assert "streak_accuracy" in verdict.reasons[0]
    assert len(verdict.reasons) == 1


def test_fifteen_epochs_of_the_studys_fourth_step_pass():
    verdict = judge(rows(STUDY["step4"]["test_accuracy"][:15]), 9_300, Target(accuracy=99.4, max_epochs=15))
    assert verdict.passed
    assert verdict.metrics["streak_accuracy"] == 99.48
    assert verdict.metrics["epochs_at_target"] == 9
    assert verdict.reasons == ("the last 5 epochs are all at or above 99.40 %, the lowest at 99.48 %",)


def test_its_parameters_and_all_twenty_epochs_are_too_many():
    verdict = judge(rows(STUDY["step4"]["test_accuracy"]), 9_300, TARGET)
    assert not verdict.passed
    assert len(verdict.reasons) == 2
    assert "epochs = 20, epochs threshold = 15" in verdict.reasons[0]
    assert "parameters = 9300, parameters threshold = 7999" in verdict.reasons[1]


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
    assert judge(rows(accuracies), 7_999, TARGET).passed is passed


def test_one_parameter_too_many():
    assert not judge(rows([100.0] * 5), 8_000, TARGET).passed


def test_a_validation_run_never_passes():
    verdict = judge([{"epoch": epoch, "validation_accuracy": 100.0} for epoch in range(5)], 1, TARGET)
    assert not verdict.passed
    assert "not measured on the test set" in verdict.reasons[0]


def test_summary():
    assert summarise([90.0, 99.5, 99.4, 99.3, 99.6, 99.5, 99.45], TARGET) == {
        "final_accuracy": 99.45,
        "best_accuracy": 99.6,
        "epochs_at_target": 5,
        "streak_accuracy": 99.3,
    }
