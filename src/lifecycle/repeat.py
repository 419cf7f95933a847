"""One step over many seeds: how often does it reach its target, and by how much?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev

from scipy.stats import binomtest

from src.learning.recipe import Target
from src.lifecycle import gate, tracking
from src.lifecycle.nested import Outcome


def summarise(step: str, outcomes: Sequence[Outcome], target: Target, split: str) -> dict[str, object]:
    """The spread of the seeds' figures (percent, seconds) and the gate's pass rate among all seeds, failed ones too.

    There is no pass rate on a validation slice: nothing that was measured there passes.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome.seed)
    good = [outcome for outcome in outcomes if outcome.error is None]
    figures = [gate.summarise(outcome.accuracies, target) for outcome in good]
    names = tracking.metric_names(split)
    spreads = ("final_accuracy", "best_accuracy", "streak_accuracy")
    values = {names[key]: [figure[key] for figure in figures] for key in spreads}
    values["run_seconds"] = [outcome.seconds for outcome in good]
    passed = sum(outcome.passed for outcome in outcomes)
    judged = {"passed": passed, "pass_rate": pass_rate(passed, len(outcomes))} if split == "test" else {}
    return {
        "step": step,
        "target": asdict(target),
        "seeds": len(outcomes),
        "failed": len(outcomes) - len(good),
        **judged,
        "spread": {name: _spread(column) for name, column in values.items() if column},
        "runs": [asdict(outcome) for outcome in outcomes],
    }


def pass_rate(passed: int, seeds: int) -> tuple[float, float, float]:
    """The share of seeds that passed, with its 95 % Wilson interval (Wilson, 1927): rate, low, high."""
    interval = binomtest(passed, seeds).proportion_ci(method="wilson")
    return passed / seeds, interval.low, interval.high


def rate_line(passed: int, seeds: int) -> str:
    """The same in words."""
    rate, low, high = pass_rate(passed, seeds)
    return f"gate passed by {passed} of {seeds} seeds: {rate:.0%}, 95 % interval from {low:.0%} to {high:.0%}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    spread = {"mean": mean(values), "min": min(values), "max": max(values)}
    return spread | ({"std": stdev(values)} if len(values) > 1 else {})


def summary_lines(summary: Mapping[str, object]) -> str:
    """The summary in a few lines, for the screen."""
    lines = [
        f"{name}: {spread['mean']:.2f} ± {spread.get('std', 0):.2f}, from {spread['min']:.2f} to {spread['max']:.2f}"
        for name, spread in summary["spread"].items()
    ]
    if "passed" in summary:
        lines.append(rate_line(summary["passed"], summary["seeds"]))
    return "\n".join(lines)
