"""What a search may change."""

from dataclasses import asdict, replace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from drilldown.errors import StepError
from drilldown.experiments.space import default_space, find_space
from drilldown.learning.recipe import Recipe
from drilldown.options import TrainOptions
from drilldown.steps import STEP_NAMES, load_step
from tests.support.networks import SmallNetwork

SPACE = {
    "lr": FloatDistribution(0.01, 1, log=True),
    "dropout": FloatDistribution(0, 0.5),
    "momentum": FloatDistribution(0, 0.99),
}


def small_step(**space):
    return replace(load_step("step4"), network=SmallNetwork, space=space)


@pytest.mark.parametrize("name", STEP_NAMES)
def test_the_default_space_holds_the_own_recipe_of_every_step(name):
    step = load_step(name)
    space = find_space(replace(step, space={}), TrainOptions())
    assert space.own == {field: asdict(step.recipe)[field] for field in space.distributions}
    assert {"lr", "weight_decay", "ema_epochs", "rotation", "translate"} <= space.own.keys()
    assert ("warmup_fraction" in space.own) == (step.recipe.schedule == "one-cycle")
    assert space.apply(TrainOptions(), space.own).recipe(step.recipe) == step.recipe


def test_the_default_space_is_widened_to_hold_an_unusual_recipe():
    space = default_space(Recipe(weight_decay=0.1, rotation=40, lr=3))
    assert (space["weight_decay"].high, space["rotation"].high, space["lr"].high) == (0.1, 40, 3)


def test_values_become_options_of_a_training_and_what_the_user_gives_is_not_searched():
    step = small_step(**SPACE, epochs=IntDistribution(1, 20))
    options = TrainOptions(lr=0.3, epochs=2)
    space = find_space(step, options)
    assert space.own == {"dropout": 0.1, "momentum": step.recipe.momentum}
    applied = space.apply(options, {"dropout": 0.4, "momentum": 0.5})
    assert applied.network_fields == {"dropout": 0.4}
    assert asdict(applied.recipe(step.recipe)) == asdict(step.recipe) | {"lr": 0.3, "epochs": 2, "momentum": 0.5}
    searched = find_space(step, TrainOptions()).apply(TrainOptions(), {"lr": 0.2, "epochs": 7})
    assert (searched.recipe(step.recipe).lr, searched.recipe(step.recipe).epochs) == (0.2, 7)
    with pytest.raises(StepError, match="nothing is left to search, because lr is given"):
        find_space(small_step(lr=SPACE["lr"]), TrainOptions(lr=0.3))


@pytest.mark.parametrize(
    ("name", "distribution", "message"),
    [
        ("lr", (0.1, 0.2), r"lr is \(0.1, 0.2\): it takes one of Optuna's distributions"),
        ("width", FloatDistribution(0, 1), "width is no field of Recipe, and no argument of Network"),
        ("dropout", FloatDistribution(0.2, 0.5), "dropout is 0.1 in the step itself: its distribution"),
        ("schedule", CategoricalDistribution(["step", "cubic"]), "schedule is 'one-cycle' in the step itself"),
    ],
)  # fmt: skip
def test_a_space_that_does_not_fit_the_step_is_refused(name, distribution, message):
    with pytest.raises(StepError, match=f"^SPACE of steps/step4.py: {message}"):
        find_space(small_step(**{name: distribution}), TrainOptions())


def test_the_text_of_a_space_changes_with_every_distribution():
    texts = {
        find_space(small_step(**space), TrainOptions()).as_text()
        for space in (SPACE, SPACE | {"dropout": FloatDistribution(0, 0.6)}, {"lr": SPACE["lr"]})
    }
    assert len(texts) == 3
