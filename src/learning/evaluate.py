"""How good a network is: loss, accuracy, confusion, mistakes."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn import functional as F

from src.learning.classifier import Classifier
from src.learning.pooling import fast_pools

BATCH = 500  # images at once; it changes the speed, not the result


@dataclass(frozen=True)
class Evaluation:
    """What a network said about a set of images. All tensors are on the CPU."""

    labels: Tensor  # int64 (N,)
    probabilities: Tensor  # float32 (N, 10)
    loss: float  # mean cross-entropy, in nats

    @property
    def predictions(self) -> Tensor:
        """The likeliest digit of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return percent((self.predictions == self.labels).sum(), len(self.labels))

    def confusion(self) -> np.ndarray:
        """Counts, (10, 10): row = true digit, column = predicted digit."""
        return confusion_matrix(self.labels, self.predictions, labels=range(10))

    def mistakes(self) -> Tensor:
        """The indices of the images that are wrong, the most confidently wrong first."""
        wrong = (self.predictions != self.labels).nonzero().flatten()
        return wrong[self.probabilities[wrong].amax(1).argsort(descending=True, stable=True)]


def percent(correct: int | Tensor, count: int) -> float:
    """`correct` of `count` in percent, rounded once, so that 9,940 of 10,000 is the very number 99.4."""
    return 100 * int(correct) / count


@torch.inference_mode()
def evaluate(classifier: Classifier, images: Tensor, labels: Tensor) -> Evaluation:
    """Ask the classifier, in evaluation mode, about every image, by torch's kernels: the values are its export's.

    Args:
        classifier: its mode is left as it was found.
        images: uint8 (N, 28, 28), on the classifier's device.
        labels: int64 (N,), likewise.
    """
    training = classifier.training
    classifier.eval()
    with fast_pools(classifier):
        logits = torch.cat([classifier.logits(batch) for batch in images.split(BATCH)])  # (N, 10)
    classifier.train(training)
    loss = F.cross_entropy(logits, labels).item()
    return Evaluation(labels.cpu(), logits.softmax(1).cpu(), loss)
