"""Which of two models serves? Decided on the same test images, paired; pure."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from src.lifecycle import report

ALPHA = 0.05


@dataclass(frozen=True)
class Candidate:
    """A version of a registered model, and what it said of the test images."""

    version: str
    parameters: int
    predictions: np.ndarray  # int (N,)


@dataclass(frozen=True)
class Decision:
    """Does the challenger replace the champion, and why?"""

    promoted: bool
    reason: str
    p: float | None = None  # None where there was no champion to compare with
    both_right: int = 0  # images
    challenger_alone: int = 0  # right
    champion_alone: int = 0
    both_wrong: int = 0


FIRST = Decision(True, "there was no champion")


def decide(challenger: Candidate, champion: Candidate, labels: np.ndarray) -> Decision:
    """Let the challenger win when it is significantly better, or not significantly worse and smaller.

    By the exact test of McNemar (1947), two-sided: of the images that one model alone gets right, each would get half
    if the two were equally good. `labels` are the true digits (N,).
    """
    right, rival = challenger.predictions == labels, champion.predictions == labels
    alone, rival_alone = int((right & ~rival).sum()), int((~right & rival).sum())
    p = float(binomtest(alone, alone + rival_alone).pvalue) if alone + rival_alone else 1.0
    sizes = f"{challenger.parameters:,} parameters to {champion.parameters:,}"
    figures = f"alone right on {alone} images, the champion on {rival_alone}; exact McNemar test, p = {p:.2g}"
    if p < ALPHA and alone > rival_alone:
        promoted, reason = True, f"significantly better than version {champion.version} ({figures})"
    elif p < ALPHA:
        promoted, reason = False, f"significantly worse than version {champion.version} ({figures})"
    elif challenger.parameters < champion.parameters:
        promoted = True
        reason = f"not significantly worse than version {champion.version} ({figures}), and smaller: {sizes}"
    else:
        promoted = False
        reason = f"not significantly better than version {champion.version} ({figures}), and not smaller: {sizes}"
    return Decision(promoted, reason, p, int((right & rival).sum()), alone, rival_alone, int((~right & ~rival).sum()))


def markdown(
    challenger: Candidate, champion: Candidate | None, labels: np.ndarray, decision: Decision, promoted: bool
) -> str:
    """The decision with its tables, in words for people; what was `promoted` against it was so by force."""
    verdict = "Not promoted" if not promoted else "Promoted" if decision.promoted else "Promoted by force"
    parts = [f"**{verdict}**: {decision.reason}.\n"]
    if champion:
        right, wrong = (f"version {champion.version} {was}" for was in ("right", "wrong"))
        counts = {
            "right": (decision.both_right, decision.challenger_alone),
            "wrong": (decision.champion_alone, decision.both_wrong),
        }
        rows = [
            {"test images": f"version {challenger.version} {was}", right: with_right, wrong: with_wrong}
            for was, (with_right, with_wrong) in counts.items()
        ]
        parts.append(report.table(rows))
    rows = []
    for model in (challenger, *([champion] if champion else [])):
        wrong = np.bincount(labels[model.predictions != labels], minlength=10)
        by_digit = {str(digit): count for digit, count in enumerate(wrong)}
        rows.append({"wrong answers by true digit": f"version {model.version}"} | by_digit | {"all": wrong.sum()})
    return "\n".join([*parts, report.table(rows)])
