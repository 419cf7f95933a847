"""Promotion: compare a challenger with the champion on the same test images, and decide; pure."""

from dataclasses import dataclass

import numpy as np

from drilldown.reporting.statistics import mcnemar_p

ALPHA = 0.05


@dataclass(frozen=True)
class Candidate:
    """A version of a registered model, with its predictions for the test images."""

    version: str
    parameters: int
    predictions: np.ndarray  # int (N,)


@dataclass(frozen=True)
class Decision:
    """Whether the challenger replaces the champion, and why; with counts of test images."""

    promoted: bool
    reason: str
    p: float | None = None  # None without a comparison
    both_right: int = 0
    challenger_alone: int = 0  # only the challenger is right
    champion_alone: int = 0
    both_wrong: int = 0


FIRST = Decision(True, "there was no champion")


def decide(challenger: Candidate, champion: Candidate, labels: np.ndarray) -> Decision:
    """Promote the challenger if it is significantly better, or if it is smaller and not significantly worse.

    By McNemar's exact test, two-sided, at the level ALPHA. `labels` are the true digits (N,).
    """
    challenger_right, champion_right = challenger.predictions == labels, champion.predictions == labels
    challenger_alone = int((challenger_right & ~champion_right).sum())
    champion_alone = int((champion_right & ~challenger_right).sum())
    p = mcnemar_p(challenger_alone, champion_alone)
    rival = f"version {champion.version}"
    sizes = f"{challenger.parameters:,} parameters to {champion.parameters:,}"
    counts = f"alone right on {challenger_alone} images, the champion on {champion_alone}"
    figures = f"{counts}; exact McNemar test, p = {p:.2g}"
    if p < ALPHA and challenger_alone > champion_alone:
        promoted, reason = True, f"significantly better than {rival} ({figures})"
    elif p < ALPHA:
        promoted, reason = False, f"significantly worse than {rival} ({figures})"
    elif challenger.parameters < champion.parameters:
        promoted, reason = True, f"not significantly worse than {rival} ({figures}), and smaller: {sizes}"
    else:
        promoted, reason = False, f"not significantly better than {rival} ({figures}), and not smaller: {sizes}"
    return Decision(
        promoted,
        reason,
        p,
        both_right=int((challenger_right & champion_right).sum()),
        challenger_alone=challenger_alone,
        champion_alone=champion_alone,
        both_wrong=int((~challenger_right & ~champion_right).sum()),
    )


def tables(
    challenger: Candidate, champion: Candidate | None, labels: np.ndarray, decision: Decision
) -> list[list[dict[str, object]]]:
    """The answers of the two models in tables, by rows: right and wrong, if there are two; wrong answers by digit."""
    both: list[dict[str, object]] = []
    if champion:
        right, wrong = f"version {champion.version} right", f"version {champion.version} wrong"
        for answered, of_right, of_wrong in (
            ("right", decision.both_right, decision.challenger_alone),
            ("wrong", decision.champion_alone, decision.both_wrong),
        ):
            heading = {"test images": f"version {challenger.version} {answered}"}
            both.append(heading | {right: of_right, wrong: of_wrong})
    by_digit: list[dict[str, object]] = []
    for model in filter(None, (challenger, champion)):
        counts = np.bincount(labels[model.predictions != labels], minlength=10)
        digits = {str(digit): count for digit, count in enumerate(counts)}
        by_digit.append({"wrong answers by true digit": f"version {model.version}", **digits, "all": counts.sum()})
    return [rows for rows in (both, by_digit) if rows]
