"""What folded maps give is what torch's layers make of the maps as they are."""

import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from src.learning import folding
from src.learning.kernels import fast_kernels
from steps import step2, step3, step4


@pytest.fixture
def folds(monkeypatch):
    """The maps that were folded, in a list."""
    folds, fold = [], folding._fold
    monkeypatch.setattr(folding, "_fold", lambda values: folds.append(values) or fold(values))
    return folds


def watched(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def own(layer: nn.Module) -> nn.Module:
    layer.forward = lambda values: values[:, :1].expand(-1, 3, -1, -1) * 2
    return layer


TO_POOL = nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)


@pytest.mark.parametrize(
    ("layers", "side", "folded"),
    [
        ([nn.Conv2d(2, 3, 3), *TO_POOL, nn.Conv2d(3, 4, 3), nn.Flatten()], 20, True),
        ([nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 3, 1), *TO_POOL], (18, 22), True),
        ([nn.ReLU(), nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 3), nn.MaxPool2d(2)], 16, True),
        ([nn.Conv2d(2, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last), *TO_POOL], 20, True),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d((2, 2), stride=[2, 2])], 20, True),
        ([nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d([2, 2])], 20, True),
        ([nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)], 20, False),  # it changes the maps that it gets
        ([own(nn.Conv2d(2, 3, 3)), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3), own(nn.ReLU()), nn.MaxPool2d(2)], 20, False),
        ([nn.Conv2d(2, 3, 3), *TO_POOL], (20, 21), False),
        ([nn.Conv2d(2, 3, 3), *TO_POOL], (21, 20), False),
        ([nn.Conv2d(2, 3, 3), *TO_POOL], (4, 20), False),
        ([nn.Conv2d(2, 3, 3), *TO_POOL], 10, False),
        ([nn.Conv2d(2, 16, 3), nn.ReLU(), nn.MaxPool2d(2)], 20, False),  # its channels fill vectors as they are
        ([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()], 20, False),
        ([nn.Conv2d(2, 3, 1), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.MaxPool2d(2)], 20, False),
        ([nn.Conv2d(2, 3, 3, padding=1), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3, padding="same"), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3, stride=2), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3, dilation=2), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 4, 3, groups=2), nn.MaxPool2d(2)], 20, False),
        ([nn.Conv2d(2, 3, 5), *TO_POOL], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d(3)], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, stride=1)], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, padding=1)], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, dilation=2)], 20, False),
        ([nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, ceil_mode=True)], 20, False),
        ([watched(nn.Conv2d(2, 3, 3)), *TO_POOL], 20, False),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_is_torchs(layers, side, folded, training, folds):
    torch.manual_seed(0)
    network = nn.Sequential(*deepcopy(layers)).double().train(training)
    images = torch.randn(3, 2, *(side if isinstance(side, tuple) else (side, side)), dtype=torch.float64)

    def outcome(network: nn.Module):
        maps = images.clone().requires_grad_()
        (result := network(given := maps * 1)).pow(3).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        return result.detach(), given.detach(), maps.grad, gradients, list(network.buffers())

    plain = outcome(deepcopy(network))
    with fast_kernels(network):
        torch.testing.assert_close(outcome(network), plain)
    assert len(folds) == folded


def test_a_sequence_takes_what_torchs_takes():
    class Sum(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    maps = torch.randn(2, 1, 20, 20)
    network = nn.Sequential(Sum(), nn.Conv2d(1, 4, 3))
    plain = network((maps, maps))
    with fast_kernels(network):
        torch.testing.assert_close(network((maps, maps)), plain)
        torch.testing.assert_close(network(input=(maps, maps)), plain)
        assert nn.Sequential()(maps) is maps


@pytest.mark.parametrize(("step", "folded"), [(step2, False), (step3, True), (step4, True)])
def test_which_steps_compute_on_folded_maps(step, folded, folds):
    with fast_kernels(network := step.Network()):
        network(torch.zeros(2, 1, 28, 28))
    assert len(folds) == folded


@pytest.mark.parametrize("layers", [[nn.Conv2d(1, 4, 3)], [nn.Conv2d(2, 2, 3), nn.BatchNorm2d(1)]])
def test_what_does_not_fit_is_told_as_torch_does(layers):
    network, maps = nn.Sequential(*layers, nn.MaxPool2d(2)), torch.zeros(4, 2, 20, 20)
    with pytest.raises(RuntimeError) as plain:
        network(maps)
    with fast_kernels(network), pytest.raises(RuntimeError, match=re.escape(str(plain.value))):
        network(maps)
