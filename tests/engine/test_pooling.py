"""2×2 max pools in evaluation have the values of nn.MaxPool2d; other pools are left alone."""

import pytest
import torch
from torch import nn

from drilldown.engine import accelerate
from drilldown.engine.pooling import EvalMaxPool, is_max_pool_2x2, max_pool_2x2


@pytest.mark.parametrize("size", [(2, 2), (24, 24), (5, 7), (3, 2), (28, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_values_are_torchs(size, dtype):
    x = torch.randn(3, 4, *size, dtype=dtype)
    torch.testing.assert_close(max_pool_2x2(x), nn.MaxPool2d(2)(x), rtol=0, atol=0)


def test_equal_infinite_and_nan_values():
    values = torch.tensor([0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cartesian_prod(values, values, values, values).reshape(-1, 1, 2, 2)
    torch.testing.assert_close(max_pool_2x2(x), nn.MaxPool2d(2)(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("pool", "expected"),
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
def test_which_pools_are_2x2(pool, expected):
    assert is_max_pool_2x2(pool) is expected


def test_a_networks_pools_are_replaced_and_restored():
    class OwnPool(nn.MaxPool2d):
        pass

    def replaced():
        return [layer for layer in network.modules() if "forward" in vars(layer)]

    network = nn.Sequential(nn.Sequential(nn.MaxPool2d(2)), nn.MaxPool2d(3), OwnPool(2))
    with accelerate(network, engine="torch"):
        assert replaced() == [network[0][0]]
    assert not replaced()


def test_hooks_see_the_output_of_a_pool():
    network, seen = nn.Sequential(nn.MaxPool2d(2)).eval(), []
    network[0].register_forward_hook(lambda layer, args, out: seen.append(out.shape))
    with accelerate(network, engine="torch"):
        network(torch.ones(1, 3, 8, 6))
    assert seen == [(1, 3, 4, 3)]


def test_only_evaluation_without_gradients_takes_the_faster_pool(monkeypatch):
    calls = []
    monkeypatch.setattr("drilldown.engine.pooling.max_pool_2x2", lambda x: calls.append(x))
    pool = nn.MaxPool2d(2)
    forward, x = EvalMaxPool(pool), torch.ones(1, 1, 4, 4)
    forward(x)
    pool.eval()
    forward(x.clone().requires_grad_())
    assert not calls
    forward(x)
    with torch.no_grad():
        forward(x.clone().requires_grad_())
    assert len(calls) == 2
