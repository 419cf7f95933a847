"""The exported model's requirements and layer table."""

import torch

from drilldown.steps import load_step
from drilldown.tracking import export


def test_a_models_requirements_are_the_pinned_ones():
    requirements = export.model_requirements()
    pinned = export.REQUIREMENTS.read_text().split()
    assert [line.partition("==")[0] for line in requirements] == sorted(export.MODEL_PACKAGES)
    assert all(line in pinned for line in requirements)


def test_the_layer_table_leaves_the_network_and_the_random_numbers_alone():
    network = load_step("step3").network().train()
    before = [tensor.clone() for tensor in network.state_dict().values()]
    state = torch.get_rng_state()
    export.layer_table(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    for tensor, old in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(tensor, old)
