"""One step over many seeds: how often it passes the gate, and how much its accuracy varies."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from drilldown.errors import ParameterError
from drilldown.experiments.nested import Outcome
from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.reporting import statistics
from drilldown.reporting.plots import Caption
from drilldown.reporting.report import columns
from drilldown.reporting.statistics import PassRate, Spread
from drilldown.tracking.runs import metric_names


@dataclass(frozen=True)
class RepeatSummary:
    """The runs of one step with different seeds, summarized."""

    step: str
    goal: Goal
    seeds: int
    failed: int  # seeds whose training failed
    pass_rate: PassRate | None  # of all seeds, also the failed ones; None if nothing was measured on the test set
    spread: dict[str, Spread]  # by metric: percent, seconds
    runs: list[Outcome]  # by seed

    @property
    def all_passed(self) -> bool:
        """Whether every seed has passed the gate."""
        return self.pass_rate is not None and self.pass_rate.passed == self.seeds

    def tags(self) -> dict[str, str]:
        """The pass rate with its interval, as tags of a model of these seeds."""
        assert self.pass_rate
        rate = self.pass_rate
        shares = {"pass_rate": rate.rate, "pass_rate_low": rate.low, "pass_rate_high": rate.high}
        return {"consistency": f"{rate.passed}/{rate.seeds}"} | {name: f"{share:.4f}" for name, share in shares.items()}

    def metrics(self) -> dict[str, float]:
        """The summary as metrics of the parent run."""
        metrics: dict[str, float] = {"seeds": self.seeds, "failed": self.failed}
        for metric, spread in self.spread.items():
            metrics |= {f"{metric}_{name}": value for name, value in asdict(spread).items() if value is not None}
        if rate := self.pass_rate:
            metrics |= {"passed": rate.passed, "pass_rate": rate.rate}
            metrics |= {"pass_rate_low": rate.low, "pass_rate_high": rate.high}
        return metrics

    def as_dict(self) -> dict[str, object]:
        """The summary as it is kept in repeat.json."""
        judged: dict[str, object] = {}
        if rate := self.pass_rate:
            judged = {"passed": rate.passed, "pass_rate": [rate.rate, rate.low, rate.high]}
        return {
            "step": self.step,
            "target": asdict(self.goal),
            "seeds": self.seeds,
            "failed": self.failed,
            **judged,
            "spread": {
                metric: {name: value for name, value in asdict(spread).items() if value is not None}
                for metric, spread in self.spread.items()
            },
            "runs": [asdict(outcome) for outcome in self.runs],
        }


def check_register(seed: int, seeds: int, options: TrainOptions) -> None:
    """Raise ParameterError unless the seed is one of the seeds, and its model is measured on the test images."""
    if not 0 <= seed < seeds:
        raise ParameterError(f"register is {seed}: it takes one of the seeds that are trained, 0 to {seeds - 1}")
    if options.validation:
        raise ParameterError(
            f"register is {seed}: with validation={options.validation} no model is measured on the test images, and so "
            "none is registered"
        )


def summarize(step: str, outcomes: Sequence[Outcome], goal: Goal, split: str) -> RepeatSummary:
    """Summarize the outcomes of a step's seeds, measured on `split`."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.seed)
    finished = [outcome for outcome in outcomes if outcome.error is None]
    summaries = [statistics.summarize(outcome.accuracies, goal) for outcome in finished]
    names = metric_names(split)
    values: dict[str, list[float]] = {
        names[field]: [getattr(summary, field) for summary in summaries]
        for field in ("final_accuracy", "best_accuracy", "min_accuracy_last_k")
    }
    values["run_seconds"] = [outcome.seconds for outcome in finished if outcome.seconds is not None]
    passed = sum(outcome.passed for outcome in outcomes)
    return RepeatSummary(
        step,
        goal,
        seeds=len(outcomes),
        failed=len(outcomes) - len(finished),
        pass_rate=statistics.pass_rate(passed, len(outcomes)) if split == "test" else None,
        spread={metric: statistics.spread(column) for metric, column in values.items() if column},
        runs=outcomes,
    )


def caption(summary: RepeatSummary, dataset: Dataset, run_id: str) -> Caption:
    """What identifies the figure of the seeds."""
    finals = [outcome.accuracies[-1] for outcome in summary.runs if outcome.error is None]
    title, details = f"{summary.step}: {len(finals)} of {summary.seeds} seeds", f"run {run_id[:8]}"
    if summary.pass_rate:
        title += f", gate passed by {summary.pass_rate.passed}"
    if finals:
        details = f"{statistics.format_spread(finals)} % of the {dataset.name} {dataset.split} images, {details}"
    return Caption(title, details)


def summary_lines(summary: RepeatSummary) -> str:
    """The summary for the screen: a table of the spread, and the pass rate."""
    rows = [
        {"over the seeds": metric}
        | {
            name: "–" if value is None else f"{value:.2f}"
            for name, value in (("mean", spread.mean), ("std", spread.std), ("min", spread.min), ("max", spread.max))
        }
        for metric, spread in summary.spread.items()
    ]
    return "\n".join([*([columns(rows)] if rows else []), *([str(summary.pass_rate)] if summary.pass_rate else [])])
