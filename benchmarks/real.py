"""Accuracy on pictures as people make them: `python -m benchmarks.real` draws digits, photographs and predicts them.

With --folder it measures labelled pictures of your own instead.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from benchmarks import pictures
from benchmarks.errors import one_line_errors
from drilldown.errors import ParameterError
from drilldown.inference import predict
from drilldown.learning import data
from drilldown.reporting.report import columns
from drilldown.reporting.statistics import wilson_interval
from drilldown.steps import ROOT
from drilldown.tracking import store
from drilldown.tracking.provenance import versions

RESULT = ROOT / "results" / "real.json"
PARTS: dict[str, tuple] = {
    "strokes": pictures.STROKES,
    "pen": pictures.PENS,
    "paper": pictures.PAPERS,
    "camera": pictures.CAMERAS,
    "size": pictures.SIZES,
}
KINDS = [pictures.Kind(*kind) for kind in itertools.product(*PARTS.values())]
WRITER = re.compile(r"_(writer\w*?)(?=[_.])")


def share(right: Iterable[bool]) -> dict[str, float]:
    """How many are right, with the 95 % interval of their share."""
    answers = [bool(answer) for answer in right]
    low, high = wilson_interval(sum(answers), len(answers))
    return {"pictures": len(answers), "right": sum(answers), "low": low, "high": high}


def answer(model: Any, file: Path) -> int | None:
    """The digit that the model sees in the file; None if the picture is refused."""
    predictions, *_ = predict.predict(model, [file])
    return predictions[0].digit if predictions else None


def measure_made(model: Any, images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, dict[str, dict]]:
    """Accuracy on pictures of digits drawn here, one an image; the kinds take turns, in random order."""
    generator = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in generator.permutation(len(images))]
    right = np.zeros(len(labels), bool)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture"
        for place, kind in enumerate(tqdm(kinds, leave=False, disable=None)):
            file.write_bytes(pictures.picture(kind, images[place], int(labels[place]), generator))
            right[place] = answer(model, file) == labels[place]
    found: dict[str, dict[str, dict]] = {"all": {"all": share(right)}}
    for part, choices in PARTS.items():
        of_part = np.array([getattr(kind, part) for kind in kinds])
        found[part] = {str(choice): share(right[of_part == choice]) for choice in choices}
    return found


def measure_folder(model: Any, folder: Path) -> dict[str, dict[str, dict]]:
    """Accuracy on labelled pictures, by kind (the sub-folder) and writer.

    The first character of a file's name is the digit; `_writerNN` in it tells people apart.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in predict.SUFFIXES]
    labelled = [file for file in files if file.name[0].isdecimal()]
    if not labelled:
        raise ParameterError(
            f"folder is {str(folder)!r}: it takes one with pictures named after their digit, as 7_a.png"
        )
    right = np.array([answer(model, file) == int(file.name[0]) for file in tqdm(labelled, leave=False, disable=None)])
    kinds = np.array([str(file.parent.relative_to(folder)) for file in labelled])
    writers = np.array([match[1] if (match := WRITER.search(file.name)) else "" for file in labelled])
    found: dict[str, dict[str, dict]] = {}
    for kind in dict.fromkeys(kinds.tolist()):
        of_kind = kinds == kind
        names = dict.fromkeys(writers[of_kind])
        found[kind] = {"all": share(right[of_kind])}
        if len(names) > 1:
            found[kind] |= {name: share(right[of_kind & (writers == name)]) for name in names}
    return found


def shown(found: dict[str, dict[str, dict]]) -> str:
    """The figures as a table."""
    return columns(
        [
            {
                "kind": kind,
                "pictures": value,
                "right": f"{figures['right']} of {figures['pictures']}",
                "%": f"{100 * figures['right'] / figures['pictures']:.1f}",
                "95 % interval": f"{100 * figures['low']:.1f} to {100 * figures['high']:.1f}",
            }
            for kind, values in found.items()
            for value, figures in values.items()
        ]
    )


@click.command()
@click.option("--model", default="models:/mnist-cnn@champion", show_default=True, help="URI of the model to ask")
@click.option(
    "--images", type=click.IntRange(len(KINDS), 10_000), default=2 * len(KINDS), show_default=True, help="count"
)
@click.option("--seed", default=0, show_default=True, help="of everything that is drawn at random")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="measure the pictures in this folder instead: 7_writer01_a.png is a 7")  # fmt: skip
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/real.json (not with --folder)")
def main(model: str, images: int, seed: int, folder: Path | None, keep: bool) -> None:
    """Measure the model's accuracy on pictures as people make them: drawn here, or in a folder of yours."""
    store.quiet_mlflow()
    store.connect()
    with one_line_errors():
        loaded, lineage = predict.load(model)
        if folder:
            click.echo(shown(measure_folder(loaded, folder)))
            return
        mnist = data.load("mnist")
    found = measure_made(loaded, mnist.test_images[:images].numpy(), mnist.test_labels[:images].numpy(), seed)
    click.echo(shown(found))
    if keep:
        kept = {"pictures": images, "seed": seed, "kinds": found, "model": lineage, "versions": versions()}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    main()
