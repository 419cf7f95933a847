"""The door of the engine: which engine is chosen and why, what it changes inside, and that all is restored."""

import contextlib
import copy
import os
import subprocess
import sys

import numba
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drilldown.engine import accelerate
from drilldown.errors import ParameterError
from steps import step1, step2, step3, step4

STEPS = [step2, step3, step4]
TAKES = "the numba engine takes convolutions without padding, stride, dilation or bias, of at most 64 channels"
UNSUPPORTED = [
    (nn.Conv2d(1, 128, 3, bias=False), "more than 64 channels"),
    (nn.Conv2d(128, 1, 3, bias=False), "more than 64 channels"),
    (nn.Conv2d(1, 4, 3), "a bias"),
    (nn.Conv2d(1, 4, 3, padding=1, bias=False), "padding"),
    (nn.Conv2d(1, 4, 3, padding="same", bias=False), "padding"),
    (nn.Conv2d(1, 4, 3, stride=2, bias=False), "a stride"),
    (nn.Conv2d(1, 4, 3, dilation=2, bias=False), "a dilation"),
    (nn.Conv2d(1, 4, 3, bias=False).bfloat16(), "weights in bfloat16"),
]


class OwnConv(nn.Conv2d):
    """Another kind of layer, as far as the kernels know."""


def replaced(network):
    """The layers whose forward method is replaced."""
    return [layer for layer in network.modules() if "forward" in vars(layer)]


def threads():
    return torch.get_num_threads(), numba.get_num_threads()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("engine", ["auto", "numba"])
def test_numba_is_chosen_for_a_supported_network(step, engine):
    acceleration = accelerate(step.Network(), engine=engine)
    assert (acceleration.engine, acceleration.reason) == ("numba", None)


def test_torch_is_chosen_on_request():
    acceleration = accelerate(step4.Network(), engine="torch")
    assert (acceleration.engine, acceleration.reason) == ("torch", None)


@pytest.mark.parametrize(("layer", "feature"), UNSUPPORTED)
def test_an_unsupported_convolution_falls_back_to_torch_and_is_named(layer, feature):
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), layer)
    acceleration = accelerate(network)
    assert acceleration.engine == "torch"
    assert acceleration.reason == f"{layer} has {feature}: {TAKES}, in float32 or float64"
    with pytest.raises(ParameterError) as refusal:
        accelerate(network, engine="numba")
    assert str(refusal.value) == f"engine is 'numba': it takes auto or torch here, because {acceleration.reason}"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("network", "device", "reason"),
    [
        (
            step1.Network(),
            None,
            f"Conv2d(1, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)) has padding: {TAKES}",
        ),
        (step4.Network(), "cuda", "the network is on cuda"),
        (step4.Network().to("meta"), None, "the network is on meta"),
        (nn.Sequential(nn.Linear(1, 1)), None, "the network has no nn.Conv2d in an nn.Sequential"),
        (nn.Conv2d(1, 1, 1, bias=False), None, "the network has no nn.Conv2d in an nn.Sequential"),
        (nn.Sequential(OwnConv(1, 1, 1, bias=False)), None, "the network has no nn.Conv2d in an nn.Sequential"),
    ],
    ids=["step1", "cuda", "meta", "linear", "no Sequential", "another class"],
)
def test_an_unsupported_network_falls_back_to_torch_with_a_reason(network, device, reason):
    device = device and torch.device(device)
    acceleration = accelerate(network, device=device)
    assert acceleration.engine == "torch"
    assert acceleration.reason.startswith(reason)
    with pytest.raises(ParameterError, match="it takes auto or torch here"):
        accelerate(network, engine="numba", device=device)


def test_the_device_of_the_training_decides_not_that_of_the_moment():
    assert accelerate(step4.Network().to("meta"), device=torch.device("cpu")).engine == "numba"


def test_one_unsupported_network_among_several_is_enough():
    assert accelerate(step4.Network(), step1.Network()).engine == "torch"


def test_without_numba_torch_is_chosen(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    acceleration = accelerate(step4.Network())
    assert (acceleration.engine, acceleration.reason) == ("torch", "Numba is not installed")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ParameterError, match="engine is 'jax': it takes one of auto, numba, torch"):
        accelerate(step4.Network(), engine="jax")


IMPORTS = """
import sys
from drilldown.engine import accelerate
from steps.step4 import Network
print(accelerate(Network()).engine, "numba" in sys.modules)
"""


@pytest.mark.slow
def test_choosing_the_engine_does_not_import_numba():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numba", "False"]


@pytest.mark.parametrize(("layer", "feature"), UNSUPPORTED)
def test_an_unsupported_network_is_left_to_torch(layer, feature):
    before = threads()
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), layer)
    with accelerate(network) as acceleration, acceleration.training_threads():
        assert not replaced(network)
        assert threads() == before


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_under_torch_only_the_pools_are_replaced(engine):
    with accelerate(network := step1.Network(), engine=engine):
        assert {type(layer) for layer in replaced(network)} == {nn.MaxPool2d}


