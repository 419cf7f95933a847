"""The classifier's normalisation and probabilities against the formula."""

import torch
from torch import nn

from src.learning.classifier import Classifier
from steps import step3


def test_it_normalises_and_returns_probabilities(digits):
    torch.manual_seed(0)
    network = step3.Network().eval()
    mean, std = digits.moments()
    images = digits.test_images[:7]
    expected = network((images.float().unsqueeze(1) / 255 - mean) / std).softmax(1)
    probabilities = Classifier(network, mean, std)(images)
    assert probabilities.shape == (7, 10)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


def test_normalised_training_pixels_have_mean_0_and_deviation_1(digits):
    passed_on = Classifier(nn.Identity(), *digits.moments()).logits(digits.train_images)
    assert passed_on.shape == (1437, 1, 28, 28)
    assert abs(passed_on.mean()) < 1e-4
    assert abs(passed_on.std() - 1) < 1e-4


def test_it_counts_the_networks_parameters():
    assert Classifier(nn.Linear(3, 4), 0.0, 1.0).parameters_count == 16
