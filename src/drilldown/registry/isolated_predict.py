"""Predict with registered models in a separate process: `python -I isolated_predict.py BATCH_SIZE`.

This is a script that imports nothing of this project, because users who load a model do not have the project. It
imports what it needs at once, so that it can be started early. It then answers requests until its input ends.
A request is a line of JSON on standard input: `images` is a file with uint8 images (N, 28, 28), `models` a list of
model folders, and `answers` the file to which the digits (models, N) are written. The reply is a line of JSON on
standard output: null, or what went wrong.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel


def main(batch_size: int) -> None:
    """Answer the requests on standard input, one after the other."""
    gc.disable()  # looking for garbage costs the imports a second
    import mlflow.pyfunc  # noqa: F401 (now, and not while a request waits)
    import torch.export.pt2_archive  # noqa: F401 (MLflow imports it when it loads a model: two seconds)

    gc.freeze()  # what was imported stays
    gc.enable()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be mistaken for a reply
    sys.modules["drilldown"] = None  # type: ignore[assignment]  # not importable, even where it is installed
    for line in sys.stdin:
        request = json.loads(line)
        try:
            images = np.load(request["images"])
            answers = [predict(load(model, batch_size), images, batch_size) for model in request["models"]]
            np.save(request["answers"], answers)
            error = None
        except Exception as caught:  # whatever a model raises is a reason not to promote it
            error = " ".join(str(caught).split()) or type(caught).__name__
        print(json.dumps(error), file=replies, flush=True)


def load(folder: str | Path, batch_size: int) -> PyFuncModel:
    """Load a model as users do, to answer in batches of this size. Raises RuntimeError when that fails."""
    import mlflow.pyfunc

    config = {"device": "cpu", "batch_size": batch_size}  # models of earlier versions know `device` alone
    try:  # nobody reads warnings here
        model: PyFuncModel = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True, model_config=config)
    except Exception as error:
        raise RuntimeError(f"{Path(folder).name} cannot be loaded by a fresh process: {error}") from error
    return model


def predict(model: PyFuncModel, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the most probable digit of each image, int (N,)."""
    batches = np.split(images, range(batch_size, len(images), batch_size))
    return np.concatenate([np.asarray(model.predict(batch)).argmax(axis=1) for batch in batches])


if __name__ == "__main__":
    main(int(sys.argv[1]))
