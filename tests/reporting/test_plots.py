"""Figures show the numbers that they are given, on axes that fit them, with text that can be read."""

import itertools
import re

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from drilldown.learning.train import EpochMetrics
from drilldown.reporting import plots

CAPTION = plots.Caption("step4 seed 0: what it shows", "99.53 % of 10,000 mnist test images, run 3f2a91c0")
FAR, CLOSE = [20.1, 60.0, 97.0, 99.2, 99.6], [99.41, 99.42, 99.4, 99.43, 99.41]
ACCURACIES = {
    "one": [97.0],
    "far": FAR,
    "close": CLOSE,
    "low": [8.0, 15.0, 20.0],
    "all": [90.0, 100.0],
    "none": [0.0] * 3,
}


def draw(figure):
    """Draw the figure, and check what holds for all.

    It shows the caption, no text covers another or is cut off, and the legend covers no line.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = texts(figure)
    assert [text.get_text() for text in shown[:2]] == [CAPTION.title, CAPTION.details]
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text  # noqa: PT018
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(other_box), (one, other)
    for legend, axes in itertools.product(figure.legends, figure.axes):
        assert not legend.get_window_extent(renderer).overlaps(axes.bbox)
    return np.asarray(canvas.buffer_rgba())


def texts(figure):
    """All text that is visible, the caption first."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        if axes.axison:
            found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
                found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        found += axes.texts
    return [text for text in found if text.get_visible() and text.get_text()]


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def check_limits(axes, values):
    """The axis shows all the values, and nothing that cannot be, in enough round numbers in the right places."""
    low, high = axes.get_ylim()
    assert 0 <= low <= min(values)
    assert max(values) <= high <= 100
    ticks = axes.get_yticks()
    assert 3 <= len(ticks) <= 14
    assert [float(label.get_text()) for label in axes.get_yticklabels()] == pytest.approx(list(ticks))


