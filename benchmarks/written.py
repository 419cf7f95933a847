"""Accuracy on image files: `python -m benchmarks.written` writes MNIST's test images to files and predicts those.

The files differ in size, polarity, place and format, and are written by Pillow alone. The champion then classifies them
as `mlflow run . -e predict` does.
"""

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.errors import one_line_errors
from drilldown.inference import predict
from drilldown.inference.files import find_images
from drilldown.inference.reader import Reader
from drilldown.learning import data
from drilldown.learning.evaluate import BATCH_SIZE, percent
from drilldown.steps import ROOT
from drilldown.tracking import store
from drilldown.tracking.provenance import versions

RESULT = ROOT / "results" / "written.json"
SIZES = (28, 20, 40, 100, 280)  # side of the square with the digit, in pixels
FORMATS = ("png", "bmp", "tiff", "gif", "jpg")
KINDS = list(itertools.product(SIZES, ("white on black", "black on white"), ("centered", "off center"), FORMATS))


def write(image: np.ndarray, file: Path, size: int, polarity: str, place: str, generator: np.random.Generator) -> None:
    """Write an image, uint8 (28, 28), to the file."""
    digit = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
    picture = digit
    if place == "off center":
        picture = Image.new("L", tuple(size * generator.integers(11, 30, 2) // 10))
        picture.paste(digit, tuple(generator.integers(0, np.array(picture.size) - size + 1)))
    if polarity == "black on white":
        picture = picture.point(lambda value: 255 - value)
    picture.save(file, **({"quality": 90} if file.suffix == ".jpg" else {}))


def accuracies(model, images: np.ndarray, labels: np.ndarray, kinds: Sequence[tuple]) -> dict[str, float]:
    """Return the accuracy in percent on the images as they are, and on files of each kind; the kinds take turns."""
    generator = np.random.default_rng(0)
    batches = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
    answers = np.concatenate([model.predict(batch).argmax(1) for batch in batches])
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(tqdm(images, desc="writing", leave=False, disable=None)):
            *style, suffix = kinds[number % len(kinds)]
            write(image, Path(folder) / f"{number:05}.{suffix}", *style, generator)
        found_digits = [answer.digit for answer in Reader(model).read(find_images(folder)[0])]
    right = np.array([digit == label for digit, label in zip(found_digits, labels, strict=True)])  # a refusal is wrong
    found = {
        "as they are": percent((answers == labels).sum(), len(labels)),
        "as files": percent(right.sum(), len(labels)),
    }
    for part, values in enumerate(zip(*kinds, strict=True)):
        for value in dict.fromkeys(values):
            of_kind = [kinds[number % len(kinds)][part] == value for number in range(len(labels))]
            found[f"{value} pixels" if part == 0 else value] = percent(right[of_kind].sum(), sum(of_kind))
    return found


@click.command()
@click.option("--model", default="models:/mnist-cnn@champion", show_default=True, help="URI of the model to ask")
@click.option("--images", type=click.IntRange(len(KINDS), 10_000), default=10_000, show_default=True, help="count")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/written.json")
def main(model: str, images: int, keep: bool) -> None:
    """Compare the model's accuracy on MNIST's test images with its accuracy on the same images as files."""
    store.quiet_mlflow()
    store.connect()
    with one_line_errors():
        mnist = data.load("mnist")
        loaded, lineage = predict.load(model)
    found = accuracies(loaded, mnist.test_images[:images].numpy(), mnist.test_labels[:images].numpy(), KINDS)
    for name, accuracy in found.items():
        click.echo(f"{accuracy:6.2f} %  {name}")
    click.echo(f"{found['as files'] / found['as they are']:.2%} of the accuracy on the images as they are")
    if keep:
        kept = {"images": images, "accuracy": found, "model": lineage, "versions": versions()}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    main()
