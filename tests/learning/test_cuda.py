"""Training on a CUDA device: captured as graphs, repeatable, resumable; skipped where there is no device."""

import warnings
from dataclasses import replace

import pytest
import torch

from drilldown.errors import DivergedError
from drilldown.learning import checkpoint, train
from drilldown.learning.recipe import Recipe
from drilldown.learning.side_by_side import fit_side_by_side
from drilldown.steps import load_step
from tests.support.networks import SMALL_RECIPE, SmallNetwork

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

# The small network has dropout, step 1 is in channels-last format, step 4 has layers with few channels.
networks = pytest.mark.parametrize(
    "network", [SmallNetwork, load_step("step1").network, load_step("step4").network], ids=["small", "step1", "step4"]
)
# Batches of 64 with and without an update of the average, and a last one of 29.
RECIPE = replace(SMALL_RECIPE, epochs=4)


def new_state(dataset, recipe=RECIPE, seed=0, network=SmallNetwork, device="cuda"):
    selected = train.prepare(seed, device)
    return train.init_state(network(), recipe, dataset, seed, selected)


def trained(dataset, recipe=RECIPE, graphs=True, network=SmallNetwork, seed=0):
    state = new_state(dataset, recipe, seed, network)
    list(train.fit(state, recipe, dataset, graphs=graphs))
    return state


def figures(state):
    return [replace(metrics, epoch_seconds=0, images_per_second=0) for metrics in state.history]


def assert_same(first, second):
    assert figures(first) == figures(second)
    for one, other in ((first.classifier, second.classifier), (first.eval_model, second.eval_model)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_it_learns(digits):
    state = trained(digits, SMALL_RECIPE)
    assert state.history[-1].eval_accuracy > 95


@networks
def test_a_seed_is_repeatable_bit_for_bit(network, digits):
    assert_same(trained(digits, network=network), trained(digits, network=network))


@networks
def test_graphs_change_no_bit(network, digits, capsys):
    assert_same(trained(digits, network=network), trained(digits, graphs=False, network=network))
    assert "not used" not in capsys.readouterr().out


@networks
@pytest.mark.parametrize("epoch", [1, 3])
def test_it_resumes_bit_for_bit(epoch, network, digits, tmp_path):
    state = new_state(digits, network=network)
    for metrics in train.fit(state, RECIPE, digits):
        checkpoint.save(state, tmp_path)
        if metrics.epoch == epoch:
            break
    torch.rand(7, device="cuda")  # in another process the random numbers are at another point
    resumed = new_state(digits, seed=99, network=network)
    assert checkpoint.restore(resumed, tmp_path) == []
    list(train.fit(resumed, RECIPE, digits))
    assert_same(resumed, trained(digits, network=network))


class LookingNetwork(SmallNetwork):
    """A network that reads a value from the device, which no graph can."""

    def forward(self, images):
        logits = super().forward(images)
        return logits + 0 * logits.sum().item()


def test_a_network_that_cannot_be_captured(digits, capsys):
    state = trained(digits, network=LookingNetwork)
    assert capsys.readouterr().out.count("CUDA graphs: not used, because the training cannot be captured: ") == 1
    assert_same(state, trained(digits, graphs=False, network=LookingNetwork))


def test_the_host_waits_for_the_device_only_at_the_end_of_an_epoch(digits):
    """With four times the images it waits as often."""

    def waits(copies):
        larger = replace(
            digits,
            train_images=digits.train_images.repeat(copies, 1, 1),
            train_labels=digits.train_labels.repeat(copies),
        )
        state = new_state(larger)
        training = train.fit(state, RECIPE, larger)
        for _ in range(3):  # all is captured after two
            next(training)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                next(training)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)

    assert waits(1) == waits(4)


def test_a_diverging_training_says_where(digits):
    recipe = Recipe(epochs=5, lr=1e6)
    with pytest.raises(DivergedError, match=r"the loss of epoch \d, update \d+ is (nan|inf)"):
        trained(digits, recipe, network=load_step("step2").network)


def test_it_trains_like_the_cpu(digits):
    recipe = Recipe(epochs=3, batch_size=48, lr=0.05, rotation=5)
    losses = []
    for device in ("cpu", "cuda"):
        state = new_state(digits, recipe, device=device)
        losses.append(next(train.fit(state, recipe, digits, engine="torch")).train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@networks
@pytest.mark.parametrize("at_a_time", [2, 8])
def test_side_by_side_each_seed_has_the_bits_that_it_has_alone(at_a_time, network, digits):
    """With dropout, whose random numbers come from one generator for the whole device."""
    seeds = [3, 1, 0]
    together = {result.seed: result.state for result in fit_side_by_side(network, RECIPE, digits, seeds, at_a_time)}
    assert sorted(together) == sorted(seeds)
    for seed in seeds:
        assert_same(together[seed], trained(digits, seed=seed, network=network))


def test_side_by_side_a_diverging_training_stops_alone(digits):
    def network():
        return SmallNetwork() if torch.initial_seed() else load_step("step2").network()  # seed 0 has no normalization

    recipe = Recipe(epochs=3, lr=1e6)
    results = {result.seed: result for result in fit_side_by_side(network, recipe, digits, [0, 1])}
    assert isinstance(results[0].error, DivergedError)
    assert results[1].error is None
    assert len(results[1].state.history) == 3
