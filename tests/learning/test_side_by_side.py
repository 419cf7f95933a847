"""Trainings side by side without a CUDA device; with one, see test_cuda.py."""

import pytest
import torch

from drilldown.errors import ParameterError
from drilldown.learning.recipe import Recipe
from drilldown.learning.side_by_side import fit_side_by_side
from tests.support.networks import SmallNetwork


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_they_need_a_cuda_device(digits):
    with pytest.raises(ParameterError, match="device is 'cuda': this machine has no CUDA device"):
        next(fit_side_by_side(SmallNetwork, Recipe(), digits, seeds=[0]))
