"""Score a logged model in a process of its own: `python -I verify.py MODEL_URI IMAGES.npy LABELS.npy`.

A script, not part of the package: it imports nothing of this project, as those who will load the model do not have it.
It prints the number of right answers.
"""

import sys

import mlflow.pyfunc
import numpy as np


def main(model_uri: str, images_file: str, labels_file: str) -> None:
    model = mlflow.pyfunc.load_model(model_uri)
    images, labels = np.load(images_file), np.load(labels_file)
    # The same batches as in learning/evaluate.py: another order of the sums could turn a draw.
    batches = np.split(images, range(1000, len(images), 1000))
    predictions = np.concatenate([model.predict(batch).argmax(axis=1) for batch in batches])
    print(int((predictions == labels).sum()))


if __name__ == "__main__":
    main(*sys.argv[1:])
