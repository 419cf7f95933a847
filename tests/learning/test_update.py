"""One update: what comes in and goes out through tensors."""

import pytest
import torch
from torch.nn import functional as F

from drilldown.errors import DivergedError
from drilldown.learning import train
from drilldown.learning.recipe import Recipe
from drilldown.learning.update import Update
from tests.support.networks import SmallNetwork

RECIPE = Recipe(epochs=2, batch_size=10, lr=0.5, momentum=0)


@pytest.fixture
def state(digits):
    return train.init_state(SmallNetwork(dropout=0), RECIPE, digits, 0, train.prepare(0, "cpu"))


@pytest.fixture
def update(state):
    return Update(state.classifier.train(), state.optimizer, state.average, label_smoothing=0.0, epoch_updates=3)


@pytest.fixture
def batches(digits):
    return list(zip(digits.train_images[:30].float().split(10), digits.train_labels[:30].split(10), strict=True))


def test_the_learning_rate_is_that_of_the_tensor(state, update, batches):
    """Not that of the optimizer, which belongs to the scheduler and stays."""
    weight = state.classifier.network.layers[1].weight
    for rate in (0.01, 0.02):
        before = weight.detach().clone()
        update.learning_rate.fill_(rate)
        update(*batches[0], average=False)
        torch.testing.assert_close(weight.detach(), before - rate * weight.grad)
        assert state.optimizer.param_groups[0]["lr"] == 0.5


def test_the_figures_are_those_before_each_update(state, update, batches):
    losses, correct = [], 0
    for pixels, digits in batches:
        logits = state.classifier.logits(pixels)
        losses.append(F.cross_entropy(logits, digits).item())
        correct += int((logits.argmax(1) == digits).sum())
        update.learning_rate.fill_(0.1)
        update(pixels, digits, average=False)
    assert update.figures(1, 3, 30) == (pytest.approx(sum(losses) / 3), 100 * correct / 30)
    assert update.figures(1, 2, 20)[0] == pytest.approx(sum(losses[:2]) / 2)


def test_an_epoch_starts_with_new_figures(update, batches):
    update(*batches[0], average=False)
    update.start_epoch()
    update(*batches[1], average=False)
    update(*batches[1], average=False)
    assert update.losses[0] == update.losses[1] != 0
    assert update.losses[2] == 0
    assert update.correct in range(0, 21, 2)


def test_a_loss_that_is_not_finite(update, batches):
    pixels, digits = batches[0]
    update(pixels, digits, average=False)
    update(pixels * torch.nan, digits, average=False)
    with pytest.raises(DivergedError, match="training diverged: the loss of epoch 7, update 2 is nan"):
        update.figures(7, 2, 20)
