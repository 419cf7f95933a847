"""From a model that passed the gate to the champion: register, verify, promote."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo

from src.learning.data import Dataset
from src.learning.evaluate import Evaluation, percent
from src.lifecycle.gate import Verdict

VERIFIER = Path(__file__).with_name("verify.py")


class VerificationError(Exception):
    """A registered model does not answer as it did when it was logged."""


@dataclass(frozen=True)
class Registration:
    """What became of a model that passed the gate."""

    name: str
    version: str
    champion: bool
    reason: str


def model_name(dataset: Dataset) -> str:
    """Models of different datasets are never mixed."""
    return f"{dataset.name}-cnn"


def register(
    model: ModelInfo, run_id: str, step: str, verdict: Verdict, evaluation: Evaluation, dataset: Dataset
) -> Registration:
    """Register a model as challenger, verify it in a fresh process, and promote it if it beats the champion.

    Registering the same model again finds the version that it has.

    Raises: ValueError when the verdict is not a pass, VerificationError when the reloaded model's accuracy is not the
    logged one; the version then stays a challenger.
    """
    if not verdict.passed:
        raise ValueError(f"only a model that passed the gate is registered, and this one did not: {verdict.reasons}")
    client = MlflowClient()
    name = model_name(dataset)
    found = _find(client, name, model.model_uri) or _create(client, name, model, run_id)
    version = str(found.version)
    tags = {
        "step": step,
        "dataset.digest": dataset.digest,
        "parameters": f"{verdict.metrics['parameters']:.0f}",
        "streak_accuracy": repr(verdict.metrics["streak_accuracy"]),
        "test_accuracy": repr(evaluation.accuracy),
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, "challenger", version)
    verify(f"models:/{name}/{version}", dataset, evaluation.accuracy)
    client.set_model_version_tag(name, version, "verified", "true")
    return _promote(client, name, version, verdict.metrics["streak_accuracy"])


def _find(client: MlflowClient, name: str, model_uri: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.source == model_uri), None)


def _create(client: MlflowClient, name: str, model: ModelInfo, run_id: str) -> ModelVersion:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, model.model_uri, run_id, model_id=model.model_id)


def verify(model_uri: str, dataset: Dataset, expected: float) -> None:
    """Score the model on the whole test set in a fresh process that cannot import this project.

    Raises VerificationError unless its accuracy (percent) is exactly the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        images, labels = Path(folder) / "images.npy", Path(folder) / "labels.npy"
        np.save(images, dataset.test_images.numpy())
        np.save(labels, dataset.test_labels.numpy())
        # -I: neither this folder nor PYTHONPATH is searched for modules
        command = [sys.executable, "-I", str(VERIFIER), model_uri, str(images), str(labels)]
        store = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
        done = subprocess.run(command, env=os.environ | store, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise VerificationError(f"{model_uri} cannot be loaded by a fresh process: {last[0]}")
    found = percent(int(done.stdout.split()[-1]), len(dataset.test_labels))
    if found != expected:
        raise VerificationError(f"{model_uri} has {found:.2f} % when reloaded, and had {expected:.2f} % when logged")


def _promote(client: MlflowClient, name: str, version: str, streak: float) -> Registration:
    champion = get_champion(client, name)
    if champion and str(champion.version) == version:
        return Registration(name, version, True, "it is the champion already")
    if champion and float(champion.tags["streak_accuracy"]) > streak:
        reason = (
            f"version {champion.version} stays champion: its streak accuracy is "
            f"{float(champion.tags['streak_accuracy']):.2f} %, the challenger's {streak:.2f} %"
        )
        return Registration(name, version, False, reason)
    client.set_registered_model_alias(name, "champion", version)
    rival = f"version {champion.version} had {float(champion.tags['streak_accuracy']):.2f} %" if champion else "first"
    return Registration(name, version, True, f"streak accuracy {streak:.2f} % ({rival})")


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that the alias `champion` stands for now, if there is one."""
    version = client.get_registered_model(name).aliases.get("champion")
    return client.get_model_version(name, version) if version else None
