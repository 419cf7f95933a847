"""The average of the weights against torch's own."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from drilldown.learning.average import WeightAverage
from tests.support.networks import SmallNetwork


@pytest.mark.parametrize("floating", [True, False], ids=["with buffers", "without floating buffers"])
def test_it_is_that_of_torch_bit_for_bit(floating):
    torch.manual_seed(0)
    network = SmallNetwork() if floating else torch.nn.Linear(3, 2)
    own, torchs = WeightAverage(network, 0.9), AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape) * 10)
        own.update_parameters(network)
        torchs.update_parameters(network)
        for name, value in torchs.state_dict().items():
            assert torch.equal(own.state_dict()[name], value), name