def history(train, test):
    return [
        EpochMetrics(epoch, 2.5 / epoch, train_accuracy, 2 / epoch, test_accuracy, 0.01, 2.0, 1e4)
        for epoch, (train_accuracy, test_accuracy) in enumerate(zip(train, test, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("name", "target"), [*((name, 99.4) for name in ACCURACIES), ("far", 100.0), ("low", 15.0), ("none", 0.0)]
)
def test_curves(name, target):
    accuracies = ACCURACIES[name]
    lower = [0.9 * accuracy for accuracy in accuracies]
    figure = plots.curves(history(lower, accuracies), target, CAPTION)
    assert draw(figure).std() > 0
    accuracy, loss = figure.axes
    assert lines(accuracy) == {"train": lower, "test": accuracies, f"target {target:g} %": [target, target]}
    check_limits(accuracy, [*lower, *accuracies, target])
    assert lines(loss) == {
        "train": [2.5 / epoch for epoch in range(1, len(accuracies) + 1)],
        "test": [2 / epoch for epoch in range(1, len(accuracies) + 1)],
    }
    assert loss.get_ylim()[0] < 2 / len(accuracies)
    assert loss.get_ylim()[1] > 2.5
    assert 1 in loss.get_xticks()
    assert legend(figure) == ["train", "test", f"target {target:g} %"]


def test_no_line_is_cut_off_at_100_percent_and_there_is_no_frame():
    figure = plots.curves(history([99.0, 100.0], [98.0, 99.0]), 99.4, CAPTION)
    draw(figure)
    for axes in figure.axes:
        assert not any(line.get_clip_on() for line in axes.get_lines() if line.get_marker() not in ("", "None"))
        assert not axes.spines["top"].get_visible()
        assert not axes.spines["right"].get_visible()


def test_an_axis_that_is_not_linear_says_so():
    for accuracies, words in ((FAR, "Accuracy (%), on an axis stretched towards 100"), ([20.0, 40.0], "Accuracy (%)")):
        figure = plots.curves(history(accuracies, accuracies), 99.4, CAPTION)
        axes = figure.axes[0]
        assert axes.get_title("left") == words
        places = axes.transData.transform([(1, value) for value in (10, 50, 90)])[:, 1]
        is_linear = np.ptp(np.diff(places)) < 0.01 * np.ptp(places)
        assert is_linear == ("stretched" not in words)


def test_99_4_and_99_5_percent_are_apart_on_an_axis_from_20_percent():
    figure = plots.curves(history(FAR, FAR), 99.4, CAPTION)
    draw(figure)
    axes = figure.axes[0]
    low, high = axes.transData.transform([(1, 99.4), (1, 99.5)])[:, 1]
    assert high - low > 0.02 * axes.bbox.height


@pytest.mark.parametrize("loss", [0.0, 1e-12, np.inf])
def test_extreme_losses_can_be_drawn(loss):
    draw(plots.curves([EpochMetrics(1, loss, 100.0, loss, 100.0, 0.01, 2.0, 1e4)], 99.4, CAPTION))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_seeds_are_a_range_with_median_and_the_worst(count):
    rng = np.random.default_rng(0)
    values = 99 + rng.random((count, 20))
    values[:, 0] = 60 + 20 * rng.random(count)
    values[1, -3] = 98.0  # in the last five epochs
    values[0, -6] = 97.0  # before them
    figure = plots.seeds({seed + 5: list(values[seed]) for seed in range(count)}, 99.4, CAPTION)
    draw(figure)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert drawn.pop("target 99.4 %") == [99.4, 99.4]
    assert drawn["median"] == pytest.approx(np.quantile(values, 0.5, axis=0))
    assert drawn["seed 6, lowest in last 5 epochs"] == list(values[1])
    assert set(drawn) == {"median", "seed 6, lowest in last 5 epochs"}
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for epoch in range(1, 21):
        at = corners[corners[:, 0] == epoch, 1]
        assert [at.min(), at.max()] == pytest.approx(np.quantile(values[:, epoch - 1], [0, 1]))
    assert legend(figure)[0] == f"range of {count} seeds"
    check_limits(axes, [99.4, *values.flat])


def test_one_epoch_of_many_seeds_has_a_range():
    figure = plots.seeds({0: [97.0], 1: [98.0], 2: [96.0]}, 99.4, CAPTION)
    draw(figure)
    spans = [path.vertices[:, 1] for collection in figure.axes[0].collections for path in collection.get_paths()]
    assert [96.0, 98.0] in [sorted(set(span)) for span in spans]


def test_a_single_seed_is_a_line():
    figure = plots.seeds({7: FAR}, 99.4, CAPTION, split="validation")
    draw(figure)
    assert lines(figure.axes[0]) == {"seed 7": FAR, "target 99.4 %": [99.4, 99.4]}
    assert figure.axes[0].get_title("left").startswith("Validation accuracy (%)")


def test_without_any_seed_there_is_a_figure():
    draw(plots.seeds({}, 99.4, CAPTION))
    draw(plots.steps({}, {}, [], CAPTION))


SIZES = {"step1": 6_379_786, "step2": 12_584, "step3": 11_924, "step4": 7_364, "step5": 9_300}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "name"),
    [
        *((["step4"], name) for name in ACCURACIES),
        (["step2", "step3"], "close"),
        ([*SIZES][:4], "far"),
        ([*SIZES], "one"),
        ([*SIZES], "low"),
    ],
)
def test_steps_side_by_side(names, name):
    accuracies = ACCURACIES[name]
    runs = {step: [accuracies, [0.99 * accuracy for accuracy in accuracies]] for step in names}
    figure = plots.steps(SIZES, runs, [97.0, 99.4], CAPTION)
    draw(figure)
    sizes, curves = figure.axes
    finals = [accuracies[-1], 0.99 * accuracies[-1]]
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in sizes.get_lines()}
    for step in names:
        assert points[f"{step} (2 seeds)"] == ([SIZES[step]] * 2, finals)
        assert sizes.get_xlim()[0] < SIZES[step] < sizes.get_xlim()[1]
    assert legend(figure) == [*(f"{step} (2 seeds)" for step in names), "target 97 %", "target 99.4 %"]
    for line in curves.get_lines()[: len(names)]:
        assert list(line.get_ydata()) == pytest.approx([0.995 * accuracy for accuracy in accuracies])
    check_limits(sizes, [*finals, 97.0, 99.4])
    check_limits(curves, [*accuracies, *runs[names[0]][1], 97.0, 99.4])


