"""What folded maps give is what torch's layers make of the maps as they are."""

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


TO_POOL = nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)


@pytest.mark.parametrize(
    ("layers", "side", "folded"),
    [
        ([nn.Conv2d(2, 3, 3), *TO_POOL, nn.Conv2d(3, 4, 3), nn.Flatten()], 20, True),
        ([nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 3, 1), *TO_POOL], (18, 22), True),
        ([nn.ReLU(), nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 3), nn.MaxPool2d(2)], 16, True),
        ([nn.Conv2d(2, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last), *TO_POOL], 20, True),
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
def test_a_sequence_is_torchs(layers, side, folded, folds):
    torch.manual_seed(0)
    network = nn.Sequential(*deepcopy(layers)).double()
    maps = torch.randn(3, 2, *(side if isinstance(side, tuple) else (side, side)), dtype=torch.float64)
    maps.requires_grad_()

    def outcome():
        (result := network(maps)).pow(3).sum().backward()
        gradients = [parameter.grad for parameter in (maps, *network.parameters())]
        maps.grad = None
        network.zero_grad()
        return result.detach(), gradients

    plain = outcome()
    with fast_kernels(network):
        torch.testing.assert_close(outcome(), plain)
    assert len(folds) == folded


@pytest.mark.parametrize(("step", "folded"), [(step2, False), (step3, True), (step4, True)])
def test_which_steps_compute_on_folded_maps(step, folded, folds):
    with fast_kernels(network := step.Network()):
        network(torch.zeros(2, 1, 28, 28))
    assert len(folds) == folded


@pytest.mark.parametrize("layers", [[nn.Conv2d(1, 4, 3)], [nn.Conv2d(2, 2, 3), nn.BatchNorm2d(1)]])
def test_what_does_not_fit_on_folded_maps_is_told_too(layers):
    with (
        fast_kernels(network := nn.Sequential(*layers, nn.MaxPool2d(2))),
        pytest.raises(RuntimeError, match="to have 1 channels, but got 2|contain 2 elements not 1"),
    ):
        network(torch.zeros(4, 2, 20, 20))
