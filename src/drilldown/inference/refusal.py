"""Refusals: is there writing on a page at all, and is it one digit or several?

docs/inference.md says what each constant was chosen on.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from drilldown.inference.framing import Writing, border, extent, smoothed, widened

FAINTEST_INK = 20  # of 255: ink that is fainter is none
OVER_NOISE = 5  # how many times the noise ink is at least
SMALL_PAGE, SMALL_OVER_NOISE = 64, 2.5  # short side below which a stroke is a pixel wide: all ink is soft, and weaker
AS_STRONG = 1.4  # what is not the digit is at most so strong, as a share of its ink
SCATTERED = (0.15, 12)  # share of the ink below which, and parts above which, ink is noise
NEAR = 3  # pixels beside a stroke in which it fades
SOFT = 0.33  # ink just beside a stroke, as a share of the stroke's: more has no edge, as a shadow
FAINT_AND_SOFT = (40, 0.2)  # the same for faint ink
AT_BORDER = 0.55  # trust at most of what runs along the border
PALE = 80  # of 255: ink of a shadow's edge, or of the lines of the paper

ALIKE_ON_SMALL = 0.7  # for the three constants that follow, on a small page, where noise is as large as a digit
HEIGHT = 0.5  # share of the digit's height that another digit has at least, and at most its inverse
WIDTH = 2.0  # of the digit's size: another digit is narrower
MASS = 0.12  # share of the digit's ink
STRENGTH = 0.45  # share of the mean of the digit's ink
BESIDE = 0.5  # share of the lower one's height in which two digits in a row stand side by side
CUT = 0.8  # of the mean of the digit's ink: weaker ink joins no digit to another part
ON_BORDER = 0.5  # share of its size with which what lies along the border is a shadow, or the page's edge
OVERLAP = 0.25  # share of the narrower one's width in which parts overlap that belong together


def is_blank(writing: Writing) -> bool:
    """Whether what was found is no writing, but noise, a shadow, a dark corner or lines of the paper."""
    from scipy.ndimage import binary_dilation, find_objects

    ink, mask = writing.ink, writing.mask
    strokes = ink[mask]
    mean, peak = max(float(strokes.mean()), 1e-6), float(np.percentile(strokes, 90))
    is_small = min(ink.shape) < SMALL_PAGE
    if peak < FAINTEST_INK or mean < (SMALL_OVER_NOISE if is_small else OVER_NOISE) * writing.noise:
        return True
    page = ink[writing.labels == 0]
    if page.size and np.percentile(page, 99) > AS_STRONG * mean:
        return True
    masses = _masses(writing)
    main = masses[writing.digit[0] - 1]
    share = sum(masses[number - 1] for number in writing.digit) / max(masses.sum(), 1e-6)
    if share < SCATTERED[0] and (masses >= 0.03 * main).sum() > SCATTERED[1]:
        return True
    around = widened(*extent(mask), NEAR)
    digit = mask[around]
    near = binary_dilation(digit, iterations=NEAR) & ~binary_dilation(digit)
    softness = float(ink[around][near].mean()) / mean if near.any() else 0
    is_soft = softness > SOFT or (peak < FAINT_AND_SOFT[0] and softness > FAINT_AND_SOFT[1])
    if is_soft and not (is_small and writing.trust >= 1):
        return True
    height, width = ink.shape
    rows, columns = find_objects(writing.labels)[writing.digit[0] - 1]
    sides = (rows.start <= 1) + (rows.stop >= height - 1) + (columns.start <= 1) + (columns.stop >= width - 1)
    spans = rows.stop - rows.start >= height - 2 or columns.stop - columns.start >= width - 2
    if writing.trust <= AT_BORDER and sides and (spans or peak < PALE):
        return True
    return spans and sides >= 2 and peak < PALE


def find_digits(writing: Writing) -> list[Writing]:
    """The digits side by side, from left to right: the writing with each of them as its digit."""
    from scipy.ndimage import find_objects

    writing = _cut_again(writing)
    masses, boxes = _masses(writing), find_objects(writing.labels)
    counts = np.bincount(writing.labels.ravel(), minlength=len(boxes) + 1)[1:]
    on_border = np.bincount(border(writing.labels), minlength=len(boxes) + 1)[1:]
    means = masses / np.maximum(counts, 1)
    main = writing.digit[0] - 1
    top, bottom, left, right = _box(boxes[main])
    tall, size = bottom - top, max(bottom - top, right - left)
    chosen = []
    height_share, mass_share, strength = HEIGHT, MASS, STRENGTH
    if min(writing.ink.shape) < SMALL_PAGE:
        height_share = mass_share = strength = ALIKE_ON_SMALL
    for number in map(int, np.flatnonzero((masses >= mass_share * masses[main]) & (means >= strength * means[main]))):
        upper, lower, first, last = _box(boxes[number])
        height, shared = lower - upper, min(lower, bottom) - max(upper, top)
        is_alike = height_share * tall <= height <= tall / height_share and last - first <= WIDTH * size
        is_inside = on_border[number] <= ON_BORDER * max(height, last - first)
        if number == main or (is_alike and is_inside and shared >= BESIDE * min(tall, height)):
            chosen.append((first, last, number + 1))
    digits: list[list[int]] = []
    start = end = 0
    for first, last, number in sorted(chosen):
        if digits and min(end, last) - max(start, first) > OVERLAP * min(end - start, last - first):
            digits[-1].append(number)
            start, end = min(start, first), max(end, last)
        else:
            digits.append([number])
            start, end = first, last
    return [replace(writing, digit=tuple(numbers)) for numbers in digits]


def _cut_again(writing: Writing) -> Writing:
    """The writing with what is not the digit cut at a higher threshold: other digits come off shadows and edges."""
    from scipy.ndimage import label

    smooth, mask = smoothed(writing.ink), writing.mask
    threshold = max(CUT * float(smooth[mask].mean()), writing.threshold)
    labels, count = label((smooth > threshold) & ~mask, np.ones((3, 3)))
    labels[mask] = count + 1
    return replace(writing, labels=labels, digit=(count + 1,))


def _masses(writing: Writing) -> np.ndarray:
    """The ink of each component, added up."""
    return np.bincount(writing.labels.ravel(), writing.ink.ravel(), int(writing.labels.max()) + 1)[1:]


def _box(slices: Sequence[slice]) -> tuple[int, int, int, int]:
    rows, columns = slices
    return rows.start, rows.stop, columns.start, columns.stop
