"""Training against its definition: repeatable, independent of the test images, with the known schedules."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from drilldown.errors import DivergedError, ParameterError
from drilldown.learning import train
from drilldown.learning.evaluate import evaluate
from drilldown.learning.recipe import Recipe
from drilldown.steps import load_step
from tests.support.networks import SmallNetwork, train_small

both_engines = pytest.mark.parametrize("engine", ["torch", "numba"])


@pytest.fixture(scope="module")
def some_digits(digits):
    """A tenth of the digits."""
    return replace(digits, train_images=digits.train_images[:144], train_labels=digits.train_labels[:144])


def weights(state):
    return torch.cat([tensor.flatten() for tensor in state.eval_model.state_dict().values()])


@both_engines
def test_it_learns(engine, digits):
    history = train_small(digits, engine=engine).history
    assert [metrics.epoch for metrics in history] == [1, 2, 3, 4, 5]
    assert history[-1].eval_accuracy > 95
    assert history[-1].train_loss < history[0].train_loss / 5


@pytest.mark.slow
@both_engines
def test_the_metrics_are_those_of_an_evaluation_afterwards(engine, digits):
    state = train_small(digits, engine=engine)
    evaluation = evaluate(state.eval_model, digits.test_images, digits.test_labels)
    assert state.history[-1].eval_accuracy == evaluation.accuracy
    assert state.history[-1].eval_loss == evaluation.loss
    assert torch.equal(state.evaluation.probabilities, evaluation.probabilities)  # to the last bit


@both_engines
def test_a_seed_is_repeatable_bit_for_bit(engine, some_digits):
    first, again, other = (weights(train_small(some_digits, seed=seed, engine=engine)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@both_engines
def test_the_test_images_do_not_influence_the_weights(engine, some_digits):
    inverted = replace(some_digits, test_images=255 - some_digits.test_images)
    first, second = (weights(train_small(dataset, engine=engine)) for dataset in (some_digits, inverted))
    assert torch.equal(first, second)


class DoubleNetwork(SmallNetwork):
    """In float64: in float32, rounding may change the sign before a ReLU, and then the weights."""

    def forward(self, images):
        return super().forward(images.double())


@both_engines
def test_an_epoch_is_plain_stochastic_gradient_descent(engine, some_digits):
    """The weights are those of the update rule: no average, no augmentation, constant learning rate."""
    recipe = Recipe(epochs=2, batch_size=50, lr=0.05, momentum=0.9, weight_decay=0.01)
    device = train.prepare(1, "cpu")
    state = train.init_state(DoubleNetwork(0).double(), recipe, some_digits, 1, device)
    reference = deepcopy(state.classifier).train()
    assert len(list(train.fit(state, recipe, some_digits, engine))) == 2

    generator = torch.Generator().manual_seed(1)
    velocities = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for _ in range(2):
        for batch in torch.randperm(144, generator=generator).split(50):
            loss = F.cross_entropy(
                reference.logits(some_digits.train_images[batch].float()), some_digits.train_labels[batch]
            )
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for parameter, gradient, velocity in zip(reference.parameters(), gradients, velocities, strict=True):
                    velocity.mul_(0.9).add_(gradient + 0.01 * parameter)
                    parameter -= 0.05 * velocity
    for found, expected in zip(state.eval_model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def cosine(start, end, share):
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(epochs=4, batch_size=144, lr=0.1), [0.1, 0.1, 0.1, 0.1]),
        (Recipe(epochs=4, batch_size=72, lr=0.1, schedule="step", lr_step_epochs=2), [0.1, 0.1, 0.01, 0.01]),
        # ten updates: from a twenty-fifth of the peak by cosine to the peak in five, then to nearly 0
        (Recipe(epochs=10, batch_size=144, lr=0.1, schedule="one-cycle", warmup_fraction=0.5),
         [cosine(0.004, 0.1, k / 4) for k in range(5)] + [cosine(0.1, 4e-7, k / 5) for k in range(1, 6)]),
        # warm-up in two of six updates; then the remaining share of the decay, squared and cubed
        (Recipe(epochs=6, batch_size=144, lr=0.1, schedule="quadratic", warmup_fraction=1/3),
         [0.05, 0.1, 0.1, 0.1 * 0.75**2, 0.1 * 0.5**2, 0.1 * 0.25**2]),
        (Recipe(epochs=6, batch_size=144, lr=0.1, schedule="cubic", warmup_fraction=1/3),
         [0.05, 0.1, 0.1, 0.1 * 0.75**3, 0.1 * 0.5**3, 0.1 * 0.25**3]),
    ],
)  # fmt: skip
def test_schedules(recipe, expected, some_digits):
    rates = [metrics.learning_rate for metrics in train_small(some_digits, recipe).history]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_warmup_of_one_update(some_digits):
    recipe = Recipe(epochs=5, batch_size=144, lr=0.1, schedule="one-cycle", warmup_fraction=0.2)
    rates = [metrics.learning_rate for metrics in train_small(some_digits, recipe).history]
    assert rates[:2] == pytest.approx([0.004, 0.1])
    assert rates[1:] == sorted(rates[1:], reverse=True)


@both_engines
def test_the_moving_average(engine, some_digits):
    """With one update an epoch and a time constant of four epochs, each update moves the average by a quarter."""
    recipe = Recipe(epochs=1, batch_size=144, lr=0.1, ema_epochs=4)
    state = train.init_state(SmallNetwork(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    expected = None
    for epochs in (1, 2, 3):
        for _ in train.fit(state, replace(recipe, epochs=epochs), some_digits, engine):
            pass
        weight = state.classifier.network.layers[1].weight.detach().clone()
        expected = weight if expected is None else expected + (weight - expected) / 4
        torch.testing.assert_close(state.eval_model.network.layers[1].weight, expected)


def test_the_average_is_updated_every_few_updates_and_at_the_end(some_digits, monkeypatch):
    calls = []
    update = train.WeightAverage.update_parameters
    monkeypatch.setattr(train.WeightAverage, "update_parameters", lambda *a: calls.append(None) or update(*a))
    train_small(some_digits, Recipe(epochs=1, batch_size=24, ema_epochs=1))  # 6 updates
    assert len(calls) == 2


@both_engines
def test_averaged_weights_have_their_own_batch_statistics(engine, some_digits):
    """Those of images without augmentation."""
    recipe = Recipe(epochs=1, batch_size=24, ema_epochs=1, rotation=90)
    classifier = train_small(some_digits, recipe, engine=engine).eval_model
    pixels = (some_digits.train_images.unsqueeze(1) - classifier.mean) / classifier.std
    outputs = classifier.network.layers[:2](pixels)
    statistics = classifier.network.layers[2]
    torch.testing.assert_close(statistics.running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(statistics.running_var, outputs.var((0, 2, 3)))


@pytest.mark.parametrize(("network", "computed"), [(SmallNetwork, 2), (load_step("step2").network, 0)])
def test_statistics_are_computed_only_where_the_network_has_them(network, computed, some_digits, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "update_bn_statistics", lambda *given: calls.append(given))
    recipe = Recipe(epochs=2, lr=0.001, ema_epochs=1)
    state = train.init_state(network(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    list(train.fit(state, recipe, some_digits, "torch"))
    assert len(calls) == computed


def test_without_an_average_the_classifier_itself_is_evaluated(some_digits):
    state = train_small(some_digits, Recipe(epochs=1))
    assert state.eval_model is state.classifier


@both_engines
def test_a_diverging_training_stops_and_says_where(engine, some_digits):
    recipe = Recipe(epochs=5, lr=1e6)
    state = train.init_state(load_step("step2").network(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    with pytest.raises(DivergedError, match=r"the loss of epoch \d, update \d+ is (nan|inf)"):
        list(train.fit(state, recipe, some_digits, engine))


def test_metrics_are_logged_by_the_name_of_the_split(some_digits):
    (metrics,) = train_small(some_digits.hold_out(44), Recipe(epochs=1)).history
    assert metrics.named("validation") == {
        "epoch": 1,
        "train_loss": metrics.train_loss,
        "train_accuracy": metrics.train_accuracy,
        "validation_loss": metrics.eval_loss,
        "validation_accuracy": metrics.eval_accuracy,
        "learning_rate": 0.01,
        "epoch_seconds": metrics.epoch_seconds,
        "images_per_second": metrics.images_per_second,
    }
    columns = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"]
    assert list(metrics.named("test")) == [*columns, "epoch_seconds", "images_per_second"]


@both_engines
def test_an_abandoned_training_restores_the_network(engine, some_digits):
    recipe = Recipe(epochs=2)
    state = train.init_state(SmallNetwork(), recipe, some_digits, 0, train.prepare(0, "cpu"))
    training = train.fit(state, recipe, some_digits, engine)
    next(training)
    assert any("forward" in vars(layer) for layer in state.classifier.modules()) is (engine == "numba")
    training.close()
    assert not any("forward" in vars(layer) for layer in state.classifier.modules())


@pytest.mark.parametrize(
    ("engine", "expected"), [("torch", {(True, 2), (False, 2)}), ("numba", {(True, 1), (False, 2)})]
)
def test_numba_trains_with_one_thread_of_torch(engine, expected, some_digits):
    """Evaluation has all of them."""
    seen = set()

    class Watched(SmallNetwork):
        def forward(self, images):
            seen.add((self.training, torch.get_num_threads()))
            return super().forward(images)

    threads = torch.get_num_threads()
    try:
        recipe = Recipe(epochs=1, ema_epochs=1)
        state = train.init_state(Watched(), recipe, some_digits, 0, train.prepare(0, "cpu", threads=2))
        next(train.fit(state, recipe, some_digits, engine))
    finally:
        torch.set_num_threads(threads)
    assert seen == expected


def test_an_engine_that_does_not_take_the_network(some_digits):
    state = train.init_state(load_step("step1").network(), Recipe(), some_digits, 0, train.prepare(0, "cpu"))
    with pytest.raises(ParameterError, match="engine is 'numba': it takes auto or torch"):
        next(train.fit(state, Recipe(), some_digits, "numba"))


def test_preparing_selects_the_device_and_the_threads():
    threads = torch.get_num_threads()
    try:
        assert train.prepare(0, "cpu", threads=1) == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
