"""The fast kernels compute what torch's own do."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.learning.kernels import fast_kernels
from steps import step2, step3, step4


@pytest.mark.parametrize("step", [step2, step3, step4])
def test_outputs_gradients_and_statistics_are_torchs(step, digits):
    torch.manual_seed(0)
    network = step.Network()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = digits.train_images[:32, None] / 255, digits.train_labels[:32]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def outcome():
        network.load_state_dict(state)
        network.zero_grad()
        logits = network(images)
        F.cross_entropy(logits, labels).backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters()]
        return logits.detach(), gradients, [buffer.clone() for buffer in network.buffers()]

    plain = outcome()
    with fast_kernels(network):
        torch.testing.assert_close(outcome(), plain, atol=1e-5, rtol=1e-3)
    assert all(torch.equal(now, before) for now, before in zip(outcome()[0], plain[0], strict=True))


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("side", [5, 20])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.5, "eps": 0.1}, {"track_running_stats": False}],
)
def test_batch_normalisation_is_torchs(channels, side, training, options):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(channels, **options).double().train(training)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 2)
    maps = torch.randn(6, channels, 11, side, dtype=torch.float64).mul_(3).add_(5).requires_grad_()
    state = {name: value.clone() for name, value in layer.state_dict().items()}

    def outcome():
        layer.load_state_dict(state)
        layer.zero_grad()
        maps.grad = None
        (result := layer(maps)).pow(3).sum().backward()
        gradients = [parameter.grad.clone() for parameter in layer.parameters()]
        return result.detach(), maps.grad, gradients, [buffer.clone() for buffer in layer.buffers()]

    plain = outcome()
    with fast_kernels(layer):
        torch.testing.assert_close(outcome(), plain)


def test_nothing_stays_behind():
    network = step3.Network()
    before = {name: set(vars(layer)) for name, layer in network.named_modules()}
    with contextlib.suppress(KeyError), fast_kernels(network):
        assert "forward" in vars(network.layers[11])  # a Dropout
        raise KeyError
    assert {name: set(vars(layer)) for name, layer in network.named_modules()} == before


def test_every_kind_of_layer_is_replaced():
    with fast_kernels(network := step3.Network()):
        replaced = {type(layer) for layer in network.modules() if "forward" in vars(layer)}
    assert replaced == {nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.Dropout}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(share):
    torch.manual_seed(0)
    layer = nn.Dropout(share)
    values = torch.ones(100, 7, 13, 11)
    with fast_kernels(layer):
        dropped = layer(values)
        assert torch.equal(layer.eval()(values), values)
    assert ((dropped == 0).double().mean() - share).abs() < 4 * (share * (1 - share) / values.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(dropped[dropped > 0].unique(), torch.tensor([1 / (1 - share)]))


def test_dropouts_seed_decides():
    layer, values = nn.Dropout(0.5), torch.ones(50, 20)
    with fast_kernels(layer):
        torch.manual_seed(1)
        once = layer(values)
        assert not torch.equal(layer(values), once)
        torch.manual_seed(1)
        assert torch.equal(layer(values), once)
