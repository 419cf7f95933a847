"""Framing: bring a picture of a digit into the format of MNIST's images."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drilldown.errors import PredictError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF")  # PIL's other readers touch no file, whatever its name
MAX_BYTES = 100_000_000  # of a file; in a larger one PIL may search for a picture for minutes
INK_THRESHOLD = 0.04  # share of the strongest ink above which a pixel belongs to the digit


def read_image(file: Path, keep_framed: bool = False) -> np.ndarray:
    """Return the picture in the file in MNIST's format: uint8 (28, 28).

    With `keep_framed`, a picture of 28×28 pixels stays as it is, in gray: models of data other than digits want images
    like those that they learned from, which only the user has.

    Raises: PredictError, and whatever PIL raises for damaged or hostile files.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if file.is_symlink() and not Path(os.path.realpath(file, strict=True)).is_relative_to(file.parent.resolve()):
        raise PredictError("it is a link that points outside the folder")
    if not file.is_file():
        raise PredictError("it is not a file")  # a folder, or a pipe, which could block forever
    if (size := file.stat().st_size) > MAX_BYTES:
        raise PredictError(f"it has {size:,} bytes: at most {MAX_BYTES:,} are read")
    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL could read the file anyway
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            raise PredictError(f"cannot identify image file: it is none of {', '.join(FORMATS)}") from None
        ImageOps.exif_transpose(picture, in_place=True)
        if keep_framed and picture.size == (28, 28):
            return np.asarray(picture.convert("L"))
        return to_frame(picture)


def to_frame(picture: "Image.Image") -> np.ndarray:
    """Bring a picture of one digit into MNIST's format, as its authors describe it (http://yann.lecun.com/exdb/mnist/).

    The digit, dark on light or light on dark, is cropped, scaled to fit into 20×20 and placed in 28×28 with its center
    of mass in the middle. Returns uint8 (28, 28), white on black.

    Raises: PredictError when the picture has one color only, or pixels that are not numbers.
    """
    from PIL import Image
    from scipy.ndimage import center_of_mass

    if picture.mode[0] in "IF":  # 16 bit, 32 bit or floating point, on an unknown scale
        pixels = np.asarray(picture, np.float32)
        if not (np.abs(pixels) < 1e30).all():
            raise PredictError("it has pixels that are not numbers, or too large")
    elif "A" in picture.getbands() or "transparency" in picture.info:
        pixels = on_paper(picture, "white")
        if np.ptp(pixels) == 0:  # white ink
            pixels = on_paper(picture, "black")
    else:
        pixels = np.asarray(picture.convert("L"), np.float32)
    background = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))
    is_dark = background - pixels.min() < pixels.max() - background
    ink = np.clip((pixels - background) * (1 if is_dark else -1), 0, None)
    if ink.max() == 0:
        raise PredictError("it is of one colour: there is no digit in it")
    rows, columns = (np.flatnonzero((ink > INK_THRESHOLD * ink.max()).any(axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (255 / ink.max())
    scale = 20 / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    fitted = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 255)
    # In MNIST, the center of mass is at pixel 14, rounded.
    top, left = (round(14 - center) for center in center_of_mass(fitted))
    top, left = min(max(top, 0), 28 - height), min(max(left, 0), 28 - width)
    frame = np.zeros((28, 28), np.uint8)
    frame[top : top + height, left : left + width] = fitted.round().astype(np.uint8)
    return frame


def on_paper(picture: "Image.Image", color: str) -> np.ndarray:
    """Put a transparent picture on paper of that color: float32 (H, W), from 0 to 255."""
    from PIL import Image

    paper = Image.new("RGBA", picture.size, color)
    return np.asarray(Image.alpha_composite(paper, picture.convert("RGBA")).convert("L"), np.float32)
