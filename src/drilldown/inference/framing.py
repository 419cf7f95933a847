"""Framing: bring a picture of a digit into the format of MNIST's images.

A picture becomes gray and small; its background becomes flat, so that light and shadow leave only ink; the ink is
cut into components; one of them, with what is near it, is the digit; and that is composed as MNIST's authors did.
docs/inference.md says what each constant was chosen on.
"""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from drilldown.errors import PredictError
from drilldown.inference.files import SIGNATURE_BYTES, format_name

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # PIL's other readers touch no file, whatever its name
MAX_BYTES = 100_000_000  # of a file; in a larger one PIL may search for a picture for minutes
JPEG_SIDE = 1024  # a JPEG is decoded no smaller than this, in pixels of its short side
SEARCH_SIDE = 256  # long side of the picture in which the digit is searched, in pixels
CLOSE_SIDE = 64  # a digit smaller than this in that picture is searched again, in a larger picture of its place

KERNELS = (2, 4)  # the background is flattened by kernels of the short side divided by these
FINE_KERNEL = 8  # in a second look, where the first finds only what runs along the border
MAJORITY = 0.55  # share of the pixels that must be lighter, or darker, to overrule the border
NOISE_LEVELS = 4.0  # ink is stronger than the noise times this
LOW_SHARES = (0.5, 0.75, 1.0, 1.3)  # of Otsu's threshold: the lower thresholds of hysteresis, in turn
STRONG_SHARE = 0.1  # share of the strong ink that a digit must have, for a higher threshold to be taken
BORDER_SHARE = 0.3  # what touches the border on more than this share of the short side runs along it
FAINTEST = 0.08  # share of the strongest ink in the picture that the digit's strongest must have
NEAR = 0.25  # parts are the digit's when their distance is at most this share of its size
THICK = 0.4  # strokes wider than this share of the digit's size are no strokes
SMALL = 0.2  # share of the short side below which a digit is small
ENOUGH = 0.45  # trust with which no other kind of background is tried
FAINT = 0.04  # share of the strongest ink above which the fringe of a stroke belongs to it
STROKE = 3.0  # strokes are at least this wide, in pixels of the frame; MNIST's are 1.7 to 3.9


