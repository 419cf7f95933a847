"""The kernels compute what torch's own layers do, and autograd sees one node for each fused segment."""

import contextlib
import copy
import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drilldown.engine import accelerate, dispatch
from drilldown.engine.plan import Plan
from steps import step2, step3, step4


@contextlib.contextmanager
def fused(network):
    """Compute by the kernels, in training."""
    with accelerate(network, engine="numba") as acceleration, acceleration.training_threads():
        yield


def outcome(network, x):
    """What a forward and a backward pass compute: the output, the gradients of input and parameters, the buffers."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.zero_grad()
    x = x.clone().requires_grad_()
    (result := network(x)).pow(2).sum().backward()
    gradients = [x.grad, *(parameter.grad.clone() for parameter in network.parameters())]
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.load_state_dict(state)
    return result.detach(), gradients, buffers


def is_fused(out):
    return "FusedSegment" in out.grad_fn.name()


@pytest.mark.parametrize("step", [step2, step3, step4])
def test_outputs_gradients_and_statistics_are_torchs(step, digits):
    torch.manual_seed(0)
    network = step.Network().double()  # float32 rounding can decide a ReLU or a maximum, and with it a gradient
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = digits.train_images[:32, None].double() / 255, digits.train_labels[:32]
    plain = outcome(network, images)
    with fused(network):
        torch.testing.assert_close(outcome(network, images), plain)
        F.cross_entropy(network(images), labels).backward()
    assert torch.equal(outcome(network, images)[0], plain[0]), "outside, the output is torch's to the last bit"


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, bias=False)],
        [nn.Conv2d(3, 4, 1, bias=False)],
        [nn.Conv2d(3, 10, 7, bias=False)],
        [nn.Conv2d(3, 4, (1, 5), bias=False)],
        [nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.ReLU()],
        [nn.Conv2d(3, 6, (3, 2), groups=3, bias=False)],
        [nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, groups=2, bias=False)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 5, bias=False)],
        [nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, bias=False), nn.MaxPool2d((2, 2), (2, 2))],  # 5×5: the last is torch's
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.5, eps=0.1)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=None)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4).eval()],
        [nn.Conv2d(3, 4, 3, bias=False), nn.AvgPool2d(4), nn.Conv2d(4, 5, 1, bias=False)],
        [nn.Conv2d(3, 4, 3, bias=False), nn.MaxPool2d(3), nn.Dropout(0.0)],
    ],
    ids=lambda layers: " ".join(type(layer).__name__ for layer in layers),
)
def test_a_segment_computes_what_torch_does(layers, batch):
    torch.manual_seed(0)
    network = nn.Sequential(*layers).double()
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, -1, 2)
            nn.init.uniform_(layer.bias, -1, 2)
    x = torch.randn(batch, 3, 14, 14, dtype=torch.float64)
    plain = outcome(network, x)
    with fused(network):
        torch.testing.assert_close(outcome(network, x), plain)


def test_the_steps_networks_are_fused():
    for step in (step2, step3, step4):
        with fused(network := step.Network()):
            node = network(torch.rand(2, 1, 28, 28)).grad_fn
            names = [node.name()]
            while node.next_functions and (node := node.next_functions[0][0]):
                names.append(node.name())
        assert any("FusedSegment" in name for name in names), step.__name__
        assert not any(layer in name for name in names for layer in ("Conv", "BatchNorm", "Relu", "MaxPool")), names


def test_training_follows_torch_update_by_update(digits):
    """One batch is smaller, as an epoch's last batch is."""
    torch.manual_seed(0)
    network = step4.Network().double()
    plain = copy.deepcopy(network)
    images, labels = digits.train_images[:96, None].double() / 255, digits.train_labels[:96]
    for one, way in ((plain, contextlib.nullcontext), (network, fused)):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9)
        with way(one):
            for first, last in ((0, 32), (32, 64), (64, 80), (0, 32)):
                optimizer.zero_grad()
                F.cross_entropy(one(images[first:last]), labels[first:last]).backward()
                optimizer.step()
    torch.testing.assert_close(network.state_dict(), plain.state_dict())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_results_and_statistics_are_torchs(mode, digits):
    torch.manual_seed(0)
    network = step4.Network().double()
    plain = copy.deepcopy(network)
    one, two = digits.train_images[:64, None].double().split(32)
    with mode():
        expected = [plain(images) for images in (one, two)]
    with fused(network):
        with mode():
            first = network(one)
        with torch.no_grad():
            second = network(two)
    torch.testing.assert_close([first, second], expected)
    torch.testing.assert_close(network.state_dict(), plain.state_dict())


def test_plans_are_freed_on_leaving(monkeypatch):
    plans = weakref.WeakSet()
    monkeypatch.setattr(dispatch, "Plan", lambda *args: plans.add(plan := Plan(*args)) or plan)
    network = step4.Network()
    gc.disable()  # they must be freed at once, not when the collector finds them
    with fused(network):
        network(torch.rand(2, 1, 28, 28)).sum().backward()
        with torch.no_grad():
            network(torch.rand(2, 1, 28, 28))
        assert len(plans) > 1
    left = len(plans)
    gc.enable()
    assert left == 0


