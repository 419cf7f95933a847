"""The fast kernels compute what torch's own do."""

import contextlib
import copy
import gc
import re
import weakref

import numba
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.learning import kernels
from src.learning.kernels import fast_kernels
from src.learning.stages import Plan
from steps import step1, step2, step3, step4


def outcome(network, maps):
    """Everything that a pass forward and back makes: result, gradients of parameters and input, buffers."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.zero_grad()
    maps = maps.clone().requires_grad_()
    (result := network(maps)).pow(2).sum().backward()
    gradients = [maps.grad, *(parameter.grad.clone() for parameter in network.parameters())]
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.load_state_dict(state)
    return result.detach(), gradients, buffers


def is_by_loops(made):
    return "_Stretch" in made.grad_fn.name()


@pytest.mark.parametrize("step", [step2, step3, step4])
def test_outputs_gradients_and_statistics_are_torchs(step, digits):
    torch.manual_seed(0)
    network = step.Network().double()  # in float32 a rounding can turn a ReLU or a maximum, and with it a gradient
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = digits.train_images[:32, None].double() / 255, digits.train_labels[:32]
    plain = outcome(network, images)
    with fast_kernels(network):
        torch.testing.assert_close(outcome(network, images), plain)
        F.cross_entropy(network(images), labels).backward()
    assert torch.equal(outcome(network, images)[0], plain[0]), "afterwards they are torch's to the last bit"


@pytest.mark.parametrize("count", [1, 5, 64])
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
        [nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, bias=False), nn.MaxPool2d((2, 2), (2, 2))],  # 5×5: the last one is torch's
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
def test_a_stretch_of_layers_is_torchs(layers, count):
    torch.manual_seed(0)
    network = nn.Sequential(*layers).double()
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, -1, 2)
            nn.init.uniform_(layer.bias, -1, 2)
    maps = torch.randn(count, 3, 14, 14, dtype=torch.float64)
    plain = outcome(network, maps)
    with fast_kernels(network):
        torch.testing.assert_close(outcome(network, maps), plain)


def test_the_steps_are_computed_by_loops():
    for step in (step2, step3, step4):
        with fast_kernels(network := step.Network()):
            node = network(torch.rand(2, 1, 28, 28)).grad_fn
            names = [node.name()]
            while node.next_functions and (node := node.next_functions[0][0]):
                names.append(node.name())
        assert any("_Stretch" in name for name in names), step.__name__
        assert not any(layer in name for name in names for layer in ("Conv", "BatchNorm", "Relu", "MaxPool")), names


def test_training_is_torchs_update_after_update(digits):
    """With another number of images in between, as an epoch's last batch has."""
    torch.manual_seed(0)
    network = step4.Network().double()
    plain = copy.deepcopy(network)
    images, labels = digits.train_images[:96, None].double() / 255, digits.train_labels[:96]
    for one, way in ((plain, contextlib.nullcontext), (network, fast_kernels)):
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
    with fast_kernels(network):
        with mode():
            first = network(one)
        with torch.no_grad():
            second = network(two)
    torch.testing.assert_close([first, second], expected)
    torch.testing.assert_close(network.state_dict(), plain.state_dict())


def test_nothing_that_was_computed_in_stays_in_memory(monkeypatch):
    plans = weakref.WeakSet()
    monkeypatch.setattr(kernels, "Plan", lambda *given: plans.add(plan := Plan(*given)) or plan)
    network = step4.Network()
    gc.disable()  # not to wait until it finds them
    with fast_kernels(network):
        network(torch.rand(2, 1, 28, 28)).sum().backward()
        with torch.no_grad():
            network(torch.rand(2, 1, 28, 28))
        assert len(plans) > 1
    found = len(plans)
    gc.enable()
    assert found == 0


def test_of_equal_values_the_first_is_the_largest():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2)).double()
    maps = torch.randint(0, 2, (3, 1, 8, 8)).double()
    plain = outcome(network, maps)
    with fast_kernels(network):
        torch.testing.assert_close(outcome(network, maps), plain)


def test_sums_are_as_exact_as_torchs():
    """A constant background is what a sum in single precision goes wrong by."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    maps = torch.full((1000, 1, 28, 28), 0.1)
    maps[:, :, :9] = torch.rand(1000, 1, 9, 28)
    exact = copy.deepcopy(network).double()(maps.double())
    for way in (contextlib.nullcontext, fast_kernels):
        with way(network):
            torch.testing.assert_close(network(maps).double(), exact, atol=5e-6, rtol=0)


@pytest.mark.parametrize("place", range(4))
def test_what_is_not_a_number_stays_so(place):
    """A loss must not become finite on the way."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    maps = torch.ones(2, 1, 2, 2)
    maps[0, 0, place // 2, place % 2] = torch.nan
    with fast_kernels(network):
        made = network(maps)
    assert made.isnan().flatten().tolist() == [True, False]


def test_a_gradient_in_any_layout_is_torchs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).double()
    maps = torch.randn(4, 3, 20, 20, dtype=torch.float64, requires_grad=True)
    shape = (4, 8, 18, 18)
    for gradient in (
        torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last),
        torch.randn(shape[3], dtype=torch.float64).expand(shape),
    ):
        (plain,) = torch.autograd.grad(network(maps), maps, gradient)
        with fast_kernels(network):
            (fast,) = torch.autograd.grad(network(maps), maps, gradient)
        torch.testing.assert_close(fast, plain)


