"""Pools of 2×2 outside training: the values of nn.MaxPool2d, and nobody else's pools."""

import pytest
import torch
from torch import nn

from src.learning.pooling import fast_pools, halve, is_halving


@pytest.mark.parametrize("size", [(2, 2), (24, 24), (5, 7), (3, 2), (28, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_values_are_those_of_torch(size, dtype):
    maps = torch.randn(3, 4, *size, dtype=dtype)
    torch.testing.assert_close(halve(maps), nn.MaxPool2d(2)(maps), rtol=0, atol=0)


def test_equal_values_and_those_that_are_not_numbers():
    values = torch.tensor([0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    maps = torch.cartesian_prod(values, values, values, values).reshape(-1, 1, 2, 2)
    torch.testing.assert_close(halve(maps), nn.MaxPool2d(2)(maps), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("pool", "halves"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1)), True),
        (nn.MaxPool2d(3), False),
        (nn.MaxPool2d(2, stride=1), False),
        (nn.MaxPool2d((2, 1)), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, return_indices=True), False),
    ],
)
def test_which_pools_halve(pool, halves):
    assert is_halving(pool) is halves


def test_a_network_has_its_pools_back_afterwards():
    class Own(nn.MaxPool2d):
        pass

    def taken():
        return [layer for layer in network.modules() if "forward" in vars(layer)]

    network = nn.Sequential(nn.Sequential(nn.MaxPool2d(2)), nn.MaxPool2d(3), Own(2))
    with fast_pools(network):
        assert taken() == [network[0][0]]
    assert not taken()


def test_hooks_see_what_a_pool_makes():
    network, seen = nn.Sequential(nn.MaxPool2d(2)), []
    network[0].register_forward_hook(lambda _, given, made: seen.append(made.shape))
    with fast_pools(network):
        network(torch.ones(1, 3, 8, 6))
    assert seen == [(1, 3, 4, 3)]