def test_the_first_of_equal_values_is_the_maximum():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2)).double()
    x = torch.randint(0, 2, (3, 1, 8, 8)).double()
    plain = outcome(network, x)
    with fused(network):
        torch.testing.assert_close(outcome(network, x), plain)


def test_statistics_are_as_accurate_as_torchs():
    """A constant background makes sums in float32 inaccurate."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    x = torch.full((1000, 1, 28, 28), 0.1)
    x[:, :, :9] = torch.rand(1000, 1, 9, 28)
    exact = copy.deepcopy(network).double()(x.double())
    for way in (contextlib.nullcontext, fused):
        with way(network):
            torch.testing.assert_close(network(x).double(), exact, atol=5e-6, rtol=0)


@pytest.mark.parametrize("index", range(4))
def test_nan_stays_nan(index):
    """A loss that is not finite must stay so."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.ones(2, 1, 2, 2)
    x[0, 0, index // 2, index % 2] = torch.nan
    with fused(network):
        out = network(x)
    assert out.isnan().flatten().tolist() == [True, False]


def test_a_gradient_in_any_layout_is_torchs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).double()
    x = torch.randn(4, 3, 20, 20, dtype=torch.float64, requires_grad=True)
    shape = (4, 8, 18, 18)
    for gradient in (
        torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn(shape[3], dtype=torch.float64).expand(shape),
    ):
        (plain,) = torch.autograd.grad(network(x), x, gradient)
        with fused(network):
            (fast,) = torch.autograd.grad(network(x), x, gradient)
        torch.testing.assert_close(fast, plain)


def test_two_forward_passes_before_one_backward():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double()
    batches = torch.randn(2, 3, 1, 9, 9, dtype=torch.float64)
    one, two = (outcome(network, x)[1][1] for x in batches)
    network.zero_grad()
    with fused(network):
        both = [network(x).pow(2).sum() for x in batches]
        sum(both).backward(retain_graph=True)
        torch.testing.assert_close(network[0].weight.grad, one + two)
        both[0].backward()
    torch.testing.assert_close(network[0].weight.grad, 2 * one + two)


def test_a_weight_changed_before_backward_is_an_error():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    with fused(network):
        loss = network(torch.randn(2, 1, 9, 9)).sum()
        with torch.no_grad():
            network[0].weight.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    network, x = step4.Network(), torch.rand(33, 1, 28, 28)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2, 100):
        torch.set_num_threads(number)
        with fused(network):
            results.append(outcome(network, x))
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


def test_only_a_first_layer_in_place_changes_the_input():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(inplace=True)).double()
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    plain = network(x.clone())
    with fused(network):
        torch.testing.assert_close(network(x), plain)
    assert x.min() == 0


def test_the_next_layer_may_compute_in_place():
    network, x = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)).double(), torch.rand(2, 1, 9, 9)
    plain = network(x.double()).add_(1)
    with fused(network):
        out = network(x.double())
        assert is_fused(out)
        out.add_(1)
    torch.testing.assert_close(out, plain)


def test_backward_is_independent_of_changes_to_the_output():
    network, x = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double(), torch.randn(2, 1, 9, 9).double()
    network(x).sum().backward()
    plain, network[0].weight.grad = network[0].weight.grad, None
    with fused(network):
        network(x).add_(1).sum().backward()
    torch.testing.assert_close(network[0].weight.grad, plain)


def test_a_later_pass_does_not_overwrite_outputs_or_gradients():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    one, two = torch.randn(2, 2, 1, 9, 9)
    one.requires_grad_()
    with fused(network):
        (out := network(one)).sum().backward()
        found = [out, one.grad, *(parameter.grad for parameter in network.parameters())]
        before = [tensor.detach().clone() for tensor in found]
        network.zero_grad()
        network(two).pow(2).sum().backward()
    assert all(map(torch.equal, found, before))


def test_a_retained_graph_is_valid_until_the_next_forward_pass():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    with fused(network):
        loss = network(torch.rand(2, 1, 9, 9)).sum()
        loss.backward(retain_graph=True)
        network(torch.rand(2, 1, 9, 9))
        with pytest.raises(RuntimeError, match="later forward pass"):
            loss.backward()


@pytest.mark.parametrize("batch", [1, 4])
def test_the_input_may_be_changed_before_backward(batch):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double()
    x = torch.rand(1, 9, 9, batch, dtype=torch.float64).permute(3, 0, 1, 2)  # CHWN in memory
    plain = outcome(network, x)
    network.zero_grad()
    with fused(network):
        loss = network(x).pow(2).sum()
        x.zero_()
        loss.backward()
    torch.testing.assert_close(network[0].weight.grad, plain[1][1])


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Dropout(0.5)])
@pytest.mark.parametrize("batch", [1, 4])
def test_input_and_output_gradient_stay_as_they_are(layer, batch):
    """These layers compute in place inside a segment."""
    network = nn.Sequential(layer, nn.Conv2d(1, 4, 3, bias=False), layer).double()
    x = torch.randn(1, 9, 9, batch, dtype=torch.float64).permute(3, 0, 1, 2)  # CHWN in memory, as inside
    gradient = torch.randn(4, 7, 7, batch, dtype=torch.float64).permute(3, 0, 1, 2)
    before = x.clone(), gradient.clone()
    with fused(network):
        out = network(x)
        assert is_fused(out)
        out.backward(gradient)
    assert torch.equal(x, before[0])
    assert torch.equal(gradient, before[1])


