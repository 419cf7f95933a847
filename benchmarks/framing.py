"""How long it takes to frame a picture of 1,000 pixels: to decode its file, and to find and compose the digit in it.

The pictures are made here, one of each kind of that size (benchmarks/pictures.py): PNG files, and JPEG files where they
are photographed.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click
import numpy as np
from PIL import Image

from benchmarks import pictures
from benchmarks.real import KINDS
from drilldown.inference.framing import open_picture, to_frame, to_gray
from drilldown.learning import data

SIZE = 1000  # long side, in pixels


def measure(repeats: int) -> dict:
    """Time each picture, and print the medians over the pictures, in milliseconds."""
    mnist = data.load("mnist")
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[float, ...]]] = {camera: [] for camera in pictures.CAMERAS}
    for number, kind in enumerate(kind for kind in KINDS if kind.size == SIZE):
        image, digit = mnist.train_images[number].numpy(), int(mnist.train_labels[number])
        line = pictures.center_line(kind.strokes, image, digit, generator)
        file = pictures.picture(kind, [line], generator)
        found[kind.camera].append(tuple(milliseconds(partial(call, file), repeats) for call in (decoded, framed)))
    measured = {}
    for camera, times in found.items():
        decode, both = (median(values) for values in zip(*times, strict=True))
        slowest = max(both for _, both in times)
        measured[camera] = {"pictures": len(times), "decode": decode, "both": both, "slowest": slowest}
        click.echo(
            f"  {camera:12} {both:5.1f} ms a picture, {decode:.1f} ms of them to decode it; the slowest of "
            f"{len(times)} takes {slowest:.1f} ms"
        )
    return {"framing": measured}


def decoded(file: bytes) -> Image.Image:
    """The picture in gray."""
    with open_picture(file) as picture:
        return to_gray(picture)


def framed(file: bytes) -> np.ndarray:
    """The digit in the picture, as MNIST's images are: uint8 (28, 28)."""
    with open_picture(file) as picture:
        return to_frame(picture)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return median(times)
