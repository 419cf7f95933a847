"""The compiled kernels come from the cache, in the process that fills it, too."""

import os
import subprocess
import sys

import pytest
import torch

from drilldown.engine import kernels
from drilldown.engine.cache import load_kernels

KERNELS = [
    name for name, kernel in vars(kernels).items() if hasattr(kernel, "stats") and name != "tap_views"
]  # inlined

TRAINING = """
import hashlib, torch
from drilldown.engine import accelerate
from steps.step4 import Network
torch.manual_seed(0)
network = Network()
with accelerate(network) as acceleration, acceleration.training_threads():
    for _ in range(3):
        network(torch.rand(32, 1, 28, 28)).square().sum().backward()
gradients = b"".join(parameter.grad.numpy().tobytes() for parameter in network.parameters())
from drilldown.engine import kernels
loaded = [name for name, kernel in vars(kernels).items() if hasattr(kernel, "stats") and kernel.stats.cache_hits]
print(hashlib.sha256(gradients).hexdigest(), *sorted(loaded))
"""

THREADS = """
import torch
from drilldown.engine import accelerate
from steps.step4 import Network
torch.set_num_threads(1)
assert torch.get_num_threads() == 1  # torch has its threads before Numba starts others and changes the number
for _ in range(2):
    with accelerate(Network()) as acceleration:
        print(torch.get_num_threads())
        with acceleration.training_threads():
            import numba
            print(numba.get_num_threads())
        print(torch.get_num_threads())
    print(torch.get_num_threads())
"""


def run_python(code, **variables):
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    environment = os.environ | {"PYTHONPATH": path} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_the_process_that_fills_the_cache_computes_as_later_ones(tmp_path):
    first, second = (run_python(TRAINING, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr == "compiling the training kernels for this processor, once (about 20 s)\n"
    assert second.stderr == ""
    assert first.stdout == second.stdout
    assert first.stdout.split()[1:] == sorted(KERNELS)


@pytest.mark.slow
def test_the_first_use_in_a_process_keeps_torchs_threads():
    done = run_python(THREADS, NUMBA_NUM_THREADS="2")  # on one core, too
    assert done.stdout.split() == ["1"] * 8


@pytest.mark.slow
def test_every_kernel_is_loaded():
    load_kernels(torch.float64)
    for name in KERNELS:
        assert any("float64" in str(signature) for signature in getattr(kernels, name).signatures), name
