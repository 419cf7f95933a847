"""Figures. Each has a caption that identifies it after a download, too.

A figure is as wide as a page of text, and its letters are large enough for a phone. Matplotlib is imported in the
functions, as it takes a second to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ParamSpec
from zlib import crc32

import numpy as np

from drilldown.reporting import statistics
from drilldown.reporting.statistics import format_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from drilldown.learning.train import EpochMetrics

P = ParamSpec("P")

WIDTH, HEADING, DPI = 5.8, 0.56, 144  # inches of a figure and of its caption, dots per inch: 835 pixels wide
CLASS_NAME_WIDTH = 90  # points; a longer name of a class is cut
INK, GREY, PALE = "#222222", "#666666", "#dddddd"
# Okabe and Ito's colors (2008), which the color-blind can tell apart; without the yellow, which is too pale on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "os^Dv*"  # six, and there are seven colors: 42 pairs
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.spines.right": False,  # so no curve lies on the frame
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 10,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "text.color": INK,
}
STRETCHED_ABOVE = 90  # percent
ROUND = np.array([digit * 10.0**power for digit in (1, 5, 2, 3, 4, 6, 7, 8, 9, 1.5) for power in range(-9, 3)])


@dataclass(frozen=True)
class Caption:
    """The two lines above a figure: what it shows, and its run."""

    title: str
    details: str


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw in the style of this module."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@_styled
def curves(history: Sequence[EpochMetrics], target: float, caption: Caption, split: str = "test") -> Figure:
    """Accuracy (percent, with the target) and loss (nats) of one run on `train` and `split` against the epoch."""
    figure = _figure(5.8, caption)
    accuracy, loss = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    for axes, what in ((accuracy, "accuracy"), (loss, "loss")):
        _draw_line(axes, [getattr(row, f"train_{what}") for row in history], "train", color=COLORS[1], marker="s")
        _draw_line(axes, [getattr(row, f"eval_{what}") for row in history], split, color=COLORS[0], marker="o")
    _scale_accuracies(accuracy, [a for row in history for a in (row.train_accuracy, row.eval_accuracy)], [target])
    accuracy.set_title(f"Accuracy (%){_stretched(accuracy)}")
    _scale_losses(loss, [value for row in history for value in (row.train_loss, row.eval_loss)])
    loss.set_title("Loss (nats), on a logarithmic axis")
    _label_epochs(loss, len(history))
    _draw_legend(figure, accuracy)
    return figure


@_styled
def seeds(
    accuracies: Mapping[int, Sequence[float]], target: float, caption: Caption, split: str = "test", last: int = 5
) -> Figure:
    """Accuracy (percent) on `split` against the epoch: range and median of the seeds, and the worst seed.

    The worst seed is the one with the lowest accuracy in the `last` epochs, by which the gate judges.
    """
    figure = _figure(4.1, caption)
    axes = figure.subplots()
    runs = list(accuracies.values())
    if len(runs) == 1:
        _draw_line(axes, runs[0], f"seed {next(iter(accuracies))}", color=COLORS[0], marker="o")
    elif runs:
        _draw_band(axes, runs, f"range of {len(runs)} seeds", "median", color=COLORS[0], marker="o")
        worst = min(accuracies, key=lambda seed: min(accuracies[seed][-last:]))
        judged = len(accuracies[worst][-last:])
        label = f"seed {worst}, lowest in last {judged} epochs" if judged > 1 else f"seed {worst}, the lowest"
        _draw_line(axes, accuracies[worst], label, color=COLORS[3], marker="v", linestyle=":")
    _scale_accuracies(axes, [value for run in runs for value in run], [target])
    axes.set_title(f"{split.capitalize()} accuracy (%){_stretched(axes)}")
    _label_epochs(axes, max(map(len, runs), default=1))
    _draw_legend(figure, axes)
    return figure


@_styled
def steps(
    parameters: Mapping[str, int],
    accuracies: Mapping[str, Sequence[Sequence[float]]],
    targets: Sequence[float],
    caption: Caption,
) -> Figure:
    """Final accuracy against parameters, and accuracy against the epoch, for every step.

    `accuracies` holds the runs of each step: test accuracies in percent, one per epoch.
    """
    figure = _figure(7.6, caption)
    sizes, curves = figure.subplots(2, 1)
    looks = _looks(accuracies)
    for step, runs in accuracies.items():
        label = f"{step} ({len(runs)} seeds)" if len(runs) > 1 else step
        at = [parameters[step]] * len(runs)
        sizes.plot(at, _finals(runs), linestyle="none", markersize=7, alpha=0.7, label=label, **looks[step])
        _draw_band(curves, runs, **looks[step])
    every_run = [run for runs in accuracies.values() for run in runs]
    _scale_accuracies(sizes, _finals(every_run), targets)
    sizes.set_title(f"Test accuracy (%) after the last epoch{_stretched(sizes)}")
    decades = np.log10([*parameters.values()] or [1000])
    sizes.set(xlabel="parameters", xscale="log")
    sizes.set_xlim(10 ** np.floor(decades.min() - 0.1), 10 ** np.ceil(decades.max() + 0.1))
    sizes.xaxis.set_major_formatter("{x:,.0f}")
    _scale_accuracies(curves, [value for run in every_run for value in run], targets)
    curves.set_title(f"Test accuracy (%) of each epoch{_stretched(curves)}")
    _label_epochs(curves, max(map(len, every_run), default=1))
    curves.set_xlabel("epoch; a line is the median of a step's seeds, a band their range")
    _draw_legend(figure, sizes)
    return figure


@_styled
def confusion_matrix(counts: NDArray[Any], caption: Caption, classes: Sequence[str] = "0123456789") -> Figure:
    """Confusion matrix from counts (10, 10): true classes down, predicted ones across. Colors show mistakes only.

    With fewer than ten classes it shows those, and whatever else was predicted.
    """
    size = max(len(classes), *(int(axis.max()) + 1 for axis in counts.nonzero()))
    counts, names = counts[:size, :size], [*classes, *map(str, range(len(classes), size))]
    is_named = any(len(name) > 1 for name in names)
    figure = _figure(6.3 if is_named else 5.1, caption)
    axes = figure.subplots()
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    most = max(1, wrong.max())
    axes.imshow(np.ma.masked_equal(wrong, 0), cmap="YlOrRd", vmin=0, vmax=1.25 * most, aspect="auto")
    for row, column in np.argwhere(counts):
        color = GREY if row == column else "white" if wrong[row, column] > 0.7 * most else INK
        axes.text(column, row, str(counts[row, column]), color=color, ha="center", va="center")
    places, borders = range(len(counts)), np.arange(len(counts) + 1) - 0.5
    kind = "class" if is_named else "digit"
    axes.set(xlabel=f"predicted {kind}", ylabel=f"true {kind}")
    texts = [_fit(name, CLASS_NAME_WIDTH, 10) for name in names]
    axes.set_yticks(places, texts, parse_math=False)
    axes.set_xticks(places, texts, parse_math=False, rotation=90 if is_named else 0)
    axes.set_title(f"{wrong.sum():,} mistakes in {counts.sum():,} images: the darker, the more")
    axes.set_xticks(borders, minor=True)
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


def mistakes(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    predictions: Sequence[str],
    probabilities: Sequence[float],
    caption: Caption,
) -> Figure:
    """Misclassified images (uint8 (N, 28, 28)), each with its class, the prediction and the probability."""
    long = max(map(len, [*labels, *predictions]), default=0) > 3  # then both do not fit into one line
    form = "{} →\n{}\n{}" if long else "{} → {}\n{}"
    texts = [
        form.format(label, prediction, format_probability(probability))
        for label, prediction, probability in zip(labels, predictions, probabilities, strict=True)
    ]
    return sheet(images, texts, caption, columns=6 if long else 8)


@_styled
def sheet(images: NDArray[np.uint8], texts: Sequence[str], caption: Caption, columns: int = 6) -> Figure:
    """Contact sheet: images (uint8 (N, 28, 28)), each with a text of a few lines below it."""
    rows = max(1, -(-len(images) // columns))
    lines = max([2, *(text.count("\n") + 1 for text in texts)])
    # In pixels of the images, which are smaller the more columns there are.
    gap, text_height = 3, round(1.15 * lines * columns)
    height, width = 28 + gap + text_height, 28 + 2 * gap
    inches = WIDTH / (columns * width)  # per pixel
    mosaic = np.zeros((rows, height, columns, width), np.uint8)  # one picture is drawn faster than many
    figure = _figure(rows * height * inches, caption)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1 - HEADING / figure.get_figheight()))
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(place, columns)
        mosaic[row, gap : gap + 28, column, gap : gap + 28] = image
        text = "\n".join(_fit(line, 72 * inches * (width - 1), 9, keep_end=True) for line in text.split("\n"))
        x, y = (column + 0.5) * width, row * height + gap + 28 + 1.5
        axes.text(x, y, text, ha="center", va="top", size=9, parse_math=False)
    axes.imshow(mosaic.reshape(rows * height, -1), cmap="gray_r", vmin=0, vmax=255, aspect="auto")
    axes.axis("off")
    return figure


@_styled
def reliability(confidences: NDArray[Any], right: NDArray[Any], caption: Caption) -> Figure:
    """Reliability diagram: the share of right answers against their probability (N,), and how many have it."""
    found = statistics.reliability(confidences, right)
    figure = _figure(5.8, caption)
    shares, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    width = float(found.edges[1])
    middles = found.edges[:-1] + width / 2
    shares.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="ideal")
    shares.bar(middles, found.shares, 0.9 * width, color=COLORS[5], label="right answers")
    shares.plot(found.confidences, found.shares, "o", color=COLORS[0], label="mean probability")
    shares.set(xlim=(0, 1), ylim=(0, 1.02))
    shares.set_title(f"Share of right answers; expected calibration error {found.error:.4f}")
    counts.bar(middles, found.counts, 0.9 * width, color=COLORS[0])
    counts.set(yscale="symlog", xlabel="probability of the answer", ylim=(0, 2 * max(1, found.counts.max())))
    counts.set_title("Answers, on a logarithmic axis")
    for axes in (shares, counts):
        axes.grid(color=PALE, linewidth=0.6)
    _draw_legend(figure, shares)
    return figure


@dataclass(frozen=True)
class Cell:
    """What the sheet of answers shows of one picture."""

    picture: NDArray[np.uint8] | None  # (CELL, CELL), or None where it cannot be read
    frame: NDArray[np.uint8] | None  # (28, 28), or None where it is refused
    text: str  # a few lines
    mark: str = ""  # "unsure" or "refused": the color


CELL = 84  # side of a picture on the sheet of answers, in pixels
CELL_TEXT = 24  # characters of a line below it
MARKS = {"": INK, "unsure": "#9A6700", "refused": "#B3261E"}  # dark enough to be read on white


@_styled
def answers(cells: Sequence[Cell], caption: Caption, columns: int = 4) -> Figure:
    """Contact sheet of answers: each picture, what the model saw of it, and a text; in color where it has a mark."""
    from matplotlib.patches import Rectangle

    rows, gap, lines = max(1, -(-len(cells) // columns)), 6, 3
    width, text_height = 2 * CELL + 3 * gap, 18 * lines
    height = CELL + 2 * gap + text_height
    inches = WIDTH / (columns * width)  # per pixel
    mosaic = np.full((rows * height, columns * width), 255, np.uint8)
    figure = _figure(rows * height * inches, caption)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1 - HEADING / figure.get_figheight()))
    for place, cell in enumerate(cells):
        top, left = (place // columns) * height + gap, (place % columns) * width + gap
        if cell.picture is not None:
            mosaic[top : top + CELL, left : left + CELL] = cell.picture
        if cell.frame is not None:
            large = np.kron(cell.frame, np.ones((CELL // 28, CELL // 28), np.uint8))
            mosaic[top : top + CELL, left + CELL + gap : left + 2 * CELL + gap] = 255 - large
        color = MARKS[cell.mark]
        for start in (left, left + CELL + gap):
            edge, wide = (color, 1.5) if cell.mark else (PALE, 0.8)
            axes.add_patch(Rectangle((start - 0.5, top - 0.5), CELL, CELL, fill=False, edgecolor=edge, linewidth=wide))
        text = "\n".join(_fit(line, 72 * inches * (width - gap), 8) for line in cell.text.split("\n")[:lines])
        axes.text(left - 1, top + CELL + 3, text, va="top", size=8, color=color, parse_math=False)
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, aspect="auto")
    axes.axis("off")
    return figure


def _figure(height: float, caption: Caption) -> Figure:
    """A figure with its caption, and this height (inches) below it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    whole = height + HEADING
    figure = Figure(figsize=(WIDTH, whole), dpi=DPI, layout=ConstrainedLayoutEngine(rect=(0, 0, 0.99, height / whole)))
    width = 72 * WIDTH - 10
    title, details = _fit(caption.title, width, 11, "bold"), _fit(caption.details, width, 10)
    figure.text(0.012, 1 - 0.08 / whole, title, va="top", size=11, weight="bold", parse_math=False)
    figure.text(0.012, 1 - 0.34 / whole, details, va="top", size=10, color=GREY, parse_math=False)
    return figure


