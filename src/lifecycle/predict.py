"""Image files to digits: each file is brought into MNIST's frame, and a registered model is asked."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from mlflow.store.artifact.utils.models import get_model_name_and_version
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import center_of_mass
from tqdm import tqdm

from src.learning.recipe import ParameterError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
BATCH = 256  # images a call of the model
INK = 0.04  # share of the darkest ink above which a pixel belongs to the digit


class PredictError(Exception):
    """There is nothing to predict from."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file."""

    file: str
    digit: int
    probability: float
    second_digit: int
    second_probability: float


def find_images(path: str | Path) -> list[Path]:
    """The image file itself, or the image files of a folder, by name.

    Raises ParameterError where there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ParameterError(f"images is {str(path)!r}: it takes an image file, or a folder with image files")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ParameterError(f"images is {str(path)!r}: it takes a folder with files that end in {', '.join(SUFFIXES)}")
    return files


def to_frame(picture: Image.Image) -> np.ndarray:
    """Bring a picture of one digit into MNIST's frame, as its authors did (http://yann.lecun.com/exdb/mnist/).

    The digit, dark on light or light on dark, is cropped, fitted into 20×20 and placed in 28×28 so that its centre of
    mass is in the middle. Returns uint8 (28, 28), white on black.

    Raises PredictError when the picture is of one colour.
    """
    if picture.mode.startswith("I"):  # 16 bit
        pixels = np.asarray(picture, np.float32) / 257
    elif "A" in picture.getbands() or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, picture.convert("RGBA")).convert("L"), np.float32)
    else:
        pixels = np.asarray(picture.convert("L"), np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ink = np.clip((pixels - np.median(edge)) * (1 if np.median(edge) < 128 else -1), 0, None)  # background 0
    if ink.max() == 0:
        raise PredictError("it is of one colour: there is no digit in it")
    rows, columns = (np.flatnonzero((ink > INK * ink.max()).any(axis)) for axis in (1, 0))
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (255 / ink.max())
    scale = 20 / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    fitted = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 255)
    # In MNIST the centre of mass lies on pixel 14, to the nearest pixel.
    top, left = (round(14 - centre) for centre in center_of_mass(fitted))
    top, left = min(max(top, 0), 28 - height), min(max(left, 0), 28 - width)
    frame = np.zeros((28, 28), np.uint8)
    frame[top : top + height, left : left + width] = fitted.round().astype(np.uint8)
    return frame


def load(model_uri: str) -> tuple[PyFuncModel, dict[str, str]]:
    """Load a model, as `models:/mnist-cnn@champion`, and say which it is: its lineage, as tags.

    Raises PredictError when the store has no such model.
    """
    try:
        model = mlflow.pyfunc.load_model(model_uri, model_config={"device": "cpu"})  # where it was exported
    except MlflowException as error:
        raise PredictError(f"model is {model_uri!r}: it takes the URI of a model in this store ({error})") from error
    lineage = {"model": model_uri, "model.id": model.metadata.model_id, "model.run_id": model.metadata.run_id}
    with contextlib.suppress(MlflowException):  # it may be no registered model, but a run's own
        client = mlflow.MlflowClient()
        version = client.get_model_version(*get_model_name_and_version(client, model_uri))
        lineage |= {"model.name": version.name, "model.version": str(version.version)}
        lineage["dataset.digest"] = version.tags.get("dataset.digest")
    return model, {name: value for name, value in lineage.items() if value}


def predict(model: PyFuncModel, files: list[Path]) -> tuple[list[Prediction], np.ndarray, dict[str, str]]:
    """Ask the model about every file.

    Returns the predictions, the images as the model saw them (uint8 (N, 28, 28)), and of the files that could not be
    read, by name, the reason.
    """
    predictions, seen, refused = [], [np.empty((0, 28, 28), np.uint8)], {}
    with tqdm(total=len(files), unit="image", desc="predicting", leave=False, disable=None) as bar:
        for start in range(0, len(files), BATCH):
            frames = {}
            for file in files[start : start + BATCH]:
                try:
                    with Image.open(file) as picture:
                        frames[file] = to_frame(picture)
                except (PredictError, UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
                    refused[str(file)] = str(error)
                bar.update()
            if frames:
                seen.append(np.stack(list(frames.values())))
                probabilities = model.predict(seen[-1])  # (B, 10)
                predictions += [_prediction(file, row) for file, row in zip(frames, probabilities, strict=True)]
    return predictions, np.concatenate(seen), refused


def _prediction(file: Path, probabilities: np.ndarray) -> Prediction:
    second, first = probabilities.argsort()[-2:].tolist()
    return Prediction(str(file), first, float(probabilities[first]), second, float(probabilities[second]))


def table(predictions: list[Prediction], most: int = 100) -> str:
    """What is shown on the screen: a line a file, and of very many the first."""
    width = max((len(row.file) for row in predictions[:most]), default=0)
    lines = [f"{'file':{width}}  digit  probability  second guess"]
    lines += [
        f"{row.file:{width}}  {row.digit:5}  {row.probability:11.2%}  {row.second_digit} ({row.second_probability:.2%})"
        for row in predictions[:most]
    ]
    if len(predictions) > most:
        lines.append(f"… and {len(predictions) - most:,} more, in predictions.csv")
    return "\n".join(lines)
