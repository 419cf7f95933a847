"""Pictures of digits, and a model that needs no training."""

import numpy as np
from mlflow.models import Model
from PIL import Image

from drilldown.learning.data import Dataset


def digit(dataset: Dataset, number: int) -> np.ndarray:
    """The first test image of that digit, uint8 (28, 28)."""
    return dataset.test_images[dataset.test_labels == number][0].numpy()


def on_canvas(image: np.ndarray, *, size=(90, 60), at=(40, 5), zoom: int = 1, background: int = 0) -> Image.Image:
    """The image somewhere on a larger canvas."""
    large = Image.fromarray(image).resize((28 * zoom, 28 * zoom), Image.Resampling.BICUBIC)
    canvas = Image.new("L", size, background)
    canvas.paste(large, at)
    return canvas


class Brightest:
    """A model that always predicts 7; the brighter the image, the higher the probability."""

    metadata = Model()  # of digits: data of the user's own would have its name and classes here

    def predict(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        brightness = images.reshape(len(images), -1).mean(1, dtype=np.float32) / 255
        probabilities = np.repeat(((1 - brightness) / 10)[:, None], 10, axis=1).astype(np.float32)
        probabilities[:, 7] += brightness
        return probabilities
