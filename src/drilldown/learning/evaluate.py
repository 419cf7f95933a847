"""Evaluation of a classifier: loss, accuracy, confusion matrix, mistakes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from drilldown.learning.classifier import Classifier

BATCH_SIZE = 500  # the last bits depend on it: the verification of an exported model takes the same


@dataclass(frozen=True)
class Evaluation:
    """The answers of a classifier for a set of images. All tensors are on the CPU."""

    labels: Tensor  # int64 (N,)
    probabilities: Tensor  # float32 (N, 10)
    loss: float  # mean cross-entropy, in nats

    @classmethod
    def collect(cls, labels: Tensor, probabilities: Tensor, loss: Tensor) -> "Evaluation":
        """Collect the answers from the device where they were computed."""
        return cls(labels.cpu(), probabilities.cpu(), loss.item())

    @property
    def predictions(self) -> Tensor:
        """The most probable digit of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return percent((self.predictions == self.labels).sum(), len(self.labels))

    def confusion(self) -> np.ndarray:
        """Counts, (10, 10): row = true digit, column = predicted digit."""
        return torch.bincount(10 * self.labels + self.predictions, minlength=100).reshape(10, 10).numpy()

    def mistakes(self) -> Tensor:
        """Indices of the images that are wrong, the most confident mistake first."""
        wrong = (self.predictions != self.labels).nonzero().flatten()
        return wrong[self.probabilities[wrong].amax(1).argsort(descending=True, stable=True)]


def percent(correct: int | Tensor, count: int) -> float:
    """Return `correct` of `count` in percent, rounded once, so that 9,940 of 10,000 is exactly the number 99.4."""
    return 100 * int(correct) / count


def evaluate(classifier: Classifier, images: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate the classifier in evaluation mode, in batches of BATCH_SIZE.

    The probabilities are computed per batch, as the exported model computes them.

    Args:
        classifier: its mode is restored afterwards.
        images: uint8 (N, 28, 28), on the classifier's device.
        labels: int64 (N,), likewise.
    """
    return Evaluation.collect(labels, *compute_answers(classifier, images, labels))


@torch.inference_mode()
def compute_answers(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `evaluate` collects, on the device: the probabilities (N, 10) and the loss ()."""
    training = classifier.training
    classifier.eval()
    logits = [classifier.logits(batch) for batch in images.split(BATCH_SIZE)]  # (B, 10) each
    probabilities = torch.cat([batch.softmax(1) for batch in logits])  # (N, 10)
    classifier.train(training)
    return probabilities, F.cross_entropy(torch.cat(logits), labels)
