"""Training against its own definition: repeatable, blind to the test set, and with the schedules as they are known."""

import math
import platform
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Small, train_small
from torch.nn import functional as F

from src.learning import train
from src.learning.evaluate import evaluate
from src.learning.recipe import ParameterError, Recipe
from steps import step2


@pytest.fixture(scope="module")
def some_digits(digits):
    """A tenth of the digits."""
    return replace(digits, train_images=digits.train_images[:144], train_labels=digits.train_labels[:144])


def weights(training):
    return torch.cat([parameter.flatten() for parameter in training.result.state_dict().values()])


def test_it_learns(trained):
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4, 5]
    assert trained.history[-1]["test_accuracy"] > 95
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"] / 5


def test_the_row_is_what_an_evaluation_of_the_result_says(trained, digits):
    found = evaluate(trained.result, digits.test_images, digits.test_labels)
    assert trained.history[-1]["test_accuracy"] == found.accuracy
    assert trained.history[-1]["test_loss"] == found.loss


def test_a_seed_is_repeatable_bit_for_bit(some_digits):
    once, again, other = (weights(train_small(some_digits, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_the_test_set_has_no_say(some_digits):
    scrambled = replace(some_digits, test_images=255 - some_digits.test_images)
    assert torch.equal(weights(train_small(some_digits)), weights(train_small(scrambled)))


class Exact(Small):
    """In float64: a rounding in float32 can turn a ReLU, and with it the weights."""

    def forward(self, images):
        return super().forward(images.double())


def test_an_epoch_is_plain_stochastic_gradient_descent(some_digits):
    """The same weights as the update rule written out: no averaging, no augmentation, constant learning rate."""
    recipe = Recipe(epochs=2, batch_size=50, lr=0.05, momentum=0.9, weight_decay=0.01)
    device = train.prepare(1, "cpu")
    training = train.start(Exact(0).double(), recipe, some_digits, 1, device)
    reference = deepcopy(training.classifier).train()
    assert len(list(train.fit(training, recipe, some_digits))) == 2

    generator = torch.Generator().manual_seed(1)
    speed = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for _ in range(2):
        for batch in torch.randperm(144, generator=generator).split(50):
            loss = F.cross_entropy(
                reference.logits(some_digits.train_images[batch].float()), some_digits.train_labels[batch]
            )
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for parameter, gradient, v in zip(reference.parameters(), gradients, speed, strict=True):
                    v.mul_(0.9).add_(gradient + 0.01 * parameter)
                    parameter -= 0.05 * v
    for found, expected in zip(training.result.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(epochs=4, batch_size=144, lr=0.1), [0.1, 0.1, 0.1, 0.1]),
        (Recipe(epochs=4, batch_size=72, lr=0.1, schedule="step", step_epochs=2), [0.1, 0.1, 0.01, 0.01]),
        # one-cycle of 11 updates, rising for 5: from a twenty-fifth, by cosine to the peak, and down to nearly nothing
        (Recipe(epochs=10, batch_size=144, lr=0.1, schedule="one-cycle", rise=0.5), None),
        # rising for two of six updates; then the rest of the way to the end, squared and cubed
        (Recipe(epochs=6, batch_size=144, lr=0.1, schedule="quadratic", rise=1/3),
         [0.05, 0.1, 0.1, 0.1 * 0.75**2, 0.1 * 0.5**2, 0.1 * 0.25**2]),
        (Recipe(epochs=6, batch_size=144, lr=0.1, schedule="cubic", rise=1/3),
         [0.05, 0.1, 0.1, 0.1 * 0.75**3, 0.1 * 0.5**3, 0.1 * 0.25**3]),
    ],
)  # fmt: skip
def test_schedules(recipe, expected, some_digits):
    rates = [row["learning_rate"] for row in train_small(some_digits, recipe).history]
    if expected is None:

        def cosine(start, end, share):
            return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

        expected = [cosine(0.004, 0.1, k / 4) for k in range(5)] + [cosine(0.1, 4e-7, k / 5) for k in range(1, 6)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_rise_of_one_update(some_digits):
    recipe = Recipe(epochs=5, batch_size=144, lr=0.1, schedule="one-cycle", rise=0.2)
    rates = [row["learning_rate"] for row in train_small(some_digits, recipe).history]
    assert rates[:2] == pytest.approx([0.004, 0.1])
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_the_moving_average(some_digits):
    """With one update an epoch and a memory of four epochs, each update moves the average by a quarter."""
    recipe = Recipe(epochs=1, batch_size=144, lr=0.1, averaging=4)
    training = train.start(Small(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    expected = None
    for epochs in (1, 2, 3):
        for _ in train.fit(training, replace(recipe, epochs=epochs), some_digits):
            pass
        now = training.classifier.network.layers[0].weight.detach().clone()
        expected = now if expected is None else expected + (now - expected) / 4
        torch.testing.assert_close(training.result.network.layers[0].weight, expected)


def test_the_average_is_taken_every_few_updates_and_at_the_end(some_digits, monkeypatch):
    seen = []
    update = train.AveragedModel.update_parameters
    monkeypatch.setattr(train.AveragedModel, "update_parameters", lambda *a: seen.append(None) or update(*a))
    train_small(some_digits, Recipe(epochs=1, batch_size=24, averaging=1))  # 6 updates
    assert len(seen) == 2


def test_averaged_weights_have_batch_statistics_of_their_own(some_digits):
    """Those of the images as they are, not the last updates' of augmented ones."""
    result = train_small(some_digits, Recipe(epochs=1, batch_size=24, averaging=1, rotation=90)).result
    maps = result.network.layers[0]((some_digits.train_images.unsqueeze(1) - result.mean) / result.std)
    statistics = result.network.layers[1]
    torch.testing.assert_close(statistics.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(statistics.running_var, maps.var((0, 2, 3)))


def test_without_averaging_the_result_is_the_classifier_itself(some_digits):
    training = train_small(some_digits, Recipe(epochs=1))
    assert training.result is training.classifier


def test_a_diverging_run_stops_and_says_where(some_digits):
    recipe = Recipe(epochs=5, lr=1e6)
    training = train.start(step2.Network(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    with pytest.raises(train.DivergedError, match=r"the loss of epoch \d, update \d+ is (nan|inf)"):
        list(train.fit(training, recipe, some_digits))


def test_a_validation_slice_goes_by_its_name(some_digits):
    row = train_small(some_digits.hold_out(44), Recipe(epochs=1)).history[0]
    assert "validation_accuracy" in row
    assert "test_accuracy" not in row


FAULTS = """
import resource, torch
from src.learning import train
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10 * 2**20)  # 40 MiB: of itself glibc keeps 32 at most
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
faults()
before = faults()
train.keep_freed_memory()
for _ in range(10):  # in the first of these rounds the heap still grows, as often as its gaps are too small
    after = faults()
print(before, after)
"""
GLIBC = tuple(map(int, re.findall(r"\d+", platform.libc_ver()[1]))) if platform.libc_ver()[0] == "glibc" else ()


@pytest.mark.skipif(GLIBC < (2, 36), reason="there is no glibc that keeps more than 32 MiB here")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10


def test_an_older_glibc_gets_the_threshold_that_it_takes(monkeypatch):
    asked = []

    def mallopt(option: int, value: int) -> bool:
        asked.append((option, value))
        return not (option == -3 and value > 2**25)  # -3: M_MMAP_THRESHOLD

    monkeypatch.setattr(train.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    train.keep_freed_memory()
    assert [value for option, value in asked if option == -3][-1] == 2**25


def test_devices():
    assert train.prepare(0, "cpu").type == "cpu"
    with pytest.raises(ParameterError, match="device is 'tpu': it takes one of auto, cpu, cuda"):
        train.prepare(0, "tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none():
    assert train.prepare(0, "auto").type == "cpu"
    with pytest.raises(ParameterError, match="device is 'cuda': this machine has no CUDA device"):
        train.prepare(0, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_cuda_trains_like_the_cpu(some_digits):
    recipe = Recipe(epochs=3, batch_size=48, lr=0.05, rotation=5)
    rows = []
    for device in ("cpu", "cuda"):
        training = train.start(Small(), recipe, some_digits, 0, train.prepare(0, device))
        rows.append(next(train.fit(training, recipe, some_digits)))
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=0.05)