@dataclass(frozen=True)
class Writing:
    """Ink found on a page.

    ink: how much each pixel differs from the background, float32 (H, W). labels: its connected components, int (H, W),
    numbered from 1; 0 is the page. digit: the numbers of the digit's parts, the main one first. threshold: ink above
    which a pixel is in a component. noise: the standard deviation of the page's pixels. trust: from 0 to 1.
    """

    ink: np.ndarray
    labels: np.ndarray
    digit: tuple[int, ...]
    threshold: float
    noise: float
    trust: float

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Pixels of the digit, bool (H, W)."""
        return _members(self.labels, self.digit)


def read_image(file: Path) -> np.ndarray:
    """Return the picture in the file in MNIST's format: uint8 (28, 28).

    Raises: PredictError, and whatever PIL raises for damaged or hostile files.
    """
    with open_picture(file) as picture:
        return to_frame(picture)


@contextlib.contextmanager
def open_picture(source: Path | bytes) -> Iterator["Image.Image"]:
    """Open a picture, a file or the bytes of one, without decoding it yet; upright, as its EXIF data says.

    Raises: PredictError, and whatever PIL raises for damaged or hostile files.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with _opened(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL could read the file anyway
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            stream.seek(0)
            name = format_name(stream.read(SIGNATURE_BYTES))
            if name and name.upper() not in FORMATS:
                raise PredictError(f"it is in {name} format, which is not read: save it as PNG or JPEG") from None
            raise PredictError(
                f"cannot identify image file: it is none of {', '.join(FORMATS)}; save it as one of them"
            ) from None
        picture.draft("L", (JPEG_SIDE, JPEG_SIDE))  # a JPEG is decoded in gray, and a large one smaller: faster
        ImageOps.exif_transpose(picture, in_place=True)
        yield picture


def thumbnail(source: Path | bytes, side: int) -> np.ndarray | None:
    """A picture in gray, small on a white square: uint8 (side, side); None when it cannot be read."""
    from PIL import Image

    try:
        with open_picture(source) as picture:
            gray = to_gray(picture).convert("L")
    except Exception:  # whatever is wrong with it, its answer says so
        return None
    gray.thumbnail((side, side))
    square = Image.new("L", (side, side), 255)
    square.paste(gray, ((side - gray.width) // 2, (side - gray.height) // 2))
    return np.asarray(square)


def _opened(source: Path | bytes) -> BinaryIO:
    """A picture's bytes, after a check that they may be read, and are not too many."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        if source.is_symlink():
            target = Path(os.path.realpath(source, strict=True))
            if not target.is_relative_to(source.parent.resolve()):
                raise PredictError("it is a link that points outside the folder")
        if not source.is_file():
            raise PredictError("it is not a file")  # a folder, or a pipe, which could block forever
        size = source.stat().st_size
    if size > MAX_BYTES:
        raise PredictError(f"it has {size:,} bytes: at most {MAX_BYTES:,} are read")
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def to_frame(picture: "Image.Image") -> np.ndarray:
    """Bring a picture of one digit into MNIST's format, as its authors describe it (http://yann.lecun.com/exdb/mnist/).

    The digit, dark on light or light on dark, is found, scaled to fit into 20×20 and placed in 28×28 with its center
    of mass in the middle. Returns uint8 (28, 28), white on black.

    Raises: PredictError when the picture has one color only, or pixels that are not numbers.
    """
    frame = framed_already(picture)
    return compose(find_writing(picture)) if frame is None else frame


def framed_already(picture: "Image.Image") -> np.ndarray | None:
    """The pixels of a picture that is in MNIST's format, or in its negative; else None."""
    if picture.size != (28, 28):
        return None
    pixels = np.asarray(to_gray(picture)).astype(np.uint8)
    return next((frame for frame in (pixels, 255 - pixels) if is_framed(frame)), None)


def is_framed(pixels: np.ndarray) -> bool:
    """Whether pixels, uint8 (28, 28), are in MNIST's format: bright on pure black, of its size and in its place."""
    from scipy.ndimage import center_of_mass

    if pixels[0].any() or pixels[-1].any() or pixels.max() < 240:
        return False
    return _size(*extent(pixels > 0)) == 20 and max(abs(center - 14) for center in center_of_mass(pixels)) <= 1


def find_writing(picture: "Image.Image") -> Writing:
    """Find the ink in a picture, and the digit in it.

    Raises: PredictError when the picture has one color only, or pixels that are not numbers.
    """
    gray = to_gray(picture)
    return look_closer(gray, search_page(gray))


def search_page(gray: "Image.Image", fine: bool = False) -> Writing:
    """Find the ink on a page, and the digit in it, in a picture of at most SEARCH_SIDE; `fine` is the second look.

    Raises: PredictError when the page has one color only.
    """
    if (found := search(shrink(gray), fine)) is None:
        raise PredictError("nothing is written here: it is of one colour")
    return found


def look_closer(gray: "Image.Image", found: Writing, margin: float = 0.5) -> Writing:
    """Search a digit that is small on its page again, in its place, with a margin of that share of its size."""
    page = found.ink
    if page.shape == (gray.height, gray.width):
        return found
    rows, columns = extent(found.mask)
    size = _size(rows, columns)
    if size >= CLOSE_SIDE:
        return found
    scale = gray.width / page.shape[1] if page.shape[1] > page.shape[0] else gray.height / page.shape[0]
    left, top = (max(0, int((part.start - size * margin) * scale)) for part in (columns, rows))
    right, bottom = (int((part.stop + size * margin) * scale) + 1 for part in (columns, rows))
    return search(shrink(gray.crop((left, top, min(right, gray.width), min(bottom, gray.height))))) or found


def to_gray(picture: "Image.Image") -> "Image.Image":
    """The picture in gray: 8 bit, or floating point from 0 to 255; transparent ones on paper.

    Raises: PredictError when it has pixels that are not numbers.
    """
    from PIL import Image

    if picture.mode[0] in "IF":  # 16 bit, 32 bit or floating point, on an unknown scale
        pixels = np.asarray(picture, np.float32)
        if not (np.abs(pixels) < 1e30).all():
            raise PredictError("it has pixels that are not numbers, or too large")
        low, high = float(pixels.min()), float(pixels.max())
        return Image.fromarray((pixels - low) * np.float32(255 / ((high - low) or 1)))
    if "A" in picture.getbands() or "transparency" in picture.info:
        gray = on_paper(picture, "white")
        darkest, lightest = gray.getextrema()
        return gray if darkest != lightest else on_paper(picture, "black")  # white ink
    return picture.convert("L")


def on_paper(picture: "Image.Image", color: str) -> "Image.Image":
    """Put a transparent picture on paper of that color, in gray."""
    from PIL import Image

    paper = Image.new("RGBA", picture.size, color)
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("L")


def shrink(gray: "Image.Image") -> np.ndarray:
    """The picture with a long side of at most SEARCH_SIDE, float32 (H, W), by averaging."""
    from PIL import Image

    if (factor := max(gray.size) // SEARCH_SIDE) > 1:
        gray = gray.reduce(factor)
    if (scale := max(gray.size) / SEARCH_SIDE) > 1:
        size = (max(1, round(gray.width / scale)), max(1, round(gray.height / scale)))
        gray = gray.convert("F").resize(size, Image.Resampling.BOX)
    return np.asarray(gray, np.float32)


def search(page: np.ndarray, fine: bool = False) -> Writing | None:
    """Find the digit on a page, float32 (H, W); None where all pixels are equal.

    Several kinds of background are tried until one leaves something that looks like a digit.
    """
    best: Writing | None = None
    for ink in inks(page, fine):
        found = find_digit(ink)
        if found and (best is None or found.trust > best.trust + 0.05):
            best = found
        if best and best.trust >= ENOUGH:
            break
    return best


def inks(page: np.ndarray, fine: bool) -> Iterator[np.ndarray]:
    """What may be ink on the page, float32 (H, W), the most probable first.

    Dark or light is decided by most of the pixels, or where they are divided, by the border.
    """
    low, high = page.min(), page.max()
    edge = np.median(border(page))
    by_border = 1 if edge - low < high - edge else -1  # light ink: 1; dark ink: -1
    lighter = float((page > (low + high) / 2).mean())  # share of the pixels
    by_majority = -1 if lighter > MAJORITY else 1 if lighter < 1 - MAJORITY else by_border
    if fine:
        yield flatten(by_majority * page, FINE_KERNEL)
        return  # other backgrounds leave ink on blank paper
    for sign in dict.fromkeys((by_majority, by_border)):
        yield flatten(sign * page, KERNELS[0])
    yield flatten(by_majority * page, KERNELS[1])
    if by_majority == by_border:
        yield flatten(-by_border * page, KERNELS[0])
    yield np.clip(by_border * (page - edge), 0, None)
    yield np.clip(-by_border * (page - edge), 0, None)


def flatten(page: np.ndarray, divisor: int) -> np.ndarray:
    """Subtract the background from a page with light ink, by grey opening with a kernel of short side / divisor."""
    from PIL import Image
    from scipy.ndimage import grey_opening, uniform_filter

    height, width = page.shape
    kernel = max(min(page.shape) // divisor, 3)
    step = max(1, kernel // 24)  # the background is smooth: a smaller picture of it will do
    small = np.asarray(Image.fromarray(page).reduce(step))
    background = grey_opening(small, size=[min(kernel // step, 2 * side) for side in small.shape])
    if step > 1:
        background = Image.fromarray(uniform_filter(background, 3))
        covered = (0, 0, width / step, height / step)
        background = np.asarray(background.resize((width, height), Image.Resampling.BILINEAR, covered))
    return np.clip(page - background, 0, None)


def find_digit(ink: np.ndarray) -> Writing | None:
    """Find the digit in ink, float32 (H, W); None without any ink.

    A digit touches no border. As long as the strongest ink does, the search goes on without it, in fainter ink.
    """
    from scipy.ndimage import binary_dilation

    smooth = smoothed(ink)
    lowest, low = np.percentile(
        smooth if smooth.size < 10_000 else smooth[::2, ::2], (5, 25)
    )  # of the page, which is most of it
    noise = 1.03 * float(low - lowest)
    ink, smooth = np.clip(ink - low, 0, None), np.clip(smooth - low, 0, None)
    searched = smooth
    best: Writing | None = None
    for _ in range(3):
        found, at_border = segment(ink, smooth, noise, searched)
        if found is None:
            break
        if best is None or found.trust > best.trust:
            best = found
        if best.trust >= 0.7 or not at_border.any():
            break
        near = binary_dilation(at_border, iterations=max(1, round(0.02 * max(ink.shape))))
        searched = np.where(near, 0, searched)
    return best


def smoothed(ink: np.ndarray) -> np.ndarray:
    """Ink without the noise of single pixels, the mean of 3×3; in a small picture, a stroke is one."""
    if min(ink.shape) <= 64:
        return ink
    padded = np.pad(ink, 1, "edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]  # scipy's uniform_filter takes four times as long
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def segment(
    ink: np.ndarray, smooth: np.ndarray, noise: float, searched: np.ndarray
) -> tuple[Writing | None, np.ndarray]:
    """Cut ink into components by Otsu's threshold with hysteresis, and choose the digit's.

    `searched` is the smooth ink, without what is not to be chosen. The lower threshold rises as long as what is found
    looks no digit, as lines of the paper do. Returns also the components at the border, bool (H, W).
    """
    from scipy.ndimage import label

    at_border = np.zeros(ink.shape, bool)
    if (peak := float(searched.max())) <= FAINTEST * float(smooth.max()):
        return None, at_border
    floor = min(NOISE_LEVELS * noise, 0.3 * peak)
    strong = min(otsu(searched[searched > max(floor, 0.05 * peak)]), 0.6 * peak)
    best: Writing | None = None
    for share in LOW_SHARES:
        threshold = max(share * strong, floor)
        labels, count = label(smooth > threshold, np.ones((3, 3)))
        chosen = choose(searched, labels, count, strong)
        if chosen is None:
            break
        digit, trust, strong_share, touching = chosen
        if best is None:
            at_border = _members(labels, touching)
        if best is None or (trust > best.trust + 0.2 and strong_share > STRONG_SHARE):
            best = Writing(ink, labels, digit, threshold, noise, trust)
        if best.trust >= 1:
            break
    return best, at_border


def otsu(values: np.ndarray) -> float:
    """The threshold that separates values into two classes best (Otsu, 1979)."""
    counts, edges = np.histogram(values, 128)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centers)
    difference = sums / np.maximum(below, 1) - (sums[-1] - sums) / np.maximum(above, 1)
    return float(centers[(below * above * difference**2)[:-1].argmax()])


def choose(
    smooth: np.ndarray, labels: np.ndarray, count: int, strong: float
) -> tuple[tuple[int, ...], float, float, np.ndarray] | None:
    """Choose the components that are the digit: the main one, and those near it.

    Returns: their numbers; how much the main one can be trusted; their share of the strong ink; and the numbers of all
    components that touch the border. None when no component has strong ink.
    """
    from scipy.ndimage import find_objects

    inside = np.flatnonzero(labels)
    numbers, values = labels.ravel()[inside], smooth.ravel()[inside]
    mass = np.bincount(numbers, values, count + 1)[1:]
    is_strong = values > strong * 0.999
    strong_pixels = np.bincount(numbers[is_strong], minlength=count + 1)[1:]
    is_ink = strong_pixels > 0
    if not is_ink.any():
        return None
    boxes = find_objects(labels)
    short = min(labels.shape)
    heights, widths = (np.array([box[axis].stop - box[axis].start for box in boxes]) for axis in (0, 1))
    sizes = np.maximum(heights, widths)
    on_border = np.bincount(border(labels), minlength=count + 1)[1:]
    touches, runs_along = on_border > 0, on_border > BORDER_SHARE * short
    spans = touches & ((heights >= labels.shape[0] - 2) | (widths >= labels.shape[1] - 2))
    is_small = sizes < max(4, SMALL * short)
    weights = (
        np.where(runs_along, 0.05, np.where(touches, 0.5, 1)) * np.where(spans, 0.4, 1) * np.where(is_small, 0.3, 1)
    )
    main = int(np.argmax(mass * is_ink * weights))

    is_thick = is_wider(labels[boxes[main]] == main + 1, THICK * sizes[main])
    trust = 1 - 0.3 * touches[main] - 0.2 * runs_along[main] - 0.4 * is_thick - 0.3 * is_small[main]
    digit = [main + 1]
    for other in np.flatnonzero(is_ink & (mass >= 0.02 * mass[main]) & (runs_along == runs_along[main])):
        if other != main and touches[other] <= touches[main]:
            gaps = [
                max(theirs.start - ours.stop, ours.start - theirs.stop)
                for ours, theirs in zip(boxes[main], boxes[other], strict=True)
            ]
            if max(gaps) <= NEAR * sizes[main]:
                digit.append(int(other) + 1)
    strong_share = sum(strong_pixels[number - 1] for number in digit) / strong_pixels.sum()
    return tuple(digit), float(trust), float(strong_share), 1 + np.flatnonzero(touches)


def is_wider(mask: np.ndarray, width: float) -> bool:
    """Whether the strokes in a mask are wider than so many pixels."""
    disc = 4 / 3 * float(np.sqrt(mask.sum() / np.pi))  # in pixels; no shape of that area has wider strokes
    return disc + 2 > width and stroke_width(mask) > width  # 2: pixels are no circles


def stroke_width(mask: np.ndarray) -> float:
    """Mean width of the strokes in a mask, in pixels: four times the mean distance to their edges."""
    from scipy.ndimage import distance_transform_edt

    return max(1.0, 4 * float(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask].mean() - 0.5))


def compose(writing: Writing) -> np.ndarray:
    """Compose the digit as MNIST's authors did: uint8 (28, 28), of full brightness, its strokes not too thin."""
    from PIL import Image
    from scipy.ndimage import center_of_mass, maximum_filter

    mask, ink = writing.mask, writing.ink
    rows, columns = extent(mask)
    fringe = max(1, round(_size(rows, columns) / 20))
    around = widened(rows, columns, fringe)
    mask, ink = mask[around], ink[around]
    floor = max(FAINT * ink[mask].max(), NOISE_LEVELS * writing.noise, writing.threshold / 2)
    grown = mask | (maximum_filter(mask, 2 * fringe + 1, mode="constant") & (ink > floor))
    crop = extent(grown)
    strong = ink[mask & (ink >= ink[mask].mean())]
    digit = np.where(grown, ink, 0)[crop].clip(0, np.percentile(strong, 70))
    if digit.max() == 0:  # it is seen only in the smooth picture
        digit = grown[crop].astype(np.float32)
    digit = digit / digit.max()

    height, width = _fitted(digit.shape)
    missing = STROKE - stroke_width(mask) * 20 / max(digit.shape)
    if missing > 0:
        digit = thicken(digit, (height, width), missing)
        height, width = _fitted(digit.shape)
    fitted = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)).clip(0)
    brightest = np.percentile(fitted, 95) if fitted.size > 50 else fitted.max()
    fitted = (fitted * (255 / (brightest or fitted.max()))).clip(0, 255)
    # In MNIST, the center of mass is at pixel 14, rounded.
    top, left = (round(14 - center) for center in center_of_mass(fitted))
    top, left = min(max(top, 0), 28 - height), min(max(left, 0), 28 - width)
    frame = np.zeros((28, 28), np.uint8)
    frame[top : top + height, left : left + width] = fitted.round().astype(np.uint8)
    return frame


def thicken(digit: np.ndarray, fitted: tuple[int, int], missing: float) -> np.ndarray:
    """Widen strokes by `missing` pixels of the frame; returns the digit four times as large as `fitted`, and more."""
    from PIL import Image
    from scipy.ndimage import grey_dilation

    height, width = fitted
    is_larger = max(digit.shape) > 80
    filter = Image.Resampling.BOX if is_larger else Image.Resampling.BICUBIC
    large = np.asarray(Image.fromarray(digit).resize((width * 4, height * 4), filter)).clip(0)
    radius = missing / 2 * 4
    reach = int(np.ceil(radius))
    across = np.arange(-reach, reach + 1)
    pen = across[:, None] ** 2 + across**2 <= radius**2 + 0.5
    return grey_dilation(np.pad(large / max(float(large.max()), 1e-6), reach), footprint=pen)


def _members(labels: np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The pixels of the components with these numbers, bool (H, W)."""
    is_member = np.zeros(int(labels.max()) + 1, bool)
    is_member[list(numbers)] = True
    return np.take(is_member, labels)  # in less time than is_member[labels]


def _fitted(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width when the longer is 20."""
    height, width = (max(1, round(side * 20 / max(shape))) for side in shape)
    return height, width


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a mask that has at least one pixel."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def widened(rows: slice, columns: slice, margin: int) -> tuple[slice, slice]:
    """The rows and columns with a margin of so many pixels around them; the picture itself is the limit."""
    wider = [slice(max(0, part.start - margin), part.stop + margin) for part in (rows, columns)]
    return wider[0], wider[1]


def _size(rows: slice, columns: slice) -> int:
    """The longer side of an extent, in pixels."""
    return int(max(rows.stop - rows.start, columns.stop - columns.start))


def border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of a picture, one after the other."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