def test_passes_do_not_disturb_one_another():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double()
    maps = torch.randn(2, 3, 1, 9, 9, dtype=torch.float64)
    one, two = (outcome(network, batch)[1][1] for batch in maps)
    network.zero_grad()
    with fast_kernels(network):
        both = [network(batch).pow(2).sum() for batch in maps]
        sum(both).backward(retain_graph=True)
        torch.testing.assert_close(network[0].weight.grad, one + two)
        both[0].backward()
    torch.testing.assert_close(network[0].weight.grad, 2 * one + two)


def test_a_weight_that_changed_in_between_is_noticed():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    with fast_kernels(network):
        loss = network(torch.randn(2, 1, 9, 9)).sum()
        with torch.no_grad():
            network[0].weight.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_number_of_threads_changes_nothing():
    torch.manual_seed(0)
    network, maps = step4.Network(), torch.rand(33, 1, 28, 28)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2, 100):
        torch.set_num_threads(number)
        with fast_kernels(network):
            results.append(outcome(network, maps))
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


def test_a_layer_in_place_changes_its_input_or_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(inplace=True)).double()
    maps = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    plain = network(maps.clone())
    with fast_kernels(network):
        torch.testing.assert_close(network(maps), plain)
    assert maps.min() == 0


def test_what_follows_may_compute_in_place():
    network, maps = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)).double(), torch.rand(2, 1, 9, 9)
    plain = network(maps.double()).add_(1)
    with fast_kernels(network):
        made = network(maps.double())
        assert is_by_loops(made)
        made.add_(1)
    torch.testing.assert_close(made, plain)


def test_backward_does_not_mind_what_becomes_of_the_result():
    network, maps = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double(), torch.randn(2, 1, 9, 9).double()
    network(maps).sum().backward()
    plain, network[0].weight.grad = network[0].weight.grad, None
    with fast_kernels(network):
        network(maps).add_(1).sum().backward()
    torch.testing.assert_close(network[0].weight.grad, plain)


def test_results_and_gradients_are_not_written_to_again():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    one, two = torch.randn(2, 2, 1, 9, 9)
    one.requires_grad_()
    with fast_kernels(network):
        (made := network(one)).sum().backward()
        found = [made, one.grad, *(parameter.grad for parameter in network.parameters())]
        before = [tensor.detach().clone() for tensor in found]
        network.zero_grad()
        network(two).pow(2).sum().backward()
    assert all(map(torch.equal, found, before))


def test_what_is_retained_is_for_no_longer_than_the_next_pass():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    with fast_kernels(network):
        loss = network(torch.rand(2, 1, 9, 9)).sum()
        loss.backward(retain_graph=True)
        network(torch.rand(2, 1, 9, 9))
        with pytest.raises(RuntimeError, match="another pass forward"):
            loss.backward()


@pytest.mark.parametrize("count", [1, 4])
def test_the_input_may_be_changed_before_backward(count):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()).double()
    maps = torch.rand(1, 9, 9, count, dtype=torch.float64).permute(3, 0, 1, 2)  # batch last
    plain = outcome(network, maps)
    network.zero_grad()
    with fast_kernels(network):
        loss = network(maps).pow(2).sum()
        maps.zero_()
        loss.backward()
    torch.testing.assert_close(network[0].weight.grad, plain[1][1])


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Dropout(0.5)])
@pytest.mark.parametrize("count", [1, 4])
def test_what_comes_in_stays_as_it_is(layer, count):
    """Inside a stretch these layers compute in place."""
    network = nn.Sequential(layer, nn.Conv2d(1, 4, 3, bias=False), layer).double()
    maps = torch.randn(1, 9, 9, count, dtype=torch.float64).permute(3, 0, 1, 2)  # batch last, as inside
    gradient = torch.randn(4, 7, 7, count, dtype=torch.float64).permute(3, 0, 1, 2)
    before = maps.clone(), gradient.clone()
    with fast_kernels(network):
        made = network(maps)
        assert is_by_loops(made)
        made.backward(gradient)
    assert torch.equal(maps, before[0])
    assert torch.equal(gradient, before[1])


@pytest.mark.parametrize("kernel", [1, 3])
def test_maps_a_power_of_two_apart_are_as_others(kernel):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(20, 24, kernel, bias=False), nn.Conv2d(24, 40, kernel, groups=2, bias=False))
    maps = torch.randn(16, 20, 8, 8, dtype=torch.float64)
    plain = outcome(network.double(), maps)
    with fast_kernels(network):
        torch.testing.assert_close(outcome(network, maps), plain)


