"""The optimizer: it takes torch's steps, without torch's compiler."""

import subprocess
import sys

import pytest
import torch

from drilldown.learning.optimizer import SGD

STEPS = 5
TRAIN = """
import sys
from dataclasses import replace
from drilldown.learning import data, train
from drilldown.steps import load_step

step, dataset = load_step("step4"), data.load("digits")
device = train.prepare(0, "cpu")
state = train.init_state(step.network(), step.recipe, dataset, 0, device)
next(train.fit(state, replace(step.recipe, epochs=1), dataset))
state.optimizer.load_state_dict(state.optimizer.state_dict())
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""


def train_line(optimizer_class, **given):
    torch.manual_seed(0)
    line = torch.nn.Linear(4, 3)
    optimizer = optimizer_class(line.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True, **given)
    for _ in range(STEPS):
        optimizer.zero_grad()
        line(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return line.weight, optimizer.state_dict()["state"][0]["momentum_buffer"]


def test_takes_the_steps_of_torch_bit_for_bit():
    for nesterov in (False, True):
        ours, torchs = train_line(SGD, nesterov=nesterov), train_line(torch.optim.SGD, nesterov=nesterov)
        assert all(map(torch.equal, ours, torchs))


def test_leaves_gradients_of_the_caller_on():
    train_line(SGD)
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_trains_without_the_compiler():
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
