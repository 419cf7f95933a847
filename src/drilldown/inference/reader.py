"""Reading: from pictures to answers, each a digit or the reason why there is none.

`predict`, the served endpoint and the drawing page all read by this module, so that they answer alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from drilldown.errors import PredictError
from drilldown.inference import framing
from drilldown.inference.refusal import AT_BORDER, find_digits, is_blank
from drilldown.learning.calibration import Calibration
from drilldown.messages import printable
from drilldown.reporting.statistics import format_probability

if TYPE_CHECKING:
    from PIL import Image

BATCH_SIZE = 64  # pictures per call of the model


@dataclass(frozen=True)
class Answer:
    """What is read in one picture, or in one of its parts.

    Either `refusal` says in one sentence why there is no answer, and `digit` and what follows from it are None; or the
    digit is there. It may be `unsure`: then the answer deserves no trust.
    """

    source: str  # name of the picture
    refusal: str | None = None
    digit: int | None = None
    probability: float | None = None
    second_digit: int | None = None
    second_probability: float | None = None
    name: str | None = None  # of the class: the digit itself, unless the model's data names its classes
    second_name: str | None = None
    unsure: bool = False
    part: int | None = None  # from 1, left to right, where the parts of a picture are read one by one
    probabilities: tuple[float, ...] | None = None  # of the ten classes
    framed: np.ndarray | None = None  # what the model saw: uint8 (28, 28)

    def in_words(self) -> str:
        """The answer in one line."""
        if self.refusal is not None:
            return f"refused: {self.refusal}"
        part = "" if self.part is None else f"part {self.part}: "
        return f"{part}{self.name}: {format_probability(self.probability or 0)}{', unsure' if self.unsure else ''}"

    def as_row(self) -> dict[str, object]:
        """As a row of a table: without the frame, and without the probabilities of all classes."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        del kept["probabilities"], kept["framed"]
        return {"file": kept.pop("source")} | kept


class Model(Protocol):
    """A loaded model, as `predict.load` returns it."""

    @property
    def metadata(self) -> Any:
        """As MLflow keeps it: its own `metadata` has what the version keeps."""

    def predict(self, data: np.ndarray) -> Any:
        """Map uint8 (N, 28, 28) to probabilities (N, 10)."""


class Reader:
    """Reads pictures with a loaded model, and with what its version keeps to judge its own answers."""

    def __init__(self, model: Model, *, several: bool = False) -> None:
        """Take a model; with `several`, each part of a picture is read, left to right, instead of refusing it."""
        kept = model.metadata.metadata or {}  # see tracking/export.py
        self.model = model
        self.several = several
        self.classes: Sequence[str] | None = kept.get("classes")  # of data of the user's own
        # Versions of before 0.2.0 keep none: then nothing is marked unsure.
        self.calibration = Calibration.from_metadata(kept["calibration"]) if "calibration" in kept else None

    @property
    def names(self) -> list[str]:
        """The names of the ten classes: the digits, unless the model's data names its classes."""
        own = self.classes or ()
        return [*own, *map(str, range(len(own), 10))]

    def read(self, pictures: Sequence[Path | str | bytes], names: Sequence[str] | None = None) -> Iterator[Answer]:
        """Read each picture: a path, or the bytes of a file; yields at least one answer for each, in order.

        `names` are the pictures' names in the answers; by default their paths, or "picture 1" and so on. Whatever is
        in one picture, it is answered, and so are the others.
        """
        names = names or [
            f"picture {number}" if isinstance(picture, bytes) else str(picture)
            for number, picture in enumerate(pictures, 1)
        ]
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            framed = map(self._frame, pictures[batch], names[batch])
            yield from self._answer([answer for parts in framed for answer in parts])

    def _frame(self, picture: Path | str | bytes, name: str) -> list[Answer]:
        """The picture, or its parts, framed; or a refusal."""
        source = printable(name)
        try:
            with framing.open_picture(Path(picture) if isinstance(picture, str) else picture) as opened:
                frames = self._frames(opened)
        except Exception as error:  # whatever is in one file, the others are read
            return [Answer(source, printable(str(error) or type(error).__name__))]
        return [
            Answer(source, framed=frame, part=number if self.several else None)
            for number, frame in enumerate(frames, 1)
        ]

    def _frames(self, picture: "Image.Image") -> list[np.ndarray]:
        """The digit in a picture in MNIST's format, or each of the digits.

        Raises: PredictError when nothing is written there, or more than one digit that nobody asked for.
        """
        if self.classes is not None:  # who knows what is in pictures of the user's own data
            is_framed = picture.size == (28, 28)
            return [np.asarray(picture.convert("L")) if is_framed else framing.to_frame(picture)]
        if (frame := framing.framed_already(picture)) is not None:
            return [frame]
        gray = framing.to_gray(picture)
        writing, digits = _find(gray)
        blank = is_blank(writing)
        if blank and writing.trust <= AT_BORDER:  # dark corners, or the edge of a table, may have hidden the digit
            writing, digits = _find(gray, fine=True)
            blank = is_blank(writing) or writing.trust <= AT_BORDER
        if blank:
            raise PredictError("nothing is written here")
        if len(digits) == 1:
            return [framing.compose(writing)]
        if not self.several:
            raise PredictError(f"more than one digit: {len(digits)} parts")
        return [framing.compose(framing.look_closer(gray, part, margin=0.1)) for part in digits]

    def _answer(self, answers: list[Answer]) -> Iterator[Answer]:
        """Ask the model about all frames at once, and complete the answers."""
        frames = [answer.framed for answer in answers if answer.framed is not None]
        if frames:
            images = np.stack(frames)
            probabilities = np.asarray(self.model.predict(images))
            unsure = np.zeros(len(images), bool)
            if self.calibration:
                unsure = self.calibration.unsure(images, probabilities)
                probabilities = self.calibration.temper(probabilities)
            found = zip(probabilities, unsure.tolist(), strict=True)
        for answer in answers:
            yield answer if answer.framed is None else self._complete(answer, *next(found))

    def _complete(self, answer: Answer, probabilities: np.ndarray, unsure: bool) -> Answer:
        second, first = probabilities.argsort()[-2:].tolist()
        return replace(
            answer,
            digit=first,
            name=self.names[first],
            probability=float(probabilities[first]),
            second_digit=second,
            second_name=self.names[second],
            second_probability=float(probabilities[second]),
            unsure=unsure,
            probabilities=tuple(probabilities.tolist()),
        )


def _find(gray: "Image.Image", fine: bool = False) -> tuple[framing.Writing, list[framing.Writing]]:
    """The writing on a page, seen closer if it is one digit, and each of the digits in it."""
    page = framing.search_page(gray, fine)
    digits = find_digits(page)
    return (framing.look_closer(gray, page) if len(digits) == 1 else page), digits
