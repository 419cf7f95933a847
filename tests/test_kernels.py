"""The fast kernels compute what torch's own do."""

import contextlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.learning.kernels import fast_kernels
from steps import step2, step3, step4


@pytest.mark.parametrize("step", [step2, step3, step4])
def test_outputs_gradients_and_statistics_are_torchs(step, digits):
    torch.manual_seed(0)
    network = step.Network().double()  # in float32 a rounding can turn a ReLU or a maximum, and with it a gradient
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = digits.train_images[:32, None].double() / 255, digits.train_labels[:32]
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
        torch.testing.assert_close(outcome(), plain)
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


@pytest.mark.parametrize("shape", [(4, 8, 20, 20), (4, 16, 5, 5)])
def test_a_gradient_in_any_layout_is_torchs(shape):
    torch.manual_seed(0)
    layer, maps = nn.BatchNorm2d(shape[1]), torch.randn(shape, requires_grad=True)
    for gradient in (
        torch.randn(shape).contiguous(memory_format=torch.channels_last),
        torch.randn(shape[3]).expand(shape),
    ):
        (plain,) = torch.autograd.grad(layer(maps), maps, gradient)
        with fast_kernels(layer):
            (fast,) = torch.autograd.grad(layer(maps), maps, gradient)
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)


def test_large_maps_are_channels_last_from_the_first_one_on():
    images = torch.randn(2, 1, 28, 28)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.MaxPool2d(2))
    maps = []
    for layer in network:
        layer.register_forward_hook(lambda layer, given, made: maps.append(made))
    with fast_kernels(network):
        network(images)
    assert [made.stride(1) for made in maps] == [1] * 5
    nodes = [maps[1].grad_fn]
    while nodes[-1]:
        nodes.append(nodes[-1].next_functions[0][0] if nodes[-1].next_functions else None)
    assert any("_BatchNormOfRows" in node.name() for node in nodes[:-1])


def test_what_follows_may_compute_in_place():
    torch.manual_seed(0)
    layers = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    network, maps = nn.Sequential(*layers).double(), torch.randn(2, 4, 20, 20, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn_like(maps)
    (plain,) = torch.autograd.grad(network(maps), maps, gradient)
    with fast_kernels(network):
        (fast,) = torch.autograd.grad(network(maps), maps, gradient)
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(8), (4, 16, 20, 20)),
        (nn.BatchNorm2d(16), (4, 8, 20, 20)),
        (nn.BatchNorm2d(4), (4, 20, 20)),
        (nn.Conv2d(1, 4, 3), (4, 2, 20, 20)),
    ],
)
def test_what_does_not_fit_is_told_as_torch_does(layer, shape):
    with pytest.raises(RuntimeError if shape != (4, 20, 20) else ValueError) as plain:
        layer(torch.zeros(shape))
    with fast_kernels(layer), pytest.raises(plain.type, match=re.escape(str(plain.value))):
        layer(torch.zeros(shape))


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (nn.Conv2d(1, 4, 3), torch.ones(1, 20, 20)),  # one image, not a batch
        (nn.MaxPool2d(2), torch.ones(3, 20, 20)),
        (nn.BatchNorm2d(4), torch.ones(2, 4, 20, 20, dtype=torch.bfloat16)),
        (nn.BatchNorm2d(4), torch.ones(0, 4, 20, 20)),
        (nn.BatchNorm2d(4), torch.ones(2, 4, 0, 20)),
        (nn.Dropout(1.0), torch.ones(5, 5)),
    ],
)
def test_what_is_unusual_is_left_to_torch(layer, values):
    plain = layer(values)
    with fast_kernels(layer):
        torch.testing.assert_close(layer(values), plain)


def test_nothing_stays_behind():
    network = step3.Network()
    before = {name: set(vars(layer)) for name, layer in network.named_modules()}
    with contextlib.suppress(KeyError), fast_kernels(network):
        assert "forward" in vars(network.layers[11])  # a Dropout
        raise KeyError
    assert {name: set(vars(layer)) for name, layer in network.named_modules()} == before


def test_inside_another_it_changes_nothing():
    network = step3.Network()
    with fast_kernels(network):
        with fast_kernels(network):
            pass
        assert "forward" in vars(network.layers[11])
    assert "forward" not in vars(network.layers[11])


def test_every_kind_of_layer_is_replaced():
    with fast_kernels(network := step3.Network()):
        replaced = {type(layer) for layer in network.modules() if "forward" in vars(layer)}
    assert replaced == {nn.Sequential, nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.Dropout}


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
