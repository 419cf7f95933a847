"""Reports in words: on the screen and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from drilldown.learning.recipe import Goal
from drilldown.reporting.gate import Verdict
from drilldown.reporting.statistics import summarize

if TYPE_CHECKING:  # imports PyTorch
    from drilldown.learning.train import EpochMetrics

SECTIONS = ("Target", "Result", "Analysis", "Run")


def sections(docstring: str) -> dict[str, str]:
    """Split a step's docstring by the headings of SECTIONS that it has; "Title" is its first line."""
    title, *paragraphs = docstring.strip().split("\n\n")
    parts = (paragraph.partition(":") for paragraph in paragraphs)
    found = {heading.strip(): " ".join(text.split()) for heading, _, text in parts}
    return {"Title": title} | {heading: found[heading] for heading in SECTIONS if heading in found}


def epoch_line(row: EpochMetrics, epochs: int, split: str) -> str:
    """One epoch in one line, for the screen."""
    return (
        f"epoch {row.epoch:2d}/{epochs}  train {row.train_accuracy:6.2f} %  "
        f"{split} {row.eval_accuracy:6.2f} %  loss {row.eval_loss:.4f}  {row.epoch_seconds:5.1f} s"
    )


def epoch_of(line: str) -> int | None:
    """The epoch that a line of `epoch_line` is about; None for another line."""
    found = re.match(r"epoch +(\d+)/", line)
    return int(found[1]) if found else None


def verdict_lines(verdict: Verdict) -> str:
    """The verdict and its reasons, one per line, for the screen."""
    return "\n".join([f"gate {'passed' if verdict.passed else 'failed'}:", *(f"  {why}" for why in verdict.reasons)])


def markdown(
    docstring: str, seed: int, history: Sequence[EpochMetrics], verdict: Verdict, goal: Goal, split: str
) -> str:
    """The report of one run: its result, between the target and the analysis of the docstring, if it has them."""
    texts = sections(docstring)
    accuracies = [row.eval_accuracy for row in history]
    summary = summarize(accuracies, goal)
    last = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies[-goal.last :])
    target, analysis = texts.get("Target"), texts.get("Analysis")
    return "\n\n".join(
        [
            f"# {texts['Title'] or 'A training'}",
            *([f"**Target.** {target}"] if target else []),
            f"**Result of this run** (seed {seed}). Accuracy after {len(history)} epochs: {summary.final_accuracy:.2f} "
            f"% of the {split} images. The last epochs: {last} %. "
            f"Epochs at or above {goal.accuracy:g} %: {summary.epochs_at_target}.",
            f"**Gate {'passed' if verdict.passed else 'failed'}.** {'; '.join(verdict.reasons)}",
            *([f"**Analysis of the step.** {analysis}"] if analysis else []),
        ]
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same headings as a Markdown table."""
    lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([written[0], "|---" * len(rows[0]) + "|", *written[1:]]) + "\n"


def columns(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same headings as aligned columns, for the screen; a column with figures is aligned on the right."""
    cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = [">" if any(map(_is_figure, column)) else "<" for column in zip(*cells[1:], strict=True)]
    lines = (
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, aligns, widths, strict=True))
        for line in cells
    )
    return "\n".join(map(str.rstrip, lines))


def _is_figure(cell: str) -> bool:
    return cell != "" and not re.search(r"[^\W\d]", cell.replace(" of ", ""))  # no letter
