"""The model as others load it: exported without pickle, with its signature, its requirements and its layer table."""

import contextlib
import copy
import hashlib
import io
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import Schema, TensorSpec

from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.steps import ROOT

REQUIREMENTS = ROOT / "requirements.txt"
MODEL_PACKAGES = ("mlflow", "numpy", "torch")  # what a registered model needs to answer
SCRIPT = Path(__file__).with_name("registered_model.py")
CONFIG = {"device": "cpu", "batch_size": 100}  # on the CPU, larger batches are slower: they do not fit into the caches
EXPORT_SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28))]),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
)
# Without inputs: MLflow's server would cut fractions off before the model could refuse them.
SIGNATURE = ModelSignature(outputs=EXPORT_SIGNATURE.outputs)
INPUT = "uint8 pixel values from 0 to 255, (N, 28, 28), white on black"


def log_model(
    classifier: Classifier, dataset: Dataset, name: str, metadata: Mapping[str, object] | None = None
) -> ModelInfo:
    """Export the classifier to the active run under this name: on the CPU, without pickle, for any number of images.

    `metadata` is kept in the model, besides what the model takes and the names of its classes.
    """
    model = copy.deepcopy(classifier).cpu().eval()  # in training mode, dropout would be exported too
    own = {"dataset": dataset.name, "classes": [*dataset.classes]} if dataset.is_own else {}
    logged: ModelInfo = Model.log(
        artifact_path=None,
        name=re.sub(r"[^\w-]", "-", name),  # MLflow takes no dots, for one
        flavor=sys.modules[__name__],  # for its `save_model`
        flavor_name="pytorch",
        pytorch_model=model,
        input_example=dataset.test_images[:2].numpy(),  # of one image, MLflow would fix the number at one
        metadata={"input": INPUT} | own | dict(metadata or {}),
        validate_serving_input=False,  # registry.verify compares its answers for all test images
    )
    return logged


def save_model(
    path: str, mlflow_model: Model, pytorch_model: Classifier, validate_serving_input: bool = False, **given: Any
) -> None:
    """Save the model to a folder, in place of `mlflow.pytorch.save_model`: MLflow calls this.

    `mlflow.pytorch.load_model` gives the exported network alone, `mlflow.pyfunc.load_model` our script around it.
    """
    mlflow.pytorch.save_model(
        pytorch_model,
        path,
        mlflow_model=mlflow_model,
        serialization_format="pt2",
        signature=EXPORT_SIGNATURE,  # the export needs the shape
        pip_requirements=model_requirements(),
        **given,
    )
    shutil.copy(SCRIPT, path)
    mlflow_model.signature = SIGNATURE
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module="mlflow.pyfunc.loaders.code_model",
        model_code_path=SCRIPT.name,
        artifacts={"program": {"path": "data/model.pt2"}},
        model_config=CONFIG,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    mlflow_model.save(str(Path(path) / "MLmodel"))


def predictions_digest(predictions: np.ndarray) -> str:
    """SHA-256 of the classes (N,) that a model predicts for the test images."""
    return hashlib.sha256(predictions.astype(np.uint8).tobytes()).hexdigest()


def model_requirements() -> list[str]:
    """The pins of requirements.txt that a registered model needs, for this Python and platform."""
    from packaging.requirements import Requirement

    lines = [
        line for line in REQUIREMENTS.read_text().splitlines() if "==" in line and not line.lstrip().startswith("#")
    ]
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in map(Requirement, lines)
        if requirement.name in MODEL_PACKAGES and (requirement.marker is None or requirement.marker.evaluate())
    ]


def layer_table(network: torch.nn.Module) -> str:
    """torchsummary's table of the network; the network and the random numbers stay as they were."""
    import torchsummary

    twin = copy.deepcopy(network).cpu().eval()
    table = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (1, 28, 28), device="cpu")
    return table.getvalue()