def test_a_step_looks_the_same_in_every_figure():
    looks = {}
    for names in (["step4"], ["step1", "step4"], ["step5", "wide"], ["wide"], [*SIZES, "wide"]):
        figure = plots.steps(SIZES | {"wide": 70_000}, {step: [FAR] for step in names}, [99.4], CAPTION)
        for axes in figure.axes:
            for step, line in zip(
                names, [line for line in axes.get_lines() if len(line.get_xdata()) != 2], strict=True
            ):
                looks.setdefault(step, set()).add((to_hex(line.get_color()), line.get_marker()))
    assert all(len(found) == 1 for found in looks.values())
    assert len(set.union(*looks.values())) == len(looks) == 6
    assert len({color for step in SIZES for color, _ in looks[step]}) == 5
    assert len(plots._looks(map(str, range(50)))) == 50  # more than there are pairs
    assert looks["step4"] == {("#d55e00", "D")}
    assert looks["wide"] == {("#56b4e9", "o")}  # in every process, too


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_the_confusion_matrix_shows_every_count_and_colors_mistakes(share):
    counts = (np.arange(100).reshape(10, 10) * share).astype(int)
    figure = plots.confusion_matrix(counts, CAPTION)
    draw(figure)
    (axes,) = figure.axes
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(row, column): str(counts[row, column]) for row, column in np.argwhere(counts)}
    colored = axes.images[0].get_array()
    is_right = np.eye(10, dtype=bool)
    assert (colored.mask == (is_right | (counts == 0))).all()
    assert (colored.compressed() == counts[~is_right & (counts > 0)]).all()
    wrong = counts.sum() - counts.trace()
    assert axes.get_title("left").startswith(f"{wrong:,} mistakes in {counts.sum():,} images")


def test_the_confusion_matrix_has_the_classes_names_and_no_empty_rows():
    counts = np.zeros((10, 10), int)
    counts[:3, :3] = 7
    names = ("shirt", "ankle boot", "bag")
    for predicted, expected in ((2, [*names]), (4, [*names, "3", "4"])):
        counts[0, predicted] = 1
        figure = plots.confusion_matrix(counts, CAPTION, names)
        draw(figure)
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_yticklabels()] == expected
        assert [text.get_text() for text in axes.get_xticklabels()] == expected
        assert axes.images[0].get_array().shape == (len(expected), len(expected))
        assert axes.get_xlabel() == "predicted class"


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 12, 40])
def test_names_of_classes_fit(length):
    names = [letter * length for letter in "WabcdefghX"]
    counts = np.full((10, 10), 1234)
    figure = plots.confusion_matrix(counts, CAPTION, names)
    draw(figure)
    (axes,) = figure.axes
    assert axes.get_window_extent().width > 0.6 * figure.bbox.width
    assert axes.get_yticklabels()[9].get_text().startswith("X")
    figure = plots.mistakes(np.zeros((9, 28, 28), np.uint8), names[:9], names[1:], [0.75] * 9, CAPTION)
    draw(figure)
    assert len(figure.axes[0].texts) == 9


