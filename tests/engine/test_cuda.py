"""The layers for CUDA against torch's own."""

import copy

import pytest
import torch
from torch import nn

from drilldown.engine import accelerate, cuda
from drilldown.steps import load_step

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def gradients(forward, x, parameters):
    x = x.detach().requires_grad_()
    out = forward(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return [out, *torch.autograd.grad(out, [x, *parameters], grad_out)]


@pytest.mark.parametrize("shape", [(1, 4, 3, 6, 9), (4, 8, 3, 5, 11), (8, 16, 1, 6, 7), (2, 3, 5, 3, 9)])
def test_convolution(shape):
    inputs, outputs, kernel, count, side = shape
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False).double()
    assert cuda.has_few_inputs(conv)
    x = torch.randn(count, inputs, side, side, dtype=torch.float64)
    found, expected = (gradients(f, x, conv.parameters()) for f in (cuda.FewInputsConv(conv), conv))
    torch.testing.assert_close(found, expected)


def test_convolution_of_pixels_needs_no_gradient_of_them():
    conv = nn.Conv2d(2, 3, 3, bias=False)
    x = torch.randn(5, 2, 8, 8)
    cuda.FewInputsConv(conv)(x).square().sum().backward()
    found, conv.weight.grad = conv.weight.grad, None
    conv(x).square().sum().backward()
    torch.testing.assert_close(found, conv.weight.grad)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(9, 8, 3, bias=False),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, bias=False, padding=1),
        nn.Conv2d(4, 8, 3, bias=False, stride=2),
        nn.Conv2d(4, 8, 3, bias=False, dilation=2),
        nn.Conv2d(4, 8, 3, bias=False, groups=4),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch(conv):
    assert not cuda.has_few_inputs(conv)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(17), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)],
    ids=str,
)
def test_other_normalizations_are_left_to_torch(norm):
    assert not cuda.has_few_channels(norm)


def test_split_channels_are_the_same_values():
    x = torch.arange(6 * 2 * 3 * 3.0).reshape(6, 2, 3, 3)
    split = cuda.split_channels(x, 3)  # (2, 6, 3, 3)
    means = split.mean((0, 2, 3)).view(3, 2).mean(0)
    torch.testing.assert_close(means, x.mean((0, 2, 3)))
    for channel in range(2):
        assert set(split[:, channel::2].flatten().tolist()) == set(x[:, channel].flatten().tolist())


@needs_cuda
@pytest.mark.parametrize(("count", "channels", "side"), [(128, 4, 26), (96, 8, 24), (1000, 16, 12), (29, 4, 26)])
def test_batch_normalization(count, channels, side):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels).cuda()
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    reference = copy.deepcopy(norm).double()
    split = cuda.SplitBatchNorm(norm)
    for _ in range(2):  # the second one averages the statistics
        x = torch.randn(count, channels, side, side, device="cuda") * 3 + 5
        found = gradients(split, x, norm.parameters())
        expected = gradients(reference, x.double(), reference.parameters())
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name].to(value.dtype), value, rtol=1e-5, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("step", ["step1", "step2", "step3", "step4"])
def test_a_network_has_the_gradients_that_it_has_without(step):
    torch.manual_seed(2)
    network = load_step(step).network()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    network = network.cuda()
    x = torch.randn(64, 1, 28, 28, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        expected = gradients(network, x, network.parameters())
        with accelerate(network):
            found = gradients(network, x, network.parameters())
    largest = max(gradient.norm() for gradient in expected)
    for one, other in zip(found, expected, strict=True):  # some gradients are 0, but for rounding
        assert (one - other).norm() <= 2e-4 * other.norm() + 1e-6 * largest


@needs_cuda
@pytest.mark.parametrize("step", ["step1", "step4"])
def test_bits_repeat(step):
    network = load_step(step).network().cuda()
    x = torch.randn(128, 1, 28, 28, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True), accelerate(network):
        first, *others = (gradients(network, x, network.parameters()) for _ in range(5))
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert torch.equal(one, another)
