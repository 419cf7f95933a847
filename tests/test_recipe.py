"""Recipes and targets refuse what makes no sense, and say so by the field's name."""

import dataclasses
import math

import pytest

from src.learning.recipe import ParameterError, Recipe, Target


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
        ("rise", 0),
        ("rise", 1),
        ("momentum", 1),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("averaging", -1),
        ("rotation", -7),
        ("shift", 1),
        ("label_smoothing", 1),
    ],
)
def test_a_bad_field_is_named_with_its_value(field, value):
    with pytest.raises(ParameterError) as error:
        Recipe(**{field: value})
    assert str(error.value).startswith(f"{field} is {value!r}: it takes ")


@pytest.mark.parametrize("value", [10**4000, "9" * 4000])
def test_a_very_long_value_is_shown_in_part(value):
    with pytest.raises(ParameterError, match=r"epochs is .+\.\.\..+: it takes a whole number at least 1") as error:
        Recipe(epochs=value)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(("field", "value"), [("accuracy", -0.1), ("accuracy", 100.1), ("accuracy", math.nan)])
def test_a_target_is_a_percentage(field, value):
    with pytest.raises(ParameterError, match=r"target is .*: it takes a number at least 0 and at most 100"):
        Target(**{field: value})


@pytest.mark.parametrize("field", ["last", "max_epochs", "max_parameters"])
def test_limits_are_counts(field):
    with pytest.raises(ParameterError, match=f"{field} is 0: it takes a whole number at least 1"):
        Target(**{field: 0})


def test_they_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Target().accuracy = 1