def _looks(steps: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and marker of each step; they follow from its name, so they are the same in every figure.

    Only if two names of one figure come to the same pair, the second one takes the next.
    """
    looks: dict[str, dict[str, Any]] = {}
    for step in steps:
        is_numbered = step.startswith("step") and step[4:].isdecimal()
        count, reserved = len(COLORS) * len(MARKERS), len(COLORS)  # pairs; the first of them are for numbered steps
        first = int(step[4:]) - 1 if is_numbered else reserved + crc32(step.encode()) % (count - reserved)
        pairs = [
            {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            for number in range(first, first + count)
        ]
        looks[step] = next((pair for pair in pairs if pair not in looks.values()), pairs[0])
    return looks


def _finals(runs: Sequence[Sequence[float]]) -> list[float]:
    return [run[-1] for run in runs]


def _draw_line(axes: Axes, values: Sequence[float] | NDArray[Any], label: str | None, **look: Any) -> None:
    """Draw a value per epoch. A marker on the edge, as at 100 %, is drawn whole."""
    axes.plot(range(1, len(values) + 1), values, label=label, clip_on=False, **look)


def _draw_band(
    axes: Axes, runs: Sequence[Sequence[float]], label: str | None = None, median: str | None = None, **look: Any
) -> None:
    """Draw the range of the runs at each epoch, and their median."""
    values = np.array([*zip_longest(*runs, fillvalue=np.nan)])  # (epochs, runs)
    low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
    band = {"color": look["color"], "alpha": 0.2}
    axes.fill_between(range(1, len(values) + 1), low, high, linewidth=0, label=label, **band)
    if len(values) == 1:  # a band without width
        axes.vlines(1, low, high, linewidth=8, **band)
    _draw_line(axes, np.nanmedian(values, axis=1), median, **look)


def _draw_legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend below everything, where no line is."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_fit(label, 165, 10, keep_end=True) for label in labels]
    columns = 3 if max(map(len, labels), default=0) < 20 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _label_epochs(axes: Axes, epochs: int) -> None:
    """Label whole epochs, the first one too."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=True).tick_values(0, epochs)
    axes.set(xlabel="epoch", xlim=(0.5, epochs + 0.5), xticks=[1, *(tick for tick in ticks if 1 < tick <= epochs)])


def _scale_accuracies(axes: Axes, accuracies: Sequence[float], targets: Sequence[float]) -> None:
    """Draw the targets, and scale the vertical axis (percent).

    The axis is linear if no accuracy is above 90 %. Otherwise it is logarithmic in the errors, 100 % - accuracy, and
    linear from 99.9 % on: it shows the first epochs, and 99.4 % and 99.5 % well apart.
    """
    for target in targets:
        axes.axhline(target, color=GREY, linestyle="--", linewidth=1, label=f"target {target:g} %", zorder=1)
    values = np.array([*accuracies, *targets] if accuracies else [0, 100])
    if max(accuracies, default=0) <= STRETCHED_ABOVE:
        _scale(axes, values, (0, 100), lambda accuracy: accuracy, lambda place: place)
        return
    forward, inverse = lambda accuracy: -np.arcsinh((100 - accuracy) / 0.1), lambda place: 100 + 0.1 * np.sinh(place)
    _scale(axes, values, (0, 100), forward, inverse, 100 - np.array([0, *ROUND]))


def _stretched(axes: Axes) -> str:
    """Words for the title of axes whose accuracies are not on a linear axis."""
    return ", on an axis stretched towards 100" if axes.get_yscale() == "function" else ""


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Scale the vertical axis logarithmically."""
    least = 1e-9
    values = np.array([loss for loss in losses if np.isfinite(loss)] or [1.0])
    _scale(axes, values, (least, np.inf), lambda loss: np.log(np.maximum(loss, least)), np.exp, ROUND)


def _scale(
    axes: Axes,
    values: NDArray[Any],
    bounds: tuple[float, float],
    forward: Callable[[Any], Any],
    inverse: Callable[[Any], Any],
    candidates: NDArray[Any] | None = None,
) -> None:
    """Scale the vertical axis by a function; its limits contain the values and lie within the bounds.

    Ticks are chosen from the candidates; without candidates the axis is linear.
    """
    from matplotlib.ticker import MaxNLocator

    places = forward(np.clip(values, *bounds))
    margin = max(0.06 * np.ptp(places), 0.05)
    low, high = np.clip(inverse(np.array([places.min() - margin, places.max() + margin])), *bounds)
    ticks: list[float] = []
    if candidates is not None:
        axes.set_yscale("function", functions=(forward, inverse))
        ticks = list(_spaced(candidates[(low <= candidates) & (candidates <= high)], forward, (low, high)))
    if len(ticks) < 4:
        ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axes.set(ylim=(low, high))
    axes.set_yticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.grid(color=PALE, linewidth=0.6)


def _spaced(ticks: NDArray[Any], forward: Callable[[Any], Any], limits: tuple[float, float]) -> Iterator[float]:
    """Yield the ticks, the first ones preferred, that are not too close to one before them."""
    low, high = map(forward, limits)
    taken: list[float] = []
    for tick in ticks:
        place = forward(tick)
        if all(abs(place - other) > 0.08 * (high - low) for other in taken):
            taken.append(place)
            yield tick


def _fit(text: str, width: float, size: float, weight: str = "normal", keep_end: bool = False) -> str:
    """Shorten a line of text to a width, and replace each character that the font lacks by "?".

    Width and size are in points. Matplotlib would warn about a missing character and draw a box.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, DPI)  # widths are rounded to pixels
    whole = fitted = "".join(character if font.get_char_index(ord(character)) else "?" for character in text)
    for length in range(len(whole) - 1, 0, -1):
        font.set_text(fitted)
        if font.get_width_height()[0] <= 64 * width * DPI / 72:
            break
        fitted = f"…{whole[-length:]}" if keep_end else f"{whole[:length]}…"
    return fitted
