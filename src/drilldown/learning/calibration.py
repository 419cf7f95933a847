"""Calibration: when an answer of a classifier deserves trust.

Three things are fitted on images whose labels are known and which the network did not see in this form: a temperature,
which makes the probabilities honest (Guo et al., "On Calibration of Modern Neural Networks", 2017); a threshold, below
which an answer is unsure; and a small network that tells digits from what is no digit. It learns from images that are
cut, turned, mirrored or laid over each other (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", 2019),
and sees an image at a quarter of its size together with the classifier's probabilities.

docs/inference.md says what each constant was chosen on.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from drilldown.engine import accelerate
from drilldown.learning.augment import augment
from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import compute_answers

IMAGES = 2000  # to fit on
HELD_OUT = 800  # the part of them that the small network does not learn from
CHANGES = {"rotation": 15.0, "translate": 0.03, "scale": 0.08}  # more than in training
RIGHT = 0.999  # share of these images that must be right above the threshold
HIGHEST = 0.99  # threshold at most
UNLIKE = 0.1  # share of the digits held out that the small network may take for something else
HIDDEN = 32  # units of the small network
EPOCHS, BATCH_SIZE, RATE, DECAY = 20, 128, 0.02, 1e-4  # of its training
LEAST = 1e-12  # a probability that is smaller counts as this
LOWEST, HIGHEST_TEMPERATURE = 0.5, 3.0


@dataclass(frozen=True)
class Likeness:
    """The small network: features of an image to a score, below 0 for what is no digit."""

    weights: NDArray[np.float32]  # (features + 1, HIDDEN), the bias last
    output: NDArray[np.float32]  # (HIDDEN + 1,), likewise

    def scores(self, images: NDArray[np.uint8], probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the score (N,) of images uint8 (N, 28, 28) with the classifier's probabilities (N, 10)."""
        found = features(torch.from_numpy(images), torch.from_numpy(np.asarray(probabilities, np.float32))).numpy()
        hidden = np.maximum(found @ self.weights[:-1] + self.weights[-1], 0)
        scores: NDArray[np.float32] = hidden @ self.output[:-1] + self.output[-1]
        return scores


@dataclass(frozen=True)
class Calibration:
    """What is kept with a model to judge its answers."""

    temperature: float
    threshold: float  # of the probability, after the temperature
    likeness: Likeness | None = None  # None for data of the user's own, whose mirrored images may be as good

    def temper(self, probabilities: NDArray[Any]) -> NDArray[np.float32]:
        """Return the probabilities (N, 10) at the temperature; their order stays."""
        return _temper(torch.from_numpy(np.asarray(probabilities, np.float32)), self.temperature).numpy()

    def unsure(self, images: NDArray[np.uint8], probabilities: NDArray[Any]) -> NDArray[np.bool_]:
        """Say which answers deserve no trust (N,); `probabilities` are the classifier's own."""
        found: NDArray[np.bool_] = self.temper(probabilities).max(1) < self.threshold
        if self.likeness:
            found = found | (self.likeness.scores(images, probabilities) < 0)
        return found

    def as_metadata(self) -> dict[str, object]:
        """As text and numbers, for the metadata of a model."""
        kept: dict[str, object] = {"temperature": self.temperature, "threshold": self.threshold}
        if self.likeness:
            numbers = np.concatenate([self.likeness.weights.ravel(), self.likeness.output])
            kept["likeness"] = base64.b64encode(numbers.astype("<f2").tobytes()).decode()
        return kept

    @classmethod
    def from_metadata(cls, kept: Mapping[str, Any]) -> "Calibration":
        """Restore what `as_metadata` gave."""
        likeness = None
        if "likeness" in kept:
            numbers = np.frombuffer(base64.b64decode(kept["likeness"]), "<f2").astype(np.float32)
            likeness = Likeness(numbers[: -HIDDEN - 1].reshape(-1, HIDDEN), numbers[-HIDDEN - 1 :])
        return cls(float(kept["temperature"]), float(kept["threshold"]), likeness)


def calibrate(classifier: Classifier, dataset: Dataset) -> Calibration:
    """Fit the calibration of a trained classifier; torch's random numbers stay as they were.

    The images are those of the validation slice, if the dataset has one, or else training images; in both cases turned,
    moved and scaled. The test images decide nothing.
    """
    is_held_out = dataset.split == "validation"
    images, labels = (
        (dataset.test_images, dataset.test_labels) if is_held_out else (dataset.train_images, dataset.train_labels)
    )
    images, labels = images[-IMAGES:], labels[-IMAGES:]
    generator = torch.Generator().manual_seed(0)
    digits = _changed(images.float(), generator)
    probabilities = _ask(classifier, digits)
    temperature = _fit_temperature(probabilities, labels)
    tempered, found = _temper(probabilities, temperature).max(1)
    threshold = _fit_threshold(tempered, found == labels)
    if dataset.is_own:
        return Calibration(temperature, threshold)
    others = _changed(_others(images.float(), labels, generator), generator)
    likeness = _fit_likeness(features(digits, probabilities), features(others, _ask(classifier, others)), generator)
    return Calibration(temperature, threshold, likeness)


