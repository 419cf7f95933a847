"""Runs in words: what a step was after, what came out, what it means."""

from collections.abc import Mapping, Sequence
from types import ModuleType

from src.learning.recipe import Target
from src.lifecycle.gate import Verdict

SECTIONS = ("Target", "Result", "Analysis", "Run")


def sections(step: ModuleType) -> dict[str, str]:
    """A step's docstring by its headings, and under "Title" its first line."""
    title, *paragraphs = step.__doc__.strip().split("\n\n")
    parts = (paragraph.partition(":") for paragraph in paragraphs)
    return {"Title": title} | {heading.strip(): " ".join(text.split()) for heading, _, text in parts}


def epoch_line(row: Mapping[str, float], epochs: int, split: str) -> str:
    """An epoch in one line, for the screen."""
    return (
        f"epoch {row['epoch']:2d}/{epochs}  train {row['train_accuracy']:6.2f} %  "
        f"{split} {row[f'{split}_accuracy']:6.2f} %  loss {row[f'{split}_loss']:.4f}  {row['epoch_seconds']:5.1f} s"
    )


def verdict_lines(verdict: Verdict) -> str:
    """The verdict in one line, and each reason in one of its own."""
    return "\n".join([f"gate {'passed' if verdict.passed else 'failed'}:", *(f"  {why}" for why in verdict.reasons)])


def markdown(
    step: ModuleType, seed: int, history: Sequence[Mapping[str, float]], verdict: Verdict, target: Target, split: str
) -> str:
    """The report of one run: the step's target and analysis around this run's own result."""
    texts = sections(step)
    accuracies = [row[f"{split}_accuracy"] for row in history]
    last = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies[-target.last :])
    at_target = sum(accuracy >= target.accuracy for accuracy in accuracies)
    return "\n\n".join(
        [
            f"# {texts['Title']}",
            f"**Target.** {texts['Target']}",
            f"**Result of this run** (seed {seed}). Right after {len(history)} epochs: {accuracies[-1]:.2f} % of the "
            f"{split} images. The last epochs: {last} %. Epochs at or above {target.accuracy:g} %: {at_target}.",
            f"**Gate {'passed' if verdict.passed else 'failed'}.** {'; '.join(verdict.reasons)}",
            f"**Analysis of the step.** {texts['Analysis']}",
        ]
    )


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same headings, as Markdown."""
    lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