@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_a_power_of_two_apart(kernel):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(20, 24, kernel, bias=False), nn.Conv2d(24, 40, kernel, groups=2, bias=False))
    x = torch.randn(16, 20, 8, 8, dtype=torch.float64)
    plain = outcome(network.double(), x)
    with fused(network):
        torch.testing.assert_close(outcome(network, x), plain)


def test_backward_uses_the_layers_of_its_forward_pass():
    network, x = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Dropout(0.5)), torch.rand(2, 1, 9, 9)
    x.requires_grad_()
    with fused(network):
        out = network(x)
        (plain,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
        network[0].weight, network[1].p = nn.Parameter(torch.ones(4, 1, 3, 3)), 0.9
        (changed,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(changed, plain)


def test_a_second_backward_is_refused_as_by_torch():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU())
    with fused(network):
        loss = network(torch.rand(2, 1, 9, 9)).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_hooks_see_what_torch_computes():
    network, seen = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).double(), []
    network[1].register_forward_hook(lambda layer, args, out: seen.append(out.detach()))
    x = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    network(x)
    with fused(network):
        network(x)
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(1, 4, 3, bias=False)], (4, 2, 20, 20)),
        ([nn.Conv2d(1, 4, 3, bias=False)], (4, 1, 2, 20)),
        ([nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(8)], (4, 1, 20, 20)),
        ([nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)], (1, 1, 3, 3)),
        ([nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)], (1, 20, 20)),
    ],
)
def test_a_wrong_input_raises_torchs_error(layers, shape):
    network = nn.Sequential(*layers)
    with pytest.raises((RuntimeError, ValueError)) as plain:
        network(torch.zeros(shape))
    with fused(network), pytest.raises(plain.type, match=re.escape(str(plain.value))):
        network(torch.zeros(shape))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(1, 4, 3, bias=False), torch.ones(1, 20, 20)),  # one image, not a batch
        (nn.Conv2d(1, 4, 3, bias=False).bfloat16(), torch.ones(2, 1, 20, 20, dtype=torch.bfloat16)),
        (nn.Conv2d(1, 4, 3, bias=False), torch.ones(0, 1, 20, 20)),
        (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, bias=False)), torch.ones(3, 20, 20)),
    ],
)
def test_an_unusual_input_is_left_to_torch(layer, x):
    network = nn.Sequential(nn.Identity(), layer, nn.Identity())
    plain = network(x)
    with accelerate(network):
        torch.testing.assert_close(network(x), plain)


def dropout_network(p):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Dropout(p))
    nn.init.ones_(network[0].weight)
    return network


@pytest.mark.parametrize("p", [0.0, 0.05, 0.15, 0.5, 0.9])
def test_dropout_drops_a_share_of_p_and_scales_the_rest(p):
    torch.manual_seed(0)
    network, x = dropout_network(p), torch.ones(100, 1, 91, 11, requires_grad=True)
    with fused(network):
        dropped = network(x)
        assert is_fused(dropped)
        dropped.sum().backward()
        assert torch.equal(network.eval()(x), x)
    assert ((dropped == 0).double().mean() - p).abs() < 4 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(dropped[dropped > 0].unique(), torch.tensor([1 / (1 - p)]))
    torch.testing.assert_close(x.grad, dropped)


@pytest.mark.parametrize("between", [[], [nn.BatchNorm2d(1)]], ids=["", "BatchNorm2d"])
def test_a_gradient_passes_where_neither_relu_nor_dropout_is_zero(between):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), *between, nn.ReLU(), nn.Dropout(0.5)).double()
    x = torch.randn(9, 1, 9, 9, dtype=torch.float64).requires_grad_()
    with fused(network):
        dropped = network(x)
        (gradient,) = torch.autograd.grad(dropped.pow(2).sum(), x)
    rectified = network[:-1](x)
    assert 0 < (dropped > 0).sum() < (rectified > 0).sum()
    torch.testing.assert_close(dropped, 2.0 * rectified * (dropped > 0))
    (expected,) = torch.autograd.grad((2.0 * rectified * (dropped > 0)).pow(2).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_the_seed_decides_what_is_dropped():
    network, x = dropout_network(0.5), torch.ones(50, 1, 5, 4)
    with fused(network):
        torch.manual_seed(1)
        first = network(x)
        assert not torch.equal(network(x), first)
        torch.manual_seed(1)
        assert torch.equal(network(x), first)
