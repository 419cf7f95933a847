"""The confirmation of a search: candidates against the step's own recipe, over fresh seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from drilldown.experiments.nested import Outcome
from drilldown.learning.recipe import Goal, Recipe
from drilldown.reporting.statistics import format_spread, holm, paired_p, summarize

LEVEL = 0.05  # of the test, fixed before the search
OWN = 0  # the trial with the step's own recipe


@dataclass(frozen=True)
class Confirmation:
    """A candidate against the step's own recipe: the lowest of the last accuracies, in percent, by seed."""

    trial: int
    runs: tuple[str, ...]
    values: tuple[float, ...]
    own: tuple[float, ...]
    p: float  # adjusted for the number of candidates
    failed: str = ""  # the error of a run

    @property
    def difference(self) -> float:
        """By how many points the candidate is better, in the mean."""
        return mean(self.values) - mean(self.own) if self.values else 0.0

    @property
    def is_recommended(self) -> bool:
        """Whether the candidate is better by the rule."""
        return not self.failed and self.difference > 0 and self.p < LEVEL

    def row(self) -> dict[str, str]:
        """A row of the table of the candidates."""
        verdict = "recommended" if self.is_recommended else "failed" if self.failed else "not shown to be better"
        return {
            "trial": str(self.trial),
            "lowest of the last (%)": format_spread(self.values) if self.values else "–",
            "step's own (%)": format_spread(self.own) if self.own else "–",
            "better by": f"{self.difference:+.3f}" if self.values else "–",
            "seeds": str(len(self.values)),
            "p (Holm)": f"{self.p:.3g}",
            "verdict": verdict,
        }


def judge(outcomes: Sequence[Outcome], candidates: Sequence[int], goal: Goal) -> list[Confirmation]:
    """Compare each candidate with trial 0, the step's own recipe, by the seeds that both have finished.

    A candidate is recommended if its mean is higher, and the paired t-test, adjusted by Holm's method for the number of
    candidates, has p < 0.05. A candidate with a run that failed is not.
    """
    by_trial: dict[int | None, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_trial.setdefault(outcome.trial, {})[outcome.seed] = outcome
    own = _values(by_trial.get(OWN, {}), goal)
    pairs = {}
    for trial in candidates:
        of_trial = _values(by_trial.get(trial, {}), goal)
        seeds = sorted(of_trial.keys() & own.keys())
        pairs[trial] = [of_trial[seed] for seed in seeds], [own[seed] for seed in seeds]
    p_values = holm([paired_p(*pair) for pair in pairs.values()])
    found = []
    for (trial, (values, of_own)), p in zip(pairs.items(), p_values, strict=True):
        runs = by_trial.get(trial, {}).values()
        error = next((run.error for run in runs if run.error), "")
        found.append(Confirmation(trial, tuple(run.run_id for run in runs), tuple(values), tuple(of_own), p, error))
    return found


def _values(outcomes: Mapping[int, Outcome], goal: Goal) -> dict[int, float]:
    """What counts, by seed, of the runs that did not fail."""
    return {
        seed: summarize(outcome.accuracies, goal).min_accuracy_last_k
        for seed, outcome in outcomes.items()
        if outcome.error is None
    }


def best(confirmations: Sequence[Confirmation]) -> Confirmation | None:
    """The recommended candidate with the largest difference, if any is recommended."""
    recommended = [found for found in confirmations if found.is_recommended]
    return max(recommended, key=lambda found: found.difference, default=None)


def verdict(confirmations: Sequence[Confirmation]) -> str:
    """The result in a sentence."""
    found = best(confirmations)
    if found is None:
        return "recommended: the step's own recipe, because no candidate was shown to be better"
    return (
        f"recommended: trial {found.trial}, better than the step's own recipe by {found.difference:.3f} points over "
        f"{len(found.values)} seeds (p = {found.p:.3g}, Holm)"
    )


def source(recipe: Recipe, network: Mapping[str, Any], comment: str) -> str:
    """The recipe as it stands in a step's file, below a comment."""
    defaults = asdict(Recipe())
    lines = [*textwrap.wrap(comment, 118, initial_indent="# ", subsequent_indent="# "), "RECIPE = Recipe("]
    written = {name: f'"{value}"' if isinstance(value, str) else repr(value) for name, value in asdict(recipe).items()}
    lines += [f"    {name}={value}," for name, value in written.items() if getattr(recipe, name) != defaults[name]]
    lines.append(")")
    if network:
        lines.append(f"# Defaults of Network's arguments: {', '.join(f'{k}={v!r}' for k, v in network.items())}")
    return "\n".join(lines) + "\n"
