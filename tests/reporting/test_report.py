"""A run in words."""

import pytest

from drilldown.learning.recipe import Goal
from drilldown.learning.train import EpochMetrics
from drilldown.reporting import report
from drilldown.reporting.gate import Verdict

DOCSTRING = """Step 9: an example.

Target: to be
read.

Result: none.

Analysis: it helps.

Run: mlflow run . -e step9
"""
HISTORY = [
    EpochMetrics(
        epoch=epoch,
        train_loss=0.7,
        train_accuracy=90.0,
        eval_loss=0.5,
        eval_accuracy=98.0 + epoch / 10,
        learning_rate=0.01,
        epoch_seconds=2.0,
        images_per_second=1e4,
    )
    for epoch in range(1, 7)
]


def test_the_sections_of_a_docstring():
    assert report.sections(DOCSTRING) == {
        "Title": "Step 9: an example.",
        "Target": "to be read.",
        "Result": "none.",
        "Analysis": "it helps.",
        "Run": "mlflow run . -e step9",
    }


def test_the_report_has_the_result_of_this_run():
    verdict = Verdict(False, ("one reason", "another"), {})
    text = report.markdown(DOCSTRING, 3, HISTORY, verdict, Goal(accuracy=98.5), "test")
    assert "**Target.** to be read." in text
    assert "(seed 3). Accuracy after 6 epochs: 98.60 % of the test images." in text
    assert "The last epochs: 98.20, 98.30, 98.40, 98.50, 98.60 %. Epochs at or above 98.5 %: 2." in text
    assert "**Gate failed.** one reason; another" in text
    assert "it helps." in text
    assert "none." not in text  # the docstring's result is of other runs


@pytest.mark.parametrize("docstring", ["", "A title.", "A title.\n\nWords: without a known heading."])
def test_headings_are_optional(docstring):
    text = report.markdown(docstring, 3, HISTORY, Verdict(True, ("fine",), {}), Goal(accuracy=98.5), "test")
    assert text.startswith("# A t")
    assert "Accuracy after 6 epochs" in text
    assert "Target" not in text
    assert "Analysis" not in text


def test_lines_for_the_screen():
    assert report.epoch_line(HISTORY[0], 20, "test") == (
        "epoch  1/20  train  90.00 %  test  98.10 %  loss 0.5000    2.0 s"
    )
    assert report.epoch_of(report.epoch_line(HISTORY[0], 20, "test")) == 1
    assert report.epoch_of("step4, seed 0: 7,364 parameters, mnist, 15 epochs on cpu") is None
    assert report.verdict_lines(Verdict(True, ("fine",), {})) == "gate passed:\n  fine"


def test_a_table_in_markdown():
    assert report.table([{"step": "step1", "n": 1}, {"step": "step2", "n": 2}]) == (
        "| step | n |\n|---|---|\n| step1 | 1 |\n| step2 | 2 |\n"
    )


def test_a_table_for_the_screen_has_aligned_columns_with_figures_on_the_right():
    rows = [
        {"step": "step1", "parameters": "6,379,786", "accuracy (%)": "99.26", "gate passed": "0 of 1"},
        {"step": "step10", "parameters": "7,364", "accuracy (%)": "99.56 ± 0.04", "gate passed": "10 of 10"},
        {"step": "step11", "parameters": "–", "accuracy (%)": "no run", "gate passed": 0},
    ]
    assert report.columns(rows).splitlines() == [
        "step    parameters  accuracy (%)  gate passed",
        "step1    6,379,786         99.26       0 of 1",
        "step10       7,364  99.56 ± 0.04     10 of 10",
        "step11           –        no run            0",
    ]
    words = [{"step": "step1", "why": "of all"}, {"step": "s", "why": ""}]
    assert report.columns(words).splitlines() == ["step   why", "step1  of all", "s"]
