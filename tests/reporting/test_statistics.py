"""Statistics against known values."""

import os
import subprocess
import sys

import numpy as np
import pytest

from drilldown.learning.recipe import Goal
from drilldown.reporting.statistics import (
    AccuracySummary,
    Spread,
    calibration_error,
    format_probability,
    format_spread,
    holm,
    mcnemar_p,
    paired_p,
    pass_rate,
    reliability,
    spread,
    summarize,
)
from drilldown.steps import ROOT


def test_summary_of_a_run():
    assert summarize([90.0, 99.5, 99.4, 99.3, 99.6, 99.5, 99.45], Goal(accuracy=99.4)) == AccuracySummary(
        final_accuracy=99.45, best_accuracy=99.6, epochs_at_target=5, min_accuracy_last_k=99.3
    )


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == Spread(mean=2.0, min=1.0, max=3.0, std=1.0)
    assert spread([4.0]) == Spread(mean=4.0, min=4.0, max=4.0, std=None)
    assert format_spread([99.5, 99.7]) == "99.60 ± 0.14"
    assert format_spread([4, 5], decimals=1) == "4.5 ± 0.7"
    assert format_spread([5], decimals=0) == "5"


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.9988, "99.88 %"),
        (0.99995, "> 99.99 %"),
        (1 - 1e-9, "> 99.99 %"),
        (1.0, "100.00 %"),
        (0.5, "50.00 %"),
        (0.0001, "0.01 %"),
        (1e-9, "< 0.01 %"),
        (0.0, "0.00 %"),
    ],
)
def test_only_certainty_is_100_percent(probability, text):
    assert format_probability(probability) == text


@pytest.mark.parametrize(
    ("passed", "seeds", "low", "high"),
    [(10, 10, 0.72247, 1.0), (8, 10, 0.49016, 0.94332), (0, 5, 0.0, 0.43448)],  # by Wilson's formula
)
def test_pass_rate_with_its_interval(passed, seeds, low, high):
    rate = pass_rate(passed, seeds)
    assert (rate.rate, rate.low, rate.high) == pytest.approx((passed / seeds, low, high), abs=1e-5)
    assert str(rate).startswith(f"gate passed by {passed} of {seeds} seeds: {passed / seeds:.0%}, 95 % interval from ")


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 / 2**5), (0, 10, 2 / 2**10), (9, 1, 22 / 2**10)],  # binomial tails
)
def test_exact_mcnemar_test(only_first, only_second, p):
    assert mcnemar_p(only_first, only_second) == pytest.approx(p)


def test_statistics_and_gate_import_no_heavy_package():
    heavy = {"matplotlib", "sklearn", "scipy", "pandas", "torch", "mlflow"}
    code = (
        "import sys, drilldown.reporting.statistics, drilldown.reporting.gate, drilldown.reporting.report\n"
        f"print(*{heavy!r} & sys.modules.keys())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert shown.split() == []


def test_reliability_and_its_error():
    confidences, right = np.array([0.95, 0.97, 0.5, 1.0]), np.array([True, False, True, True])
    found = reliability(confidences, right, bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert found.shares[9] == pytest.approx(2 / 3)
    assert found.confidences[9] == pytest.approx(2.92 / 3)
    assert np.isnan(found.shares[0])
    assert found.error == pytest.approx((3 * (2.92 - 2) / 3 + 0.5) / 4)
    honest = np.linspace(0.05, 0.95, 10).repeat(1000)
    drawn = np.random.default_rng(0).random(len(honest)) < honest
    assert calibration_error(honest, drawn) < 0.03
    assert calibration_error(honest[:0], drawn[:0]) == 0


def test_paired_t_test_of_students_sleep_data():
    """Student, 1908: the extra sleep of ten patients by two drugs; t = -4.0621 with 9 degrees of freedom."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert paired_p(first, second) == pytest.approx(0.002833, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0]), ([1.1, 2.1], [1.0, 2.0]), ([], [])]
)
def test_pairs_without_a_spread_show_nothing(first, second):
    assert paired_p(first, second) == 1.0


def test_holms_p_values():
    """As R's p.adjust has them."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
