"""Statistics of accuracies: of one run, over seeds, and between two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drilldown.learning.recipe import Goal


@dataclass(frozen=True)
class AccuracySummary:
    """The accuracies of one run, in percent."""

    final_accuracy: float
    best_accuracy: float
    epochs_at_target: int
    min_accuracy_last_k: float  # k is the goal's `last`


def summarize(accuracies: Sequence[float], goal: Goal) -> AccuracySummary:
    """Summarize a run from its accuracy (percent) at the end of each epoch."""
    return AccuracySummary(
        final_accuracy=accuracies[-1],
        best_accuracy=float(np.max(accuracies)),
        epochs_at_target=sum(accuracy >= goal.accuracy for accuracy in accuracies),
        min_accuracy_last_k=float(np.min(accuracies[-goal.last :])),  # np.min keeps a NaN, min() may lose it
    )


@dataclass(frozen=True)
class Spread:
    """How much values differ from seed to seed."""

    mean: float
    min: float
    max: float
    std: float | None  # sample standard deviation; None for a single value


def spread(values: Sequence[float]) -> Spread:
    """Mean, extremes and sample standard deviation of at least one value."""
    return Spread(mean(values), min(values), max(values), stdev(values) if len(values) > 1 else None)


def format_spread(values: Sequence[float], decimals: int = 2) -> str:
    """Mean ± sample standard deviation as text; a single value alone."""
    found = spread(values)
    center = f"{found.mean:.{decimals}f}"
    return center if found.std is None else f"{center} ± {found.std:.{decimals}f}"


def format_probability(probability: float) -> str:
    """A probability in percent as text, which says 100 % or 0 % only if it is exactly that."""
    rounded = f"{probability:.2%}"
    if rounded == "100.00%" and probability < 1:
        return "> 99.99 %"
    if rounded == "0.00%" and probability > 0:
        return "< 0.01 %"
    return f"{rounded[:-1]} %"


@dataclass(frozen=True)
class Reliability:
    """Answers in bins by their probability: the count, the mean probability and the share of right ones of each."""

    edges: NDArray[np.float64]  # (bins + 1,)
    counts: NDArray[np.int64]  # (bins,)
    confidences: NDArray[np.float64]  # NaN where a bin is empty
    shares: NDArray[np.float64]  # likewise

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al., 2015): the mean distance of probability and share."""
        filled = self.counts > 0
        distances = np.abs(self.confidences - self.shares)[filled]
        return float((distances * self.counts[filled]).sum() / max(1, self.counts.sum()))


def reliability(confidences: NDArray[Any], right: NDArray[Any], bins: int = 15) -> Reliability:
    """Sort answers into bins of equal width by their probability (N,), from 0 to 1; `right` says which are (N,)."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(confidences, edges) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a bin is empty
        means = (np.bincount(place, weights, bins) / counts for weights in (confidences, right.astype(float)))
        return Reliability(edges, counts, *means)


def calibration_error(confidences: NDArray[Any], right: NDArray[Any]) -> float:
    """The expected calibration error, in 15 bins."""
    return reliability(confidences, right).error


@dataclass(frozen=True)
class PassRate:
    """How many seeds passed the gate, as a rate with its 95 % interval."""

    passed: int
    seeds: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"gate passed by {self.passed} of {self.seeds} seeds: {self.rate:.0%}, "
            f"95 % interval from {self.low:.0%} to {self.high:.0%}"
        )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pass_rate(passed: int, seeds: int) -> PassRate:
    """The share of seeds that passed, with its Wilson interval."""
    return PassRate(passed, seeds, passed / seeds, *wilson_interval(passed, seeds))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar, 1947).

    The counts are images that only the first, or only the second, of two models classifies correctly.
    """
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test: whether the pairs of values differ in their mean.

    1 where all differences are equal: then their spread is unknown, and nothing is shown.
    """
    from scipy.stats import ttest_rel

    differences = np.subtract(first, second)
    if len(differences) < 2 or np.ptp(differences) < 1e-9:
        return 1.0
    return float(ttest_rel(first, second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted for their number (Holm, 1979): each may be compared with the level of a single test."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
