"""Are digits still recognised as image files? `python -m benchmarks.written` writes MNIST's test images out and asks.

Each image is written at another size, polarity, place and format, with Pillow alone; the champion then labels the
files, as `mlflow run . -e predict` does. A slow way to 10,000 answers, and the way a user's own pictures go.
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

from benchmarks.errors import in_one_line
from src.learning import data
from src.learning.evaluate import percent
from src.lifecycle import predict, store, verify
from src.lifecycle.provenance import versions

RESULT = Path(__file__).parents[1] / "results" / "written.json"
SIZES = (28, 20, 40, 100, 280)  # of the digit's own square, pixels
FORMATS = ("png", "bmp", "tiff", "gif", "jpg")
KINDS = list(itertools.product(SIZES, ("white on black", "black on white"), ("centred", "off centre"), FORMATS))


def write(image: np.ndarray, file: Path, size: int, polarity: str, place: str, generator: np.random.Generator) -> None:
    """Write an image, uint8 (28, 28), to the file."""
    digit = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
    picture = digit
    if place == "off centre":
        picture = Image.new("L", tuple(size * generator.integers(11, 30, 2) // 10))
        picture.paste(digit, tuple(generator.integers(0, np.array(picture.size) - size + 1)))
    if polarity == "black on white":
        picture = picture.point(lambda value: 255 - value)
    picture.save(file, **({"quality": 90} if file.suffix == ".jpg" else {}))


def accuracies(model, images: np.ndarray, labels: np.ndarray, kinds: Sequence[tuple]) -> dict[str, float]:
    """Share of right answers, in percent, about the images as they are and about the files; the kinds take turns."""
    generator = np.random.default_rng(0)
    straight = verify.answers(model, images)
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(tqdm(images, desc="writing", leave=False, disable=None)):
            *how, suffix = kinds[number % len(kinds)]
            write(image, Path(folder) / f"{number:05}.{suffix}", *how, generator)
        predictions, _, refused = predict.predict(model, predict.find_images(folder))
    assert not refused
    right = np.array([row.digit for row in predictions]) == labels
    found = {
        "as they are": percent((straight == labels).sum(), len(labels)),
        "as files": percent(right.sum(), len(labels)),
    }
    for part, values in enumerate(zip(*kinds, strict=True)):
        for value in dict.fromkeys(values):
            of_kind = [kinds[number % len(kinds)][part] == value for number in range(len(labels))]
            found[f"{value} pixels" if part == 0 else value] = percent(right[of_kind].sum(), sum(of_kind))
    return found


@click.command()
@click.option("--model", default="models:/mnist-cnn@champion", show_default=True, help="URI of the model to ask")
@click.option("--images", type=click.IntRange(len(KINDS), 10_000), default=10_000, show_default=True, help="how many")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/written.json")
def main(model: str, images: int, keep: bool) -> None:
    """Compare the model's accuracy on MNIST's test images with that on the same images as files."""
    store.connect()
    with in_one_line():
        mnist = data.load("mnist")
        loaded, lineage = predict.load(model)
    found = accuracies(loaded, mnist.test_images[:images].numpy(), mnist.test_labels[:images].numpy(), KINDS)
    for name, accuracy in found.items():
        click.echo(f"{accuracy:6.2f} %  {name}")
    click.echo(f"{found['as files'] / found['as they are']:.2%} of the accuracy on the images as they are")
    if keep:
        kept = {"images": images, "accuracy": found, "model": lineage, "versions": versions()}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        click.echo(f"kept in {RESULT}")


if __name__ == "__main__":
    main()
