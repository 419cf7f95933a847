"""Accuracy on pictures as people make them: `python -m benchmarks.real` draws digits, photographs and predicts them.

With --folder it measures labelled pictures of your own instead.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from benchmarks import pictures
from benchmarks.errors import one_line_errors
from drilldown.errors import ParameterError
from drilldown.inference import predict
from drilldown.inference.files import SUFFIXES
from drilldown.inference.reader import Answer, Reader
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


CONFIDENT = 0.9  # probability


def share(found: Iterable[bool]) -> dict[str, float]:
    """How many there are, with the 95 % interval of their share."""
    answers = [bool(answer) for answer in found]
    low, high = wilson_interval(sum(answers), len(answers))
    return {"pictures": len(answers), "right": sum(answers), "low": low, "high": high}


def judged(answers: Sequence[Answer], labels: Sequence[int]) -> dict[str, float]:
    """How many are right, with the 95 % interval of their share; how many are refused, how many are sure."""
    right = [answer.digit == label for answer, label in zip(answers, labels, strict=True)]
    sure = [answer.refusal is None and not answer.unsure for answer in answers]
    return share(right) | {
        "refused": sum(answer.refusal is not None for answer in answers),
        "sure": sum(sure),
        "sure_right": sum(one and other for one, other in zip(right, sure, strict=True)),
    }


def read_one(reader: Reader, picture: bytes | Path) -> Answer:
    """The reader's answer for a picture."""
    (answer,) = reader.read([picture])
    return answer


def measure_made(reader: Reader, images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, dict[str, dict]]:
    """Accuracy on pictures of digits drawn here, one an image; the kinds take turns, in random order."""
    generator = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in generator.permutation(len(images))]
    answers = []
    for kind, image, label in zip(tqdm(kinds, leave=False, disable=None), images, labels.tolist(), strict=True):
        line = pictures.center_line(kind.strokes, image, label, generator)
        answers.append(read_one(reader, pictures.picture(kind, [line], generator)))
    found: dict[str, dict[str, dict]] = {"all": {"all": judged(answers, labels.tolist())}}
    for part, choices in PARTS.items():
        found[part] = {}
        for choice in choices:
            places = [place for place, kind in enumerate(kinds) if getattr(kind, part) == choice]
            found[part][str(choice)] = judged([answers[place] for place in places], labels[places].tolist())
    return found


def measure_others(
    reader: Reader, images: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> dict[str, dict[str, dict]]:
    """What becomes of pictures without one digit: blank paper, several digits, letters, scribbles and shapes.

    Returns: how many of each kind are refused; of the last, how many get a high probability, and how many of these are
    not marked as unsure.
    """
    generator = np.random.default_rng(seed)

    def kind(paper: str) -> pictures.Kind:
        pen, camera = str(generator.choice(pictures.PENS)), str(generator.choice(pictures.CAMERAS))
        return pictures.Kind("drawn strokes", pen, paper, camera, int(generator.choice(pictures.SIZES[1:4])))

    def asked(paper: str, lines: list[np.ndarray]) -> Answer:
        return read_one(reader, pictures.picture(kind(paper), lines, generator))

    def several(number: int) -> list[np.ndarray]:
        places = generator.integers(0, len(images), number)
        strokes = str(generator.choice(pictures.STROKES))
        return [pictures.center_line(strokes, images[place], int(labels[place]), generator) for place in places]

    def refused(answers: Iterable[Answer]) -> dict[str, float]:
        return share(answer.refusal is not None for answer in answers)

    found: dict[str, dict[str, dict]] = {
        "nothing written, refused": {
            paper: refused([asked(paper, []) for _ in range(count)]) for paper in tqdm(pictures.PAPERS, leave=False)
        },
        "several digits, refused": {
            str(number): refused(
                [asked(pictures.PAPERS[turn % len(pictures.PAPERS)], several(number)) for turn in range(count)]
            )
            for number in tqdm((2, 3, 4), leave=False)
        },
        "no digit, above 90 %": {},
        "no digit, above 90 % and sure": {},
    }
    for other in tqdm(pictures.OTHERS, leave=False):
        answers = [asked("white", [pictures.other(other, generator)]) for _ in range(count)]
        high = [(answer.probability or 0) > CONFIDENT for answer in answers]
        found["no digit, above 90 %"][other] = share(high)
        sure = [one and not answer.unsure for one, answer in zip(high, answers, strict=True)]
        found["no digit, above 90 % and sure"][other] = share(sure)
    return found


def measure_folder(reader: Reader, folder: Path) -> dict[str, dict[str, dict]]:
    """Accuracy on labelled pictures, by kind (the sub-folder) and writer.

    The first character of a file's name is the digit; `_writerNN` in it tells people apart.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    labelled = [file for file in files if file.name[0].isdecimal()]
    if not labelled:
        raise ParameterError(
            f"folder is {str(folder)!r}: it takes one with pictures named after their digit, as 7_a.png"
        )
    labels = [int(file.name[0]) for file in labelled]
    answers = list(tqdm(reader.read(labelled), total=len(labelled), leave=False, disable=None))
    kinds = [str(file.parent.relative_to(folder)) for file in labelled]
    writers = [match[1] if (match := WRITER.search(file.name)) else "" for file in labelled]

    def of(kind: str, writer: str | None = None) -> dict[str, float]:
        places = [place for place, found in enumerate(kinds) if found == kind and writer in (None, writers[place])]
        return judged([answers[place] for place in places], [labels[place] for place in places])

    found: dict[str, dict[str, dict]] = {}
    for kind in dict.fromkeys(kinds):
        names = dict.fromkeys(name for name, other in zip(writers, kinds, strict=True) if other == kind)
        found[kind] = {"all": of(kind)}
        if len(names) > 1:
            found[kind] |= {name: of(kind, name) for name in names}
    metrics, *_ = predict.compare(answers, dict(zip(map(str, labelled), labels, strict=True)))
    found["all"] = {"all": judged(answers, labels) | {"calibration_error": metrics["calibration_error"]}}
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
                "refused": figures.get("refused", ""),
                "sure": figures.get("sure", ""),
                "of these right": figures.get("sure_right", ""),
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
@click.option("--count", type=click.IntRange(1), default=100, show_default=True,
              help="pictures of each kind that is not one digit")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="of everything that is drawn at random")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="measure the pictures in this folder instead: 7_writer01_a.png is a 7")  # fmt: skip
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/real.json (not with --folder)")
def main(model: str, images: int, count: int, seed: int, folder: Path | None, keep: bool) -> None:
    """Measure the model's accuracy on pictures as people make them: drawn here, or in a folder of yours."""
    store.quiet_mlflow()
    store.connect()
    with one_line_errors():
        loaded, lineage = predict.load(model)
        reader = Reader(loaded)
        if folder:
            found = measure_folder(reader, folder)
            click.echo(shown(found))
            click.echo(f"expected calibration error {found['all']['all']['calibration_error']:.4f}")
            return
        mnist = data.load("mnist")
    written, labels = mnist.test_images[:images].numpy(), mnist.test_labels[:images].numpy()
    found = measure_made(reader, written, labels, seed)
    others = measure_others(reader, written, labels, count, seed)
    click.echo(shown(found))
    click.echo(shown(others))
    if keep:
        kept = {
            "pictures": images,
            "seed": seed,
            "kinds": found,
            "others": others,
            "model": lineage,
            "versions": versions(),
        }
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    main()
