"""Numbers to figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.metrics import ConfusionMatrixDisplay


def curves(history: Sequence[Mapping[str, float]], target: float, split: str = "test") -> Figure:
    """Accuracy (percent), with the target line, and loss (nats) against the epoch, for training and `split`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for part in ("train", split):
        accuracy.plot(epochs, [row[f"{part}_accuracy"] for row in history], marker=".", label=part)
        loss.plot(epochs, [row[f"{part}_loss"] for row in history], marker=".", label=part)
    accuracy.axhline(target, color="grey", linestyle="--", label=f"target {target:g} %")
    # The first epochs are far below: from there on the last percent would be one line.
    accuracy.set_ylim(bottom=max(0, min(target, history[-1][f"{split}_accuracy"]) - 3), top=100.1)
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    loss.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def seeds(accuracies: Mapping[int, Sequence[float]], target: float, split: str = "test") -> Figure:
    """Each seed's accuracy (percent) on `split` against the epoch, with the target line."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for seed, values in accuracies.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", alpha=0.8, label=f"seed {seed}")
    axes.axhline(target, color="grey", linestyle="--", label=f"target {target:g} %")
    # The first epoch is far below: from there on the last percent would be one line.
    shown = [target, *(value for values in accuracies.values() for value in values[1:] or values)]
    axes.set_ylim(*_around(shown))
    axes.set(xlabel="epoch", ylabel=f"{split} accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")
    return figure


def steps(
    parameters: Mapping[str, int], accuracies: Mapping[str, Sequence[Sequence[float]]], targets: Sequence[float]
) -> Figure:
    """Steps side by side: parameters against final accuracy, and every seed's curve; accuracies (percent) by step."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
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
            axes.axhline(target, color="grey", linestyle="--", label=f"target {target:g} %")
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
    sizes.set(xscale="log", xlabel="parameters")
    sizes.xaxis.set_major_formatter("{x:,.0f}")
    counts = parameters.values()
    within_a_decade = counts and max(counts) < 10 * min(counts)  # there is one major tick at most
    sizes.xaxis.set_minor_formatter("{x:,.0f}" if within_a_decade else NullFormatter())
    sizes.margins(x=0.15)
    curves.set_xlabel("epoch")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    # The first epochs are far below: with them the last percent would be one line.
    shown = [*targets, *(value for runs in accuracies.values() for run in runs for value in run[len(run) // 2 :])]
    if shown:
        curves.set_ylim(*_around(shown))
        curves.legend()
    return figure


def _around(accuracies: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis (percent) that shows them all."""
    return max(0, min(accuracies) - 0.1), min(100.1, max(accuracies) + 0.1)


def confusion_matrix(counts: np.ndarray) -> Figure:
    """Counts (10, 10), true digits down, predicted digits across."""
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    # The diagonal would drown what is of interest: the colour shows mistakes alone.
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    display = ConfusionMatrixDisplay(counts).plot(ax=axes, cmap="Blues", colorbar=False)
    display.im_.set(data=wrong, clim=(0, max(1, wrong.max())))
    for text, count in zip(display.text_.flat, wrong.flat, strict=True):
        text.set_color("white" if count > wrong.max() / 2 else "black")
    axes.set(xlabel="predicted digit", ylabel="true digit")
    return figure


def mistakes(images: np.ndarray, labels: Sequence[int], guesses: Sequence[int], sureness: Sequence[float]) -> Figure:
    """A sheet of wrongly classified images (uint8 (N, 28, 28)), each with its label, the guess and its probability."""
    titles = [
        f"{label} taken for {guess}\n{probability:.0%}"
        for label, guess, probability in zip(labels, guesses, sureness, strict=True)
    ]
    return sheet(images, titles, "" if titles else "no mistakes")


def sheet(images: np.ndarray, titles: Sequence[str], heading: str = "") -> Figure:
    """Images (uint8 (N, 28, 28)) in rows of eight, each with its title."""
    columns, rows = 8, max(1, -(-len(images) // 8))
    figure = Figure(figsize=(columns * 1.2, rows * 1.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False)
    for axes in places.flat:
        axes.axis("off")
    for axes, image, title in zip(places.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(_drawable(title), fontsize=7, parse_math=False)
    if heading:
        figure.suptitle(heading)
    return figure


def _drawable(text: str) -> str:
    """The text with a ? for what the font does not have: matplotlib would warn of each, and draw a box."""
    font = get_font(findfont(FontProperties()))
    return "".join(character if character == "\n" or font.get_char_index(ord(character)) else "?" for character in text)
