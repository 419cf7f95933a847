"""Image files to digits: each file is brought into MNIST's frame, and a registered model is asked."""

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.pyfunc import PyFuncModel
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.utils.uri import is_models_uri
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.ndimage import center_of_mass
from tqdm import tqdm

from src.learning.recipe import ParameterError
from src.lifecycle import integrity
from src.lifecycle.messages import printable

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF")  # whatever a file is called, no other of PIL's readers touches it
BATCH = 256  # images a call of the model
LARGEST = 100_000_000  # bytes of a file; in a larger one PIL may look for a picture for minutes
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
    """The image file itself, or what is called like an image file in a folder, by name.

    Raises ParameterError where there is none.
    """
    try:
        path = Path(path).expanduser()
        if path.is_file():
            return [path.resolve() if path.is_symlink() else path]  # wherever it is: this link the user has named
        if not path.is_dir():
            raise ParameterError(f"images is {str(path)!r}: it takes an image file, or a folder with image files")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user that there is not
        raise ParameterError(
            f"images is {str(path)!r}: it takes an image file, or a folder that can be read ({error})"
        ) from error
    if not files:
        raise ParameterError(f"images is {str(path)!r}: it takes a folder with files that end in {', '.join(SUFFIXES)}")
    return files


def read(file: Path) -> np.ndarray:
    """The picture in the file, in MNIST's frame.

    Raises PredictError and, of damaged or hostile files, whatever PIL raises.
    """
    if file.is_symlink() and not Path(os.path.realpath(file, strict=True)).is_relative_to(file.parent.resolve()):
        raise PredictError("it is a link that points outside the folder")
    if not file.is_file():
        raise PredictError("it is not a file")  # but a folder, or a pipe that would keep us waiting
    if (size := file.stat().st_size) > LARGEST:
        raise PredictError(f"it has {size:,} bytes: at most {LARGEST:,} are read")
    with file.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PIL could read in spite of it
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            raise PredictError(f"cannot identify image file: it is none of {', '.join(FORMATS)}") from None
        ImageOps.exif_transpose(picture, in_place=True)
        return to_frame(picture)


def to_frame(picture: Image.Image) -> np.ndarray:
    """Bring a picture of one digit into MNIST's frame, as its authors did (http://yann.lecun.com/exdb/mnist/).

    The digit, dark on light or light on dark, is cropped, fitted into 20×20 and placed in 28×28 so that its centre of
    mass is in the middle. Returns uint8 (28, 28), white on black.

    Raises PredictError when the picture is of one colour, or not of numbers.
    """
    if picture.mode[0] in "IF":  # 16 bit, 32 bit or floating point, on whatever scale
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
    dark = background - pixels.min() < pixels.max() - background
    ink = np.clip((pixels - background) * (1 if dark else -1), 0, None)
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


def on_paper(picture: Image.Image, colour: str) -> np.ndarray:
    """A transparent picture laid on paper of that colour: float32 (H, W), from 0 to 255."""
    paper = Image.new("RGBA", picture.size, colour)
    return np.asarray(Image.alpha_composite(paper, picture.convert("RGBA")).convert("L"), np.float32)


def load(model_uri: str) -> tuple[PyFuncModel, dict[str, str]]:
    """Load a model, as `models:/mnist-cnn@champion`, and say which it is: its lineage, as tags.

    Raises: ParameterError when the store has no such model, PredictError when its files are not those that it was
    registered with.
    """
    try:
        version = _version(model_uri)
        with tempfile.TemporaryDirectory() as folder:
            source = integrity.fetch(version, folder) if version else model_uri
            model = mlflow.pyfunc.load_model(source, model_config={"device": "cpu"})  # where it was exported
    except integrity.AlteredError as error:
        raise PredictError(
            f"model is {model_uri!r}: {error}; restore its files, or go back to an earlier champion (rollback)"
        ) from error
    except OSError:  # no room to copy it to
        raise
    except Exception as error:  # the store's, and whatever a damaged file makes PyTorch raise
        raise ParameterError(f"model is {model_uri!r}: it takes the URI of a model in this store ({error})") from error
    lineage = {"model": model_uri, "model.id": model.metadata.model_id, "model.run_id": model.metadata.run_id}
    if version:
        lineage |= {"model.name": version.name, "model.version": str(version.version)}
        lineage |= {tag: version.tags.get(tag) for tag in ("dataset.digest", integrity.TAG)}
    return model, {name: value for name, value in lineage.items() if value}


def _version(model_uri: str) -> ModelVersion | None:
    """The registered version that the URI stands for now; none where it is a run's own model, or a folder."""
    if not is_models_uri(model_uri):
        return None
    client = mlflow.MlflowClient()
    name, *version = get_model_name_and_version(client, model_uri)
    return client.get_model_version(name, *version) if version else None  # models:/m-… is no version


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
                    frames[file] = read(file)
                except Exception as error:  # one file, whatever is in it, must not cost the others
                    refused[printable(str(file))] = printable(str(error) or type(error).__name__)
                bar.update()
            if frames:
                seen.append(np.stack(list(frames.values())))
                probabilities = model.predict(seen[-1])  # (B, 10)
                predictions += [_prediction(file, row) for file, row in zip(frames, probabilities, strict=True)]
    return predictions, np.concatenate(seen), refused


def _prediction(file: Path, probabilities: np.ndarray) -> Prediction:
    second, first = probabilities.argsort()[-2:].tolist()
    return Prediction(printable(str(file)), first, float(probabilities[first]), second, float(probabilities[second]))


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
