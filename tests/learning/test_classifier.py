"""The classifier's normalization and probabilities against their formulas."""

import torch
from torch import nn

from drilldown.learning.classifier import Classifier
from drilldown.steps import load_step


def test_it_normalizes_and_returns_probabilities(digits):
    torch.manual_seed(0)
    network = load_step("step3").network().eval()
    mean, std = digits.moments()
    images = digits.test_images[:7]
    expected = network((images.float().unsqueeze(1) / 255 - mean) / std).softmax(1)
    probabilities = Classifier(network, mean, std)(images)
    assert probabilities.shape == (7, 10)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


def test_normalized_training_pixels_have_mean_0_and_deviation_1(digits):
    normalized = Classifier(nn.Identity(), *digits.moments()).logits(digits.train_images)
    assert normalized.shape == (1437, 1, 28, 28)
    assert abs(normalized.mean()) < 1e-4
    assert abs(normalized.std() - 1) < 1e-4


def test_it_counts_the_parameters_of_the_network():
    assert Classifier(nn.Linear(3, 4), 0.0, 1.0).num_parameters == 16
