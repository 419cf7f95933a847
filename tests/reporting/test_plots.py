"""Figures show the numbers that they are given."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from drilldown.learning.train import EpochMetrics
from drilldown.reporting import plots

HISTORY = [EpochMetrics(e, 1 / e, 90.0 + e, 0.5 / e, 95.0 + e, 0.01, 2.0, 1e4) for e in (1, 2, 3)]


def draw(figure):
    """Draw the figure's pixels; a figure whose layout is impossible fails here."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_curves():
    figure = plots.curves(HISTORY, target=97.5)
    assert draw(figure).std() > 0
    accuracy, loss = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in accuracy.get_lines()}
    assert lines == {"train": [91.0, 92.0, 93.0], "test": [96.0, 97.0, 98.0], "target 97.5 %": [97.5, 97.5]}
    assert accuracy.get_ylim()[0] < 97.5 < accuracy.get_ylim()[1]
    losses = {line.get_label(): list(line.get_ydata()) for line in loss.get_lines()}
    assert losses == {"train": [1, 1 / 2, 1 / 3], "test": [0.5, 0.25, 0.5 / 3]}


@pytest.mark.parametrize("target", [97.0, 99.4, 100.0])
def test_the_curves_of_the_seeds_are_visible_except_their_first_epoch(target):
    accuracies = {0: [60.0, 96.0, 98.9], 3: [70.0, 95.5, 100.0]}
    figure = plots.seeds(accuracies, target)
    draw(figure)
    (axes,) = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines == {"seed 0": accuracies[0], "seed 3": accuracies[3], f"target {target:g} %": [target, target]}
    low, high = axes.get_ylim()
    assert low < 95.5
    assert max(100.0, target) < high


def test_without_any_seed_there_is_a_figure():
    draw(plots.seeds({}, 99.4))


def test_steps_side_by_side():
    accuracies = {"step1": [[20.0, 98.0, 98.5, 98.7]], "step4": [[97.0, 99.1, 99.5, 99.6], [96.0, 99.0, 99.2, 99.4]]}
    figure = plots.steps({"step1": 6_379_786, "step4": 7_484}, accuracies, [99.4])
    draw(figure)
    sizes, curves = figure.axes
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in sizes.get_lines()}
    assert points["step1"] == ([6_379_786], [98.7])
    assert points["step4"] == ([7_484] * 2, [99.6, 99.4])
    assert sizes.get_xscale() == "log"
    assert [list(line.get_ydata()) for line in curves.get_lines()[:3]] == [*accuracies["step1"], *accuracies["step4"]]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [
        "step1 (n = 1)", "step4 (n = 2)", "target 99.4 %",
    ]  # fmt: skip
    low, high = curves.get_ylim()
    assert 90 < low < 98.5  # the first epochs may be outside
    assert high > 99.6


def test_the_confusion_matrix_shows_every_count():
    counts = np.arange(100).reshape(10, 10)
    figure = plots.confusion_matrix(counts)
    draw(figure)
    assert sorted(int(text.get_text()) for text in figure.axes[0].texts) == list(range(100))
    image = figure.axes[0].images[0].get_array()
    assert image.diagonal().max() == 0  # colors show mistakes only
    assert image[9, 8] == 98


@pytest.mark.parametrize(("count", "cells"), [(0, 8), (3, 8), (40, 40)])
def test_mistakes(count, cells):
    images = np.full((count, 28, 28), 7, np.uint8)
    figure = plots.mistakes(images, [4] * count, [9] * count, [0.75] * count)
    draw(figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(figure.axes) == cells
    assert titles == ["4 taken for 9\n75%"] * count
