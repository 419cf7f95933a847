"""What a prediction needs besides the reader: the image files, the model, the labels, and the table of the answers."""

import csv
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

import mlflow.pyfunc
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.pyfunc import PyFuncModel

# Public, though not in MLflow's documentation: the rules of its model URIs. With rules of our own, a URI that only
# MLflow understands would load a registered model without checking its files.
from mlflow.store.artifact.utils.models import get_model_name_and_version

from drilldown.errors import ParameterError, PredictError, VerificationError
from drilldown.inference.reader import Answer
from drilldown.learning.evaluate import percent
from drilldown.messages import printable
from drilldown.registry import integrity
from drilldown.registry.champion import explain_no_champion, get_champion
from drilldown.reporting.report import columns
from drilldown.reporting.statistics import calibration_error, format_probability
from drilldown.tracking import invocation
from drilldown.tracking.tags import ours

DIGITS = tuple("0123456789")
CHAMPION = re.compile("models:/([^/@]+)@champion")


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


def read_labels(labels: str, files: Sequence[Path], classes: Sequence[str] = DIGITS) -> list[int | None]:
    """The label of each file, from a CSV file with the columns file and label, or from the names of the files.

    Args:
        labels: the CSV file, in which a file is named by its path or its name; or "names": then the first character of
            a file's name is its label.
        classes: the names of the labels.

    Raises: ParameterError when the CSV file cannot be read, or no file has a label.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if labels == "names":
        found = [numbers.get(file.name[:1]) for file in files]
        if all(label is None for label in found):
            raise ParameterError("labels is 'names': it takes files whose names begin with their digit, as 7_a.png")
        return found
    refusal = f"labels is {labels!r}: it takes names, or a CSV file with the columns file and label"
    try:
        with Path(labels).expanduser().open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        known = {row["file"]: row["label"].strip() for row in rows}
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise ParameterError(f"{refusal} ({type(error).__name__}: {error})") from None
    for file, label in known.items():
        if label not in numbers:
            raise ParameterError(f"{refusal}: the label of {file} is {label!r}, it takes one of {', '.join(classes)}")
    found = [numbers.get(known.get(str(file), known.get(file.name, ""))) for file in files]
    if all(label is None for label in found):
        raise ParameterError(f"{refusal}: it names none of the {len(files):,} files")
    return found


def compare(
    answers: Sequence[Answer], labels: Mapping[str, int | None]
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Compare answers with labels, by file; a refused picture counts as wrong.

    Returns: the metrics, accuracies in percent; and of each labelled picture that was answered, the probability of the
    answer and whether it is right.
    """
    labelled = {printable(file): label for file, label in labels.items() if label is not None}
    found = [answer for answer in answers if answer.source in labelled]
    right = np.array([answer.digit == labelled[answer.source] for answer in found], bool)
    is_answered = np.array([answer.refusal is None for answer in found], bool)
    is_sure = is_answered & ~np.array([answer.unsure for answer in found], bool)
    confidences = np.array([answer.probability or 0 for answer in found])[is_answered]
    metrics = {
        "labelled": len(found),
        "accuracy": percent(int(right.sum()), len(found)),
        "sure": int(is_sure.sum()),
        "calibration_error": calibration_error(confidences, right[is_answered]),
    }
    if is_sure.any():
        metrics["sure_accuracy"] = percent(int(right[is_sure].sum()), int(is_sure.sum()))
    return metrics, confidences, right[is_answered]


def accuracy_line(metrics: Mapping[str, float]) -> str:
    """What `compare` found, in words."""
    sure = f", {metrics['sure_accuracy']:.2f} % of the {metrics['sure']:,} that are sure" if metrics["sure"] else ""
    return (
        f"right: {metrics['accuracy']:.2f} % of {metrics['labelled']:,} labelled pictures{sure}; "
        f"expected calibration error {metrics['calibration_error']:.4f}"
    )


def table(answers: Sequence[Answer], most: int = 100) -> str:
    """The answers for the screen, one a line; only the first `most` if there are more."""
    named = any(answer.name != str(answer.digit) for answer in answers)
    rows = [
        {
            "file": answer.source,
            **({"part": answer.part} if answer.part else {}),
            "class" if named else "digit": answer.name if named else answer.digit,
            "probability": format_probability(answer.probability or 0),
            "second guess": f"{answer.second_name} ({format_probability(answer.second_probability or 0)})",
            **({"note": "unsure" if answer.unsure else ""} if any(row.unsure for row in answers) else {}),
        }
        for answer in answers[:most]
    ]
    more = len(answers) - most
    return columns(rows) + (f"\n… and {more:,} more, in predictions.csv" if more > 0 else "")
