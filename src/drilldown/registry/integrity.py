"""Integrity: a registered model is used only if its files are those that were registered."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion

from drilldown.errors import VerificationError
from drilldown.tracking.tags import ours

TAG = "model.digest"  # of a model version, without our prefix
DOWNLOAD_NOTE = "registered_model_meta"  # MLflow adds this file to every model that it downloads by name and version
COMPILED = "__pycache__"  # Python adds this folder where somebody loads a model with a script straight from the store


def digest(folder: str | Path) -> str:
    """SHA-256 of a model's files: their contents, and their paths in the folder."""
    files = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in Path(folder).rglob("*")
        if file.is_file()
    }
    files.pop(DOWNLOAD_NOTE, None)
    registered = {name: value for name, value in files.items() if not name.startswith(f"{COMPILED}/")}
    return hashlib.sha256(json.dumps(registered, sort_keys=True).encode()).hexdigest()


def fetch(version: ModelVersion, folder: str | Path) -> str:
    """Copy the version's files into the folder, check them, and return the path to load the model from.

    Nobody else writes to the copy, so the files that were checked are the files that are loaded. A version without a
    digest (registered by other means, or before digests were kept) is used with a warning.

    Raises: VerificationError when a file was altered.
    """
    copy: str = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(folder))
    shutil.rmtree(Path(copy) / COMPILED, ignore_errors=True)  # it is not checked, so it is not used
    name = f"{version.name} version {version.version}"
    if (expected := ours(version.tags).get(TAG)) is None:
        warnings.warn(f"{name} has no {TAG}: whether its files were altered cannot be told", stacklevel=2)
    elif (found := digest(copy)) != expected:
        raise VerificationError(
            f"{name} was altered: the SHA-256 of its files is {found}, when registered it was {expected}"
        )
    return copy
