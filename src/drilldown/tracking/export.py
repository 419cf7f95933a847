"""The model as others load it: exported without pickle, with its signature, its requirements and its layer table."""

import contextlib
import copy
import io
import re
from collections.abc import Mapping

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import Schema, TensorSpec

from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.steps import ROOT

REQUIREMENTS = ROOT / "requirements.txt"
MODEL_PACKAGES = ("mlflow", "numpy", "torch")  # what a registered model needs to answer
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28))]),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
)


def log_model(
    classifier: Classifier, dataset: Dataset, name: str, metadata: Mapping[str, object] | None = None
) -> ModelInfo:
    """Export the classifier to the active run under this name: on the CPU, without pickle, for any number of images.

    `metadata` is kept in the model, besides the names of its classes.
    """
    own = {"dataset": dataset.name, "classes": [*dataset.classes]} if dataset.is_own else {}
    model = copy.deepcopy(classifier).cpu().eval()  # in training mode, dropout would be exported too
    return mlflow.pytorch.log_model(
        model,
        name=re.sub(r"[^\w-]", "-", name),  # MLflow takes no dots, for one
        serialization_format="pt2",
        signature=SIGNATURE,
        input_example=dataset.test_images[:2].numpy(),  # of one image, MLflow would fix the number at one
        pip_requirements=model_requirements(),
        metadata=own | dict(metadata or {}),
    )


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
