"""What `import drilldown` gives: load data and steps, train, evaluate, load the champion, frame a picture.

Nothing here writes to the tracking store. What is given wrongly, cannot be read or is not there raises one of
drilldown.errors, whose message says what is wrong; what a network itself raises comes through.
"""

from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from PIL import Image
from torch import nn
from torch.nn import functional as F

from drilldown.choices import DEFAULT_MODEL
from drilldown.errors import ParameterError, PredictError, StoreError, check
from drilldown.inference import framing, predict
from drilldown.learning import data, train
from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import BATCH_SIZE, Evaluation
from drilldown.learning.evaluate import evaluate as evaluate_classifier
from drilldown.learning.recipe import BOUNDS, Recipe
from drilldown.learning.train import TrainState
from drilldown.messages import without_password
from drilldown.steps import load_step
from drilldown.tracking import store

__all__ = ["Recipe", "evaluate", "fit", "frame", "load_champion", "load_data", "load_step"]


def load_data(dataset: str | Path = "auto", folder: str | Path | None = None) -> Dataset:
    """Load a dataset into memory: images uint8 (N, 28, 28), labels int64 (N,).

    Args:
        dataset: "mnist", "digits", or "auto", which is MNIST or else the digits; or the path of data of your own: a
            folder with four IDX files, or an .npz file.
        folder: where MNIST is kept; default: the variable DRILLDOWN_DATA, or else the user's cache folder.
    """
    return data.load(dataset, folder)


def fit(
    network: Callable[[], nn.Module],
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
) -> TrainState:
    """Train a new network by the recipe, to the same weights as a run of the command line with the same arguments.

    Sets torch's seed, and makes torch deterministic.

    Args:
        network: creates the network, (N, 1, 28, 28) to logits (N, 10), as a class does.
        recipe: how to train it; `dataclasses.replace(step.recipe, epochs=2)` changes a step's.
        dataset: to train on its training images; the test images are only measured on, after each epoch.
        seed: of all random numbers.
        device: "cpu", "cuda", or "auto": CUDA if there is a device.
        engine: "numba", "torch", or "auto": numba if network and device allow it.
        threads: CPU threads; default: torch's.

    Raises: ParameterError for an argument out of its bounds, DivergedError when the loss is not finite.

    Returns: the state after the last epoch: `history` has the metrics of each epoch, and `eval_model` is the classifier
    with the weights that the command line would register, in evaluation mode.
    """
    if isinstance(network, nn.Module):  # its weights were drawn before the seed was set
        raise ParameterError(
            f"network is a {type(network).__name__}: it takes a class or a function that creates a network"
        )
    check("seed", seed, **BOUNDS["seed"])
    if threads is not None:
        check("threads", threads, **BOUNDS["threads"])
    selected = train.prepare(seed, device, threads)
    state = train.init_state(network(), recipe, dataset, seed, selected)
    for _ in train.fit(state, recipe, dataset, engine):
        pass
    state.eval_model.eval()
    return state


def evaluate(model: Classifier | PyFuncModel, dataset: Dataset) -> Evaluation:
    """Evaluate a model on the dataset's test images.

    Args:
        model: what `fit` trained (`eval_model`), or what `load_champion` or `mlflow.pyfunc.load_model` loaded.
        dataset: `dataset.hold_out(5000)` has the last 5,000 training images as its test images.

    Returns: accuracy (percent), loss (nats), probabilities, confusion matrix and mistakes.
    """
    images, labels = dataset.test_images, dataset.test_labels
    if isinstance(model, Classifier):
        device = model.mean.device
        return evaluate_classifier(model, images.to(device), labels.to(device))
    answers: list[np.ndarray] = [np.asarray(model.predict(batch.numpy())) for batch in images.split(BATCH_SIZE)]
    probabilities = torch.from_numpy(np.concatenate(answers))
    logs = probabilities.clamp_min(torch.finfo().tiny).log()  # the logarithm of 0 is not finite
    return Evaluation(labels, probabilities, F.nll_loss(logs, labels).item())


def load_champion(name: str = DEFAULT_MODEL) -> PyFuncModel:
    """Load the champion of a registered model, after a check that its files are those that were registered.

    Its `predict` maps images uint8 (N, 28, 28), white on black, to probabilities float32 (N, 10). The store is that of
    MLflow: `mlflow.set_tracking_uri`, the variable MLFLOW_TRACKING_URI, or mlflow.db in the working directory.

    Raises: StoreError when there is no store, or when it does not answer; ParameterError when the model has no
    champion; PredictError when its files were altered.
    """
    store.connect_to_read()
    if not store.exists():
        uri = without_password(mlflow.get_tracking_uri())
        raise StoreError(f"MLFLOW_TRACKING_URI is {uri!r}: no store; a training makes one")
    try:
        return predict.load(f"models:/{name}@champion")[0]
    except (MlflowException, OSError) as error:
        raise StoreError(store.explain(error)) from error


def frame(picture: str | Path | Image.Image) -> np.ndarray:
    """Bring a picture of one digit, or an image file, into MNIST's format: uint8 (28, 28), white on black.

    The digit may have any size, place and color, dark on light or light on dark.

    Raises: PredictError, with the name of the file, when it cannot be read.
    """
    try:
        if isinstance(picture, Image.Image):
            return framing.to_frame(picture)
        return framing.read_image(Path(picture).expanduser().resolve())  # a link that the user names may point anywhere
    except Exception as error:  # whatever PIL raises for a damaged picture
        raise PredictError(f"picture is {str(picture)!r}: {error or type(error).__name__}") from error
