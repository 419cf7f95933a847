"""Integrity: a registered model is used only if its files are those that were registered."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from drilldown.errors import MissingFilesError, VerificationError
from drilldown.tracking.store import local_path
from drilldown.tracking.tags import ours

TAG = "model.digest"  # of a model version, without our prefix
FILES = "model.files"  # a tag as well: the names of the files, as JSON
DOWNLOAD_NOTE = "registered_model_meta"  # MLflow adds this file to every model that it downloads by name and version
COMPILED = "__pycache__"  # Python adds this folder where somebody loads a model with a script straight from the store


def digest(folder: str | Path) -> str:
    """SHA-256 of a model's files: their contents, and their paths in the folder."""
    files = {name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() for name in names(folder)}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def names(folder: str | Path) -> list[str]:
    """The paths of a model's files in its folder."""
    found = sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())
    return [name for name in found if name != DOWNLOAD_NOTE and not name.startswith(f"{COMPILED}/")]


def fetch(version: ModelVersion, folder: str | Path) -> str:
    """Copy the version's files into the folder, check them, and return the path to load the model from.

    Nobody else writes to the copy, so the files that were checked are the files that are loaded. A version without a
    digest (registered by other means, or before digests were kept) is used with a warning.

    Raises: VerificationError when a file was altered, MissingFilesError when one is gone.
    """
    name, tags = f"{version.name} version {version.version}", ours(version.tags)
    address = MlflowClient().get_model_version_download_uri(version.name, version.version)
    if (path := local_path(address)) and not path.is_dir():
        raise MissingFilesError(f"the files of {name} are gone: there is no folder {path}")
    copy: str = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(folder))
    shutil.rmtree(Path(copy) / COMPILED, ignore_errors=True)  # it is not checked, so it is not used
    found_names = names(copy)
    if missing := sorted({*json.loads(tags.get(FILES, "[]"))} - {*found_names}):
        raise MissingFilesError(f"files of {name} are gone: there is no {', '.join(missing)} in {path or address}")
    if not found_names:
        raise MissingFilesError(f"the files of {name} are gone: {path or address} is empty")
    if (expected := tags.get(TAG)) is None:
        warnings.warn(f"{name} has no {TAG}: whether its files were altered cannot be told", stacklevel=2)
    elif (found := digest(copy)) != expected:
        raise VerificationError(
            f"{name} was altered: the SHA-256 of its files is {found}, when registered it was {expected}"
        )
    return copy
