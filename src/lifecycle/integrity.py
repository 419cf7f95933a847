"""A registered model's files are those that were registered, or it is not used."""

import hashlib
import json
import warnings
from pathlib import Path

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME

TAG = "model.digest"  # of a model version


class AlteredError(Exception):
    """A model's files are not those that were registered."""


def digest(folder: str | Path) -> str:
    """SHA-256 of a model's files, by their contents and their paths in the folder."""
    files = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in Path(folder).rglob("*")
        if file.is_file()
    }
    files.pop(REGISTERED_MODEL_META_FILE_NAME, None)  # MLflow leaves it there whenever it fetches the model
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def fetch(model: ModelVersion, folder: str | Path) -> str:
    """Copy the version's files into the folder and check them; returns where they are, to be loaded from there.

    What was checked is what is loaded: nobody else writes to the copy. A version that was registered before digests
    were kept, or by other means, cannot be checked: it is used, with a warning.

    Raises AlteredError.
    """
    copy = mlflow.artifacts.download_artifacts(f"models:/{model.name}/{model.version}", dst_path=str(folder))
    name = f"{model.name} version {model.version}"
    if (expected := model.tags.get(TAG)) is None:
        warnings.warn(f"{name} has no {TAG}: whether its files were altered cannot be told", stacklevel=2)
    elif (found := digest(copy)) != expected:
        raise AlteredError(
            f"{name} was altered: the SHA-256 of its files is {found}, when registered it was {expected}"
        )
    return copy
