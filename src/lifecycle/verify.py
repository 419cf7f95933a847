"""Ask registered models in a process of its own: `python -I verify.py IMAGES.npy ANSWERS.npy MODEL_FOLDER...`.

A script, not part of the package: it imports nothing of this project, as those who will load the model do not have it.
It writes the digits (models, N) that each model says of the images.
"""

import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.pyfunc import PyFuncModel


def main(images_file: str, answers_file: str, *models: str) -> None:
    images = np.load(images_file)
    np.save(answers_file, [answers(load(model), images) for model in models])


def load(folder: str) -> PyFuncModel:
    try:
        return mlflow.pyfunc.load_model(folder)
    except Exception as error:  # whatever it is, it says that users cannot load it
        sys.exit(f"{Path(folder).name} cannot be loaded by a fresh process: {' '.join(str(error).split())}")


def answers(model: PyFuncModel, images: np.ndarray) -> np.ndarray:
    # The same batches as in learning/evaluate.py, and torch's own kernels too: other sums could turn a draw.
    batches = np.split(images, range(1000, len(images), 1000))
    return np.concatenate([model.predict(batch).argmax(axis=1) for batch in batches])


if __name__ == "__main__":
    main(*sys.argv[1:])
