"""Figures. Matplotlib is imported in the functions, as it takes a second to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from drilldown.learning.train import EpochMetrics


def curves(history: Sequence[EpochMetrics], target: float, split: str = "test") -> Figure:
    """Accuracy (percent, with the target) and loss (nats) of one run on `train` and `split` against the epoch."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = _figure(10, 4)
    accuracy, loss = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    accuracy.plot(epochs, [row.train_accuracy for row in history], marker=".", label="train")
    accuracy.plot(epochs, [row.eval_accuracy for row in history], marker=".", label=split)
    loss.plot(epochs, [row.train_loss for row in history], marker=".", label="train")
    loss.plot(epochs, [row.eval_loss for row in history], marker=".", label=split)
    _draw_target(accuracy, target)
    # The first epochs are far below; an axis that shows them would hide the last percent.
    accuracy.set_ylim(bottom=max(0, min(target, history[-1].eval_accuracy) - 3), top=100.1)
    accuracy.set(ylabel="accuracy (%)")
    loss.set(ylabel="loss (nats)", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        _label_epochs(axes)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def seeds(accuracies: Mapping[int, Sequence[float]], target: float, split: str = "test") -> Figure:
    """Accuracy (percent) of each seed on `split` against the epoch, with the target."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    for seed, values in accuracies.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", alpha=0.8, label=f"seed {seed}")
    _draw_target(axes, target)
    # The first epoch is far below; an axis that shows it would hide the last percent.
    axes.set_ylim(*_limits([target, *(value for values in accuracies.values() for value in values[1:] or values)]))
    axes.set(ylabel=f"{split} accuracy (%)")
    _label_epochs(axes)
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")
    return figure


def steps(
    parameters: Mapping[str, int], accuracies: Mapping[str, Sequence[Sequence[float]]], targets: Sequence[float]
) -> Figure:
    """Final accuracy against parameters, and accuracy against the epoch, for every step.

    `accuracies` holds the runs of each step: test accuracies in percent, one per epoch.
    """
    from matplotlib.ticker import NullFormatter

    figure = _figure(12, 4.5)
    sizes, curves = figure.subplots(1, 2)
    for number, (step, runs) in enumerate(accuracies.items()):
        finals = [run[-1] for run in runs]
        color = f"C{number}"
        sizes.plot([parameters[step]] * len(finals), finals, "o", color=color, alpha=0.6, label=step)
        sizes.annotate(step, (parameters[step], np.mean(finals)), (8, 0), textcoords="offset points", va="center")
        for index, run in enumerate(runs):
            label = f"{step} (n = {len(runs)})" if index == 0 else None
            curves.plot(range(1, len(run) + 1), run, color=color, alpha=0.7, label=label)
    for axes in (sizes, curves):
        for target in targets:
            _draw_target(axes, target)
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
    sizes.set(xscale="log", xlabel="parameters")
    sizes.xaxis.set_major_formatter("{x:,.0f}")
    counts = parameters.values()
    within_a_decade = counts and max(counts) < 10 * min(counts)  # then the axis has at most one major tick
    sizes.xaxis.set_minor_formatter("{x:,.0f}" if within_a_decade else NullFormatter())
    sizes.margins(x=0.15)
    _label_epochs(curves)
    # The first half is far below; an axis that shows it would hide the last percent.
    shown = [*targets, *(value for runs in accuracies.values() for run in runs for value in run[len(run) // 2 :])]
    if shown:
        curves.set_ylim(*_limits(shown))
        curves.legend()
    return figure


def confusion_matrix(counts: NDArray[Any]) -> Figure:
    """Confusion matrix from counts (10, 10): true digits down, predicted digits across."""
    from sklearn.metrics import ConfusionMatrixDisplay

    figure = _figure(6, 5.5)
    axes = figure.subplots()
    # The diagonal is a hundred times larger than the rest, so the color shows the mistakes only.
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    display = ConfusionMatrixDisplay(counts).plot(ax=axes, cmap="Blues", colorbar=False)
    display.im_.set(data=wrong, clim=(0, max(1, wrong.max())))
    for text, count in zip(display.text_.flat, wrong.flat, strict=True):
        text.set_color("white" if count > wrong.max() / 2 else "black")
    axes.set(xlabel="predicted digit", ylabel="true digit")
    return figure


def mistakes(
    images: NDArray[np.uint8], labels: Sequence[int], predictions: Sequence[int], probabilities: Sequence[float]
) -> Figure:
    """Misclassified images (uint8 (N, 28, 28)), each with its label, the prediction and its probability."""
    titles = [
        f"{label} taken for {prediction}\n{probability:.0%}"
        for label, prediction, probability in zip(labels, predictions, probabilities, strict=True)
    ]
    return sheet(images, titles, "" if titles else "no mistakes")


def sheet(images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], titles: Sequence[str], heading: str = "") -> Figure:
    """Contact sheet: images (uint8 (N, 28, 28)) in rows of eight, each with its title."""
    columns, rows = 8, max(1, -(-len(images) // 8))
    figure = _figure(columns * 1.2, rows * 1.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(_replace_missing_glyphs(title), fontsize=7, parse_math=False)
    if heading:
        figure.suptitle(heading)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure of this size (inches)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw_target(axes: Axes, target: float) -> None:
    axes.axhline(target, color="grey", linestyle="--", label=f"target {target:g} %")


def _label_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _limits(accuracies: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis (percent) that shows all the accuracies."""
    return max(0, min(accuracies) - 0.1), min(100.1, max(accuracies) + 0.1)


def _replace_missing_glyphs(text: str) -> str:
    """Replace each character that the font lacks with "?"; Matplotlib would warn and draw a box."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(character if character == "\n" or font.get_char_index(ord(character)) else "?" for character in text)
