"""The rule by which a candidate is recommended."""

import math

import pytest

from drilldown.experiments import confirm
from drilldown.experiments.nested import Outcome
from drilldown.learning.recipe import Goal, Recipe

GOAL = Goal(accuracy=99.4, last=2)
OWN = [99.40, 99.50, 99.45, 99.52, 99.48, 99.41, 99.47, 99.49]


def outcomes(trial, values, **more):
    """Runs whose last two epochs have these values as their lowest."""
    return [
        Outcome(
            "step4", 1000 + place, f"run-{trial}-{place}", accuracies=(90.0, value + 0.1, value), trial=trial, **more
        )
        for place, value in enumerate(values)
    ]


def p_of_t(t):
    """Two-sided, with 7 degrees of freedom (Abramowitz and Stegun, 26.7.3)."""
    angle = math.atan(t / 7**0.5)
    cosine = math.cos(angle)
    return 1 - 2 / math.pi * (angle + math.sin(angle) * (cosine + 2 / 3 * cosine**3 + 8 / 15 * cosine**5))


def shifted(*differences):
    return [own + difference for own, difference in zip(OWN, differences, strict=True)]


def test_a_candidate_that_is_better_with_nearly_every_seed_is_recommended_and_one_that_is_not_is_not():
    better = shifted(0.05, 0.06, 0.04, 0.05, 0.07, 0.05, 0.04, 0.06)
    chance = shifted(0.10, -0.08, 0.05, -0.03, 0.06, -0.07, 0.09, -0.04)
    worse = shifted(-0.05, -0.06, -0.04, -0.05, -0.07, -0.05, -0.04, -0.06)
    runs = [*outcomes(0, OWN), *outcomes(7, better), *outcomes(3, chance), *outcomes(9, worse)]
    found = {one.trial: one for one in confirm.judge(runs, [7, 3, 9], GOAL)}
    assert found[7].difference == pytest.approx(0.0525)
    assert found[7].p == found[9].p == pytest.approx(3 * p_of_t(0.0525 / (0.0103510 / 8**0.5)), rel=1e-3)
    assert {trial: one.is_recommended for trial, one in found.items()} == {7: True, 3: False, 9: False}
    assert found[9].p < 0.05  # it differs for certain, but is worse
    assert found[3].p > 0.5
    assert confirm.best(list(found.values())) == found[7]
    assert confirm.verdict(list(found.values())).startswith(
        "recommended: trial 7, better than the step's own recipe by 0.052 points over 8 seeds (p = "
    )
    assert confirm.verdict([found[3], found[9]]).startswith("recommended: the step's own recipe, because")


def test_holm_can_take_back_what_a_single_test_would_have_shown():
    nearly = shifted(0.06, 0.05, -0.01, 0.04, 0.03, -0.02, 0.06, 0.02)
    alone = confirm.judge([*outcomes(0, OWN), *outcomes(7, nearly)], [7], GOAL)
    assert alone[0].is_recommended
    among = confirm.judge(
        [run for trial, values in ((0, OWN), (7, nearly), (8, nearly), (9, nearly)) for run in outcomes(trial, values)],
        [7, 8, 9],
        GOAL,
    )
    assert not any(one.is_recommended for one in among)
    assert among[0].p == pytest.approx(3 * alone[0].p)


def test_a_candidate_of_which_a_run_failed_is_not_recommended_and_seeds_that_one_lacks_are_left_out():
    better = shifted(0.05, 0.06, 0.04, 0.05, 0.07, 0.05, 0.04, 0.06)
    failed = Outcome("step4", 1007, "run", error="training diverged", trial=7)
    (found,) = confirm.judge([*outcomes(0, OWN), *outcomes(7, better)[:7], failed], [7], GOAL)
    assert (len(found.values), len(found.own), found.failed) == (7, 7, "training diverged")
    assert found.p < 0.05
    assert not found.is_recommended
    assert found.row()["verdict"] == "failed"
    (nothing,) = confirm.judge([Outcome("step4", 1000, "run", error="no", trial=0), *outcomes(7, better)], [7], GOAL)
    assert (nothing.p, nothing.is_recommended, nothing.row()["better by"]) == (1.0, False, "–")


def test_the_recipe_as_source_is_the_recipe():
    recipe = Recipe(epochs=3, lr=0.1234567890123, schedule="cubic", nesterov=True)
    text = confirm.source(recipe, {"dropout": 0.2}, "tune of step4")
    namespace = {"Recipe": Recipe}
    exec(text, namespace)
    assert namespace["RECIPE"] == recipe
    assert text.splitlines()[0] == "# tune of step4"
    assert text.splitlines()[-1] == "# Defaults of Network's arguments: dropout=0.2"
    assert "momentum" not in text  # a default
