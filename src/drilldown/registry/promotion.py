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

    def wrong_by_class(self, labels: np.ndarray) -> list[int]:
        """How many images of each true class it classifies wrongly (10)."""
        counts: list[int] = np.bincount(labels[self.predictions != labels], minlength=10).tolist()
        return counts


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


FIRST = Decision(True, "there was no champion before")


def decide(challenger: Candidate, champion: Candidate, labels: np.ndarray) -> Decision:
    """Promote the challenger if it is significantly better, or if it is smaller and not significantly worse.

    By McNemar's exact test, two-sided, at the level ALPHA. `labels` are the true classes (N,).
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
    """The answers of the two models in tables, by rows: right and wrong, if there are two; wrong answers by class."""
    both: list[dict[str, object]] = []
    if champion:
        right, wrong = f"version {champion.version} right", f"version {champion.version} wrong"
        for answered, of_right, of_wrong in (
            ("right", decision.both_right, decision.challenger_alone),
            ("wrong", decision.champion_alone, decision.both_wrong),
        ):
            heading = {"test images": f"version {challenger.version} {answered}"}
            both.append(heading | {right: of_right, wrong: of_wrong})
    by_class: list[dict[str, object]] = []
    for model in filter(None, (challenger, champion)):
        counts = model.wrong_by_class(labels)
        classes = {str(label): count for label, count in enumerate(counts)}
        by_class.append({"wrong answers by true class": f"version {model.version}", **classes, "all": sum(counts)})
    return [rows for rows in (both, by_class) if rows]