def features(images: Tensor, probabilities: Tensor) -> Tensor:
    """What the small network sees: the image, uint8 (N, 28, 28), at a quarter of its size, and the probabilities."""
    small = F.avg_pool2d(images[:, None] / 255, 4).flatten(1)  # (N, 49)
    logits = probabilities.clamp_min(LEAST).log()
    return torch.cat([small, (logits - logits.mean(1, keepdim=True)) / 5], 1)  # (N, 59)


def _changed(images: Tensor, generator: torch.Generator) -> Tensor:
    return augment(images, generator, **CHANGES).round().clamp(0, 255).to(torch.uint8)


def _ask(classifier: Classifier, images: Tensor) -> Tensor:
    device = classifier.mean.device
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)  # the loss is of no interest
    with accelerate(classifier, engine="torch"):
        return compute_answers(classifier, images.to(device), labels)[0].cpu()


def _temper(probabilities: Tensor, temperature: float) -> Tensor:
    return (probabilities.clamp_min(LEAST).log() / temperature).softmax(1)


def _fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest cross-entropy."""
    candidates: list[float] = torch.arange(LOWEST, HIGHEST_TEMPERATURE, 0.05).tolist()
    losses = [F.nll_loss(_temper(probabilities, candidate).log(), labels).item() for candidate in candidates]
    return round(candidates[int(np.argmin(losses))], 2)


def _fit_threshold(probabilities: Tensor, right: Tensor) -> float:
    """The lowest probability above which enough answers are right."""
    order = probabilities.argsort(descending=True)
    shares = right[order].float().cumsum(0) / torch.arange(1, len(order) + 1)
    enough = (shares >= RIGHT).nonzero().flatten()
    if not len(enough):
        return HIGHEST
    return round(min(probabilities[order[enough[-1]]].item(), HIGHEST), 3)


def _others(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images that are no digits, made of digits (N, 28, 28): float (about N, 28, 28)."""
    partners = images[torch.randperm(len(images), generator=generator)]
    half = torch.arange(28) < 14
    top, left = half[None, :, None], half[None, None, :]
    across, down = images.flip(2), images.flip(1)
    made = {  # each with the digits that it makes no other digit of
        "the top of one, the bottom of another": (torch.where(top, images, partners), range(10)),
        "the left of one, the right of another": (torch.where(left, images, partners), range(10)),
        "the left and its mirror image": (torch.where(left, images, across), (2, 4, 5, 7)),
        "the right and its mirror image": (torch.where(left, across, images), (2, 4, 5, 7)),
        "the top and its mirror image": (torch.where(top, images, down), (4, 5, 6, 7)),
        "the bottom and its mirror image": (torch.where(top, down, images), (2, 4, 5, 7, 9)),
        "turned by a quarter": (torch.rot90(images, 1, (1, 2)), range(10)),
        "mirrored from left to right": (across, (2, 3, 4, 5, 6, 7, 9)),
        "mirrored from top to bottom": (down, (2, 4, 5, 6, 7, 9)),
        "one over another": (torch.maximum(images, partners), range(10)),
    }
    turn = torch.arange(len(images)) % len(made)
    return torch.cat(
        [
            changed[(turn == number) & torch.isin(labels, torch.tensor([*takes]))]
            for number, (changed, takes) in enumerate(made.values())
        ]
    )


def _fit_likeness(digits: Tensor, others: Tensor, generator: torch.Generator) -> Likeness:
    """Train the small network, and shift its scores so that it takes few of the digits held out for something else."""
    held_out = min(HELD_OUT, len(digits) // 2)
    inputs = F.pad(torch.cat([digits[held_out:], others]), (0, 1), value=1)  # with a one for the bias
    targets = torch.cat([torch.ones(len(digits) - held_out), torch.zeros(len(others))])
    weights = torch.empty(inputs.shape[1], HIDDEN).normal_(0, 0.15, generator=generator).requires_grad_()
    output = torch.empty(HIDDEN + 1).normal_(0, 0.15, generator=generator).requires_grad_()

    def scores(inputs: Tensor) -> Tensor:
        return F.pad((inputs @ weights).relu(), (0, 1), value=1) @ output

    updates = EPOCHS * -(-len(inputs) // BATCH_SIZE)
    optimizer = torch.optim.Adam([weights, output], lr=RATE, weight_decay=DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=updates)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs), generator=generator).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(scores(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        output[-1] -= scores(F.pad(digits[:held_out], (0, 1), value=1)).quantile(UNLIKE)
    return Likeness(weights.detach().numpy(), output.detach().numpy())
