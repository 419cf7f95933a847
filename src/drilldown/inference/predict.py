"""Prediction: find image files, load a model, and predict the digit in each file."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import mlflow.pyfunc
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.pyfunc import PyFuncModel

# Public, though not in MLflow's documentation: the rules of its model URIs. With rules of our own, a URI that only
# MLflow understands would load a registered model without checking its files.
from mlflow.store.artifact.utils.models import get_model_name_and_version
from tqdm import tqdm

from drilldown.errors import ParameterError, PredictError, VerificationError
from drilldown.inference.framing import read_image
from drilldown.messages import printable
from drilldown.registry import integrity
from drilldown.registry.champion import explain_no_champion, get_champion
from drilldown.reporting.report import columns
from drilldown.reporting.statistics import format_probability
from drilldown.tracking import invocation
from drilldown.tracking.tags import ours

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
CHAMPION = re.compile("models:/([^/@]+)@champion")
BATCH_SIZE = 256  # images per call of the model


@dataclass(frozen=True)
class Prediction:
    """A model's two most probable classes for one file."""

    file: str
    digit: int
    probability: float
    second_digit: int
    second_probability: float
    name: str  # of the first class: the digit itself, unless the model's data names its classes
    second_name: str


def find_images(path: str | Path) -> list[Path]:
    """Return the image file itself, or the files of a folder whose names end like those of images, sorted by name.

    Raises: ParameterError when there is none.
    """
    try:
        path = Path(path).expanduser()
        if path.is_file():
            return [path.resolve() if path.is_symlink() else path]  # the user named this link, so it may point anywhere
        if not path.is_dir():
            raise ParameterError(f"images is {str(path)!r}: it takes an image file, or a folder with image files")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        raise ParameterError(
            f"images is {str(path)!r}: it takes an image file, or a folder that can be read ({error})"
        ) from error
    if not files:
        raise ParameterError(f"images is {str(path)!r}: it takes a folder with files that end in {', '.join(SUFFIXES)}")
    return files


def load(model_uri: str) -> tuple[PyFuncModel, dict[str, str]]:
    """Load a model, as `models:/mnist-cnn@champion`; return it with tags that identify it.

    Raises: ParameterError when the store has no such model, PredictError when its files were altered after its
    registration.
    """
    if (asked := CHAMPION.fullmatch(model_uri)) and get_champion(name := asked[1]) is None:
        missing = explain_no_champion(name, lambda other: invocation.argument(model=f"models:/{other}@champion"))
        raise ParameterError(f"model is {model_uri!r}: {missing}")
    try:
        version = _registered_version(model_uri)
        with tempfile.TemporaryDirectory() as folder:
            source = integrity.fetch(version, folder) if version else model_uri
            model = mlflow.pyfunc.load_model(source, model_config={"device": "cpu"})  # as all are exported
    except VerificationError as error:
        raise PredictError(
            f"model is {model_uri!r}: {error}; restore its files, or go back to an earlier champion (rollback)"
        ) from error
    except OSError:  # no space left for the copy
        raise
    except Exception as error:  # the store's errors, and whatever PyTorch raises for a damaged file
        raise ParameterError(f"model is {model_uri!r}: it takes the URI of a model in this store ({error})") from error
    identity = {"model": model_uri, "model.id": model.metadata.model_id, "model.run_id": model.metadata.run_id}
    if version:
        tags = ours(version.tags)
        identity |= {"model.name": version.name, "model.version": str(version.version)}
        identity |= {tag: tags.get(tag) for tag in ("dataset.digest", integrity.TAG)}
    return model, {name: value for name, value in identity.items() if value}


def _registered_version(model_uri: str) -> ModelVersion | None:
    """The registered version that the URI stands for now; None for a model of a run, and for a folder."""
    if urlparse(model_uri).scheme != "models":
        return None
    client = mlflow.MlflowClient()
    name, *version = get_model_name_and_version(client, model_uri)
    return client.get_model_version(name, *version) if version else None  # models:/m-… is not registered


def own_classes(model: PyFuncModel) -> list[str] | None:
    """The names of the model's classes, if it learned from data of the user's own."""
    return (model.metadata.metadata or {}).get("classes")  # see export.log_model


def predict(
    model: PyFuncModel, files: list[Path], classes: Sequence[str] | None = None
) -> tuple[list[Prediction], np.ndarray, dict[str, str]]:
    """Predict the digit in every file, or one of the classes of the user's own data (see `own_classes`).

    Returns: the predictions; the images as the model saw them, uint8 (N, 28, 28); and for each file that could not be
    read, by its name, the reason.
    """
    predictions: list[Prediction] = []
    images = [np.empty((0, 28, 28), np.uint8)]
    refused: dict[str, str] = {}
    with tqdm(total=len(files), unit="image", desc="predicting", leave=False, disable=None) as bar:
        for start in range(0, len(files), BATCH_SIZE):
            frames: dict[Path, np.ndarray] = {}
            for file in files[start : start + BATCH_SIZE]:
                try:
                    frames[file] = read_image(file, keep_framed=classes is not None)
                except Exception as error:  # whatever is in one file, the others are predicted
                    refused[printable(str(file))] = printable(str(error) or type(error).__name__)
                bar.update()
            if frames:
                images.append(np.stack(list(frames.values())))
                probabilities: np.ndarray = np.asarray(model.predict(images[-1]))  # (B, 10)
                answers = zip(frames, probabilities, strict=True)
                predictions += [_prediction(file, row, classes or ()) for file, row in answers]
    return predictions, np.concatenate(images), refused


def _prediction(file: Path, probabilities: np.ndarray, classes: Sequence[str]) -> Prediction:
    second, first = probabilities.argsort()[-2:].tolist()
    names = [*classes, *map(str, range(len(classes), len(probabilities)))]
    return Prediction(
        printable(str(file)),
        first,
        float(probabilities[first]),
        second,
        float(probabilities[second]),
        names[first],
        names[second],
    )


def table(predictions: list[Prediction], most: int = 100) -> str:
    """The predictions for the screen, one file per line; only the first `most` if there are more."""
    named = any(row.name != str(row.digit) for row in predictions)
    rows = [
        {
            "file": row.file,
            "class" if named else "digit": row.name if named else row.digit,
            "probability": format_probability(row.probability),
            "second guess": f"{row.second_name} ({format_probability(row.second_probability)})",
        }
        for row in predictions[:most]
    ]
    more = len(predictions) - most
    return columns(rows) + (f"\n… and {more:,} more, in predictions.csv" if more > 0 else "")
