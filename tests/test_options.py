"""What a user gives goes before what a step declares, and that before the dataset's own."""

from dataclasses import replace

import pytest

from drilldown.errors import ParameterError
from drilldown.learning.recipe import Goal, Target
from drilldown.options import TrainOptions


def test_the_accuracy_to_reach_is_the_users_or_the_steps_or_the_datasets(digits):
    own = replace(digits, target_accuracy=None)
    step = Target(accuracy=90.0, last=3)
    assert TrainOptions(target=80.0).goal(step, digits) == Goal(80.0, last=3)
    assert TrainOptions(target=0.0).goal(step, own) == Goal(0.0, last=3)
    assert TrainOptions().goal(step, digits) == TrainOptions().goal(step, own) == Goal(90.0, last=3)
    assert TrainOptions().goal(Target(), digits) == Goal(97.0)
    with pytest.raises(ParameterError, match="target is not given: for digits, "):
        TrainOptions().goal(Target(), own)
