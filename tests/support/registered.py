"""Models of the small network in a test's own registry."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models.model import ModelInfo

from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import BATCH_SIZE, Evaluation
from drilldown.registry import isolated_predict, registry
from drilldown.registry.verify import Verifier
from drilldown.reporting.gate import Verdict
from drilldown.tracking import export

ONE_AT_A_TIME = threading.Lock()  # within a process, torch loads one exported model at a time


def register(
    tracked: tuple[str, Verdict, ModelInfo, Evaluation], dataset: Dataset, parameters: int = 1000
) -> registry.Registration:
    """Register the model of a tracked run as if it had passed the gate with that many parameters."""
    run_id, verdict, model, evaluation = tracked
    verdict = replace(verdict, passed=True, metrics={**verdict.metrics, "parameters": parameters})
    return registry.register(model, run_id, "small", verdict, evaluation.accuracy, dataset)


def log_as_before(classifier: Classifier, dataset: Dataset, name: str, *_: object) -> ModelInfo:
    """Log a model as `export.log_model` did before models had a script; of its arguments, it takes the first three."""
    return mlflow.pytorch.log_model(
        copy.deepcopy(classifier).cpu().eval(),
        name=name,
        serialization_format="pt2",
        signature=export.EXPORT_SIGNATURE,
        input_example=dataset.test_images[:2].numpy(),
        pip_requirements=export.model_requirements(),
    )


def aliases(store: MlflowClient) -> dict[str, str]:
    """The aliases of digits-cnn, with the versions that they stand for."""
    return {alias: str(version) for alias, version in store.get_registered_model("digits-cnn").aliases.items()}


def verify_in_process(monkeypatch) -> None:
    """Let verifiers predict in this process: a fresh one takes seconds to start."""
    monkeypatch.setattr(Verifier, "start", lambda verifier: None)
    monkeypatch.setattr(Verifier, "predict", lambda verifier, models, images: predict_in_process(models, images))


def predict_in_process(models: list[Path], images: np.ndarray) -> np.ndarray:
    """What a verifier's process does."""
    with ONE_AT_A_TIME:
        loaded = [isolated_predict.load(model, BATCH_SIZE) for model in models]
        return np.stack([isolated_predict.predict(model, images, BATCH_SIZE) for model in loaded])