def test_training_under_torch_is_plain_torch(digits):
    torch.manual_seed(0)
    network = step3.Network()
    plain = copy.deepcopy(network)
    torch.manual_seed(1)
    train_epoch(plain, digits)
    torch.manual_seed(1)
    with accelerate(network, engine="torch") as acceleration, acceleration.training_threads():
        train_epoch(network, digits)
    assert_same_bits(network.state_dict(), plain.state_dict())


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_on_cuda_only_layers_with_few_channels_are_replaced(engine):
    network = step4.Network()
    with accelerate(network, engine=engine, device=torch.device("cuda")):
        convolutions = [layer for layer in replaced(network) if isinstance(layer, nn.Conv2d)]
        normalizations = [layer for layer in replaced(network) if isinstance(layer, nn.BatchNorm2d)]
        assert len(replaced(network)) == len(convolutions) + len(normalizations)
        assert [layer.in_channels for layer in convolutions] == [1, 4, 8]
        assert [layer.num_features for layer in normalizations] == [4, 8, 16, 10]
    assert not replaced(network)


def test_on_cuda_a_wide_network_is_in_channels_last_format():
    network, weight = (network := step1.Network()), network.layers[2].weight
    with accelerate(network, device=torch.device("cuda")):
        assert weight is network.layers[2].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not replaced(network)
    assert weight.is_contiguous()


def test_on_another_device_nothing_is_replaced():
    network = step4.Network()
    with accelerate(network, device=torch.device("meta")):
        assert not replaced(network)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_everything_is_restored(engine):
    network, before = step3.Network(), threads()
    attributes = {name: set(vars(layer)) for name, layer in network.named_modules()}
    with contextlib.suppress(KeyError), accelerate(network, engine=engine) as acceleration:
        assert ("forward" in vars(network.layers)) is (engine == "numba")
        assert threads() == before
        with acceleration.training_threads():
            raise KeyError
    assert {name: set(vars(layer)) for name, layer in network.named_modules()} == attributes
    assert threads() == before


def test_a_failed_entry_restores_everything(monkeypatch):
    monkeypatch.setattr("drilldown.engine.acceleration.EvalMaxPool", None)  # to fail after the nn.Sequential
    with pytest.raises(TypeError), accelerate(network := step3.Network()):
        pass
    assert not replaced(network)


def test_numba_has_the_threads_during_training_and_torch_outside():
    before = threads()
    with accelerate(step4.Network()) as acceleration:
        assert threads() == before
        with acceleration.training_threads():
            assert threads() == (1, min(before[0], numba.config.NUMBA_NUM_THREADS))
        assert threads() == before
    assert threads() == before


def test_under_torch_the_threads_stay():
    before = threads()
    with accelerate(step4.Network(), engine="torch") as acceleration, acceleration.training_threads():
        assert threads() == before


def test_an_acceleration_inside_another_changes_nothing():
    network = step3.Network()
    with accelerate(network):
        outer = [vars(layer)["forward"] for layer in replaced(network)]
        with accelerate(network):
            assert [vars(layer)["forward"] for layer in replaced(network)] == outer
        assert "forward" in vars(network.layers)
    assert not replaced(network)


def test_a_network_may_be_given_twice():
    """As the trained network and as the one to evaluate, where no weights are averaged."""
    network = step3.Network()
    with accelerate(network, network):
        assert "forward" in vars(network.layers)
    assert not replaced(network)


def test_a_network_and_its_average_are_both_accelerated():
    network = step3.Network()
    average = torch.optim.swa_utils.AveragedModel(network)
    with accelerate(network, average.module):
        forwards = [vars(one.layers)["forward"] for one in (network, average.module)]
        assert forwards[0] is not forwards[1]
    assert not replaced(network)
    assert not replaced(average)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("step", STEPS)
def test_evaluation_is_torchs_to_the_last_bit(step, mode, engine, digits):
    torch.manual_seed(0)
    network, images = step.Network().eval(), digits.test_images[:64, None] / 255
    with mode():
        plain = network(images)
        with accelerate(network, engine=engine):
            assert torch.equal(network(images), plain)


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_gradients_in_evaluation_mode_are_torchs_to_the_last_bit(engine):
    """Equal values, too: the first of them gets the gradient, as in torch."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2)).eval()
    x = torch.randint(0, 2, (3, 1, 8, 8)).float().requires_grad_()
    (plain,) = torch.autograd.grad(network(x).sum(), x)
    with accelerate(network, engine=engine):
        (grad,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(grad, plain)


def train_epoch(network, digits):
    """Four updates, the last of a smaller batch, as an epoch's last batch is."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    images, labels = digits.train_images[:112, None] / 255, digits.train_labels[:112]
    for x, y in zip(images.split(32), labels.split(32), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(network, digits):
    return network.eval()(digits.test_images[:64, None] / 255)


def assert_same_bits(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_one_acceleration_computes_what_one_for_each_epoch_does(step, digits):
    def train(outer, inner):
        torch.manual_seed(0)
        network, outputs = step.Network(), []
        with outer(network):
            for _ in range(3):
                with inner(network) as acceleration, acceleration.training_threads():
                    train_epoch(network, digits)
                outputs.append(evaluate(network, digits))
        return network.state_dict(), outputs

    nothing = contextlib.nullcontext
    together, each_epoch = train(accelerate, accelerate), train(nothing, accelerate)
    assert_same_bits(together[0], each_epoch[0])
    assert_same_bits(together[1], each_epoch[1])