def test_mistakes_with_names():
    figure = plots.mistakes(np.zeros((1, 28, 28), np.uint8), ["boot"], ["shoe"], [0.75], CAPTION)
    draw(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["boot →\nshoe\n75.00 %"]


@pytest.mark.parametrize("count", [0, 3, 8, 40])
def test_mistakes(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8) + 1
    figure = plots.mistakes(images, ["4"] * count, ["9"] * count, np.linspace(1 - 1e-6, 0.5, count).tolist(), CAPTION)
    draw(figure)
    (axes,) = figure.axes
    mosaic = axes.images[0].get_array()
    for number, text in enumerate(axes.texts):  # each stands below its own image
        x, y = text.get_position()
        assert set(np.unique(mosaic[int(y) - 20 : int(y) - 2, int(x) - 10 : int(x) + 10])) == {number + 1}
    shown = [text.get_text() for text in axes.texts]
    assert len(shown) == count
    assert all(re.fullmatch(r"4 → 9\n(> )?\d\d\.\d\d %", text) for text in shown)
    assert shown[:1] == ["4 → 9\n> 99.99 %"][:count]


def test_long_and_strange_file_names_fit():
    images = np.zeros((13, 28, 28), np.uint8)
    names = ["W" * 50 + ".png", "$x^$.png", "数字 😀.png", "i" * 60 + ".jpeg", "", *["IMG_20261126_180102.jpeg"] * 8]
    figure = plots.sheet(images, [f"{name}\n4: 99.88 %" for name in names], CAPTION)
    draw(figure)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert re.fullmatch(r"…W+\.png\n4: 99\.88 %", shown[0])
    assert shown[1:3] == ["$x^$.png\n4: 99.88 %", "?? 😀.png\n4: 99.88 %"]
    assert shown[4] == "\n4: 99.88 %"


def test_many_steps_with_long_names_can_be_told_apart():
    names = [f"a_step_of_my_own_with_a_long_name_{number}" for number in range(12)]
    figure = plots.steps(dict.fromkeys(names, 10_000), {name: [FAR, FAR] for name in names}, [99.4], CAPTION)
    draw(figure)
    assert len(set(legend(figure))) == 13
    drawn = figure.axes[1].get_lines()[:12]
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in drawn}) == 12


def test_a_long_caption_is_shortened():
    figure = plots.seeds({0: FAR}, 99.4, plots.Caption("a step of my own with 数 " * 9, "W" * 300))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in figure.texts:
        assert text.get_text().endswith("…")
        assert 0.9 < text.get_window_extent(canvas.get_renderer()).x1 / figure.bbox.x1 < 1


def test_the_style_of_the_user_does_not_matter():
    def pixels():
        return draw(plots.seeds({0: FAR, 1: CLOSE}, 99.4, CAPTION))

    before = pixels()
    with rc_context({"font.size": 20, "axes.grid": True, "axes.spines.top": True, "lines.markersize": 30}):
        inside = pixels()
    assert before.shape == inside.shape


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_reliability_shows_shares_and_counts(count):
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.3, 1, count)
    right = generator.random(count) < confidences
    figure = plots.reliability(confidences, right, CAPTION)
    draw(figure)
    shares, counts = figure.axes
    assert sum(bar.get_height() for bar in counts.patches) == count
    if count == 2000:
        heights = [bar.get_height() for bar in shares.patches]
        assert heights[14] == pytest.approx(right[confidences >= 14 / 15].mean())
        assert "expected calibration error 0.0" in shares.get_title(loc="left")


def test_the_sheet_of_answers_shows_picture_frame_and_mark():
    picture, frame = np.full((plots.CELL, plots.CELL), 200, np.uint8), np.full((28, 28), 60, np.uint8)
    cells = [
        plots.Cell(picture, frame, "a.png\n7: 99.00 %"),
        plots.Cell(picture, frame, "b.png\n7: 60.00 %, unsure", "unsure"),
        plots.Cell(None, None, "c.png\nrefused: nothing is\nwritten here", "refused"),
    ]
    figure = plots.answers(cells, CAPTION)
    draw(figure)
    (axes,) = figure.axes
    (image,) = axes.get_images()
    values, counts = np.unique(image.get_array(), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) | {255: 0} == {
        200: 2 * plots.CELL**2, 195: 2 * plots.CELL**2, 255: 0
    }  # fmt: skip
    colors = {text.get_text().split("\n")[0]: text.get_color() for text in axes.texts}
    assert colors == {"a.png": plots.INK, "b.png": plots.MARKS["unsure"], "c.png": plots.MARKS["refused"]}
    draw(plots.answers([], CAPTION))
