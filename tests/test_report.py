"""A run in words."""

from types import ModuleType

from src.learning.recipe import Target
from src.lifecycle import report
from src.lifecycle.gate import Verdict

STEP = ModuleType("step9")
STEP.__doc__ = """Step 9: an example.

Target: to be
read.

Result: none.

Analysis: it helps.

Run: mlflow run . -e step9
"""
HISTORY = [
    {"epoch": e, "train_accuracy": 90.0, "test_accuracy": 98.0 + e / 10, "test_loss": 0.5, "epoch_seconds": 2.0}
    for e in range(1, 7)
]


def test_the_sections_of_a_docstring():
    assert report.sections(STEP) == {
        "Title": "Step 9: an example.",
        "Target": "to be read.",
        "Result": "none.",
        "Analysis": "it helps.",
        "Run": "mlflow run . -e step9",
    }


def test_the_report_is_of_this_run():
    verdict = Verdict(False, ("one reason", "another"), {})
    text = report.markdown(STEP, 3, HISTORY, verdict, Target(accuracy=98.5), "test")
    assert "**Target.** to be read." in text
    assert "(seed 3). Right after 6 epochs: 98.60 % of the test images." in text
    assert "The last epochs: 98.20, 98.30, 98.40, 98.50, 98.60 %. Epochs at or above 98.5 %: 2." in text
    assert "**Gate failed.** one reason; another" in text
    assert "it helps." in text
    assert "none." not in text  # that is the step's result, not this run's


def test_lines_for_the_screen():
    assert report.epoch_line(HISTORY[0], 20, "test") == (
        "epoch  1/20  train  90.00 %  test  98.10 %  loss 0.5000    2.0 s"
    )
    assert report.verdict_lines(Verdict(True, ("fine",), {})) == "gate passed:\n  fine"
