"""Recipes, targets and goals refuse values out of bounds, and name the field."""

import dataclasses
import math

import pytest

from drilldown.errors import ParameterError
from drilldown.learning.recipe import Goal, Recipe, Target


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", 10_000),
        ("epochs", -(10**30)),
        ("batch_size", 0),
        ("batch_size", 60_001),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "fast"),
        ("schedule", "cosine"),
        ("warmup_fraction", 0),
        ("warmup_fraction", 1),
        ("lr_step_epochs", 0),
        ("momentum", 1),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("ema_epochs", -1),
        ("rotation", -7),
        ("translate", 1),
        ("label_smoothing", 1),
    ],
)
def test_an_invalid_field_is_named_with_its_value(field, value):
    with pytest.raises(ParameterError) as error:
        Recipe(**{field: value})
    assert str(error.value).startswith(f"{field} is {value!r}: it takes ")


@pytest.mark.parametrize("value", [10**4000, "9" * 4000])
def test_a_very_long_value_is_shown_in_part(value):
    with pytest.raises(ParameterError, match=r"epochs is .+\.\.\..+: it takes a whole number at least 1") as error:
        Recipe(epochs=value)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("kind", [Target, Goal])
@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan])
def test_an_accuracy_is_a_percentage(kind, value):
    with pytest.raises(ParameterError, match=r"target is .*: it takes a number at least 0 and at most 100"):
        kind(accuracy=value)


@pytest.mark.parametrize("kind", [Target, Goal])
@pytest.mark.parametrize("field", ["last", "max_epochs", "max_parameters"])
def test_limits_are_counts(kind, field):
    with pytest.raises(ParameterError, match=f"{field} is 0: it takes a whole number at least 1"):
        kind(accuracy=99.4, **{field: 0})


def test_a_resolved_target_is_a_goal_with_the_same_limits():
    target = Target(last=3, max_epochs=15, max_parameters=7_999)
    assert target.resolve(99.4) == Goal(99.4, last=3, max_epochs=15, max_parameters=7_999)


@pytest.mark.parametrize(("value", "field"), [(Recipe(), "lr"), (Target(), "accuracy"), (Goal(99.4), "accuracy")])
def test_they_are_immutable(value, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, 1)