def test_backward_takes_the_layers_as_forward_did():
    network, maps = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Dropout(0.5)), torch.rand(2, 1, 9, 9)
    maps.requires_grad_()
    with fast_kernels(network):
        made = network(maps)
        (plain,) = torch.autograd.grad(made, maps, torch.ones_like(made), retain_graph=True)
        network[0].weight, network[1].p = nn.Parameter(torch.ones(4, 1, 3, 3)), 0.9
        (changed,) = torch.autograd.grad(made, maps, torch.ones_like(made))
    assert torch.equal(changed, plain)


def test_what_is_kept_goes_with_backward():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU())
    with fast_kernels(network):
        loss = network(torch.rand(2, 1, 9, 9)).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_hooks_see_what_they_see_otherwise():
    network, seen = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).double(), []
    network[1].register_forward_hook(lambda layer, given, made: seen.append(made.detach()))
    maps = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    network(maps)
    with fast_kernels(network):
        network(maps)
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
def test_what_does_not_fit_is_told_as_torch_does(layers, shape):
    network = nn.Sequential(*layers)
    with pytest.raises((RuntimeError, ValueError)) as plain:
        network(torch.zeros(shape))
    with fast_kernels(network), pytest.raises(plain.type, match=re.escape(str(plain.value))):
        network(torch.zeros(shape))


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (nn.Conv2d(1, 4, 3, bias=False), torch.ones(1, 20, 20)),  # one image, not a batch
        (nn.Conv2d(1, 4, 3, bias=False).bfloat16(), torch.ones(2, 1, 20, 20, dtype=torch.bfloat16)),
        (nn.Conv2d(1, 4, 3, bias=False), torch.ones(0, 1, 20, 20)),
        (nn.MaxPool2d(2), torch.ones(3, 20, 20)),
    ],
)
def test_what_is_unusual_is_left_to_torch(layer, values):
    network = nn.Sequential(nn.Identity(), layer, nn.Identity())
    plain = network(values)
    with fast_kernels(network):
        torch.testing.assert_close(network(values), plain)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 128, 3, bias=False),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.Conv2d(1, 4, 3, padding="same", bias=False),
        nn.Conv2d(1, 4, 3, stride=2, bias=False),
        nn.Conv2d(1, 4, 3, dilation=2, bias=False),
    ],
)
def test_a_network_that_is_not_for_the_loops_is_left_alone(layer):
    threads = torch.get_num_threads()
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), layer)
    with fast_kernels(network):
        assert "forward" not in vars(network)
        assert torch.get_num_threads() == threads
    with fast_kernels(network := step1.Network()):
        assert not any("forward" in vars(layer) for layer in network.modules())


def test_nothing_stays_behind():
    network, threads = step3.Network(), (torch.get_num_threads(), numba.get_num_threads())
    before = {name: set(vars(layer)) for name, layer in network.named_modules()}
    with contextlib.suppress(KeyError), fast_kernels(network):
        assert "forward" in vars(network.layers)
        raise KeyError
    assert {name: set(vars(layer)) for name, layer in network.named_modules()} == before
    assert (torch.get_num_threads(), numba.get_num_threads()) == threads


def test_inside_another_it_changes_nothing():
    network = step3.Network()
    with fast_kernels(network):
        with fast_kernels(network):
            pass
        assert "forward" in vars(network.layers)
    assert "forward" not in vars(network.layers)


def dropped_by(share):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Dropout(share))
    nn.init.ones_(network[0].weight)
    return network


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(share):
    torch.manual_seed(0)
    network, values = dropped_by(share), torch.ones(100, 1, 91, 11, requires_grad=True)
    with fast_kernels(network):
        dropped = network(values)
        assert is_by_loops(dropped)
        dropped.sum().backward()
        assert torch.equal(network.eval()(values), values)
    assert ((dropped == 0).double().mean() - share).abs() < 4 * (share * (1 - share) / values.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(dropped[dropped > 0].unique(), torch.tensor([1 / (1 - share)]))
    torch.testing.assert_close(values.grad, dropped)


@pytest.mark.parametrize("between", [[], [nn.BatchNorm2d(1)]], ids=["", "BatchNorm2d"])
def test_a_gradient_passes_where_neither_a_relu_nor_dropout_stops_it(between):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), *between, nn.ReLU(), nn.Dropout(0.5)).double()
    values = torch.randn(9, 1, 9, 9, dtype=torch.float64).requires_grad_()
    with fast_kernels(network):
        dropped = network(values)
        (gradient,) = torch.autograd.grad(dropped.pow(2).sum(), values)
    rectified = network[:-1](values)
    assert 0 < (dropped > 0).sum() < (rectified > 0).sum()
    torch.testing.assert_close(dropped, 2.0 * rectified * (dropped > 0))
    (expected,) = torch.autograd.grad((2.0 * rectified * (dropped > 0)).pow(2).sum(), values)
    torch.testing.assert_close(gradient, expected)


def test_dropouts_seed_decides():
    network, values = dropped_by(0.5), torch.ones(50, 1, 5, 4)
    with fast_kernels(network):
        torch.manual_seed(1)
        once = network(values)
        assert not torch.equal(network(values), once)
        torch.manual_seed(1)
        assert torch.equal(network(values), once)
