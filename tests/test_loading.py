"""The compiled loops come from the cache, in the process that fills it, too."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from src.learning import loops
from src.learning.loading import load_loops

LOOPS = [name for name, loop in vars(loops).items() if hasattr(loop, "stats") and name != "fields"]  # that is inlined

TRAINING = """
import hashlib, torch
from src.learning.kernels import fast_kernels
from steps.step4 import Network
torch.manual_seed(0)
network = Network()
with fast_kernels(network):
    for _ in range(3):
        network(torch.rand(32, 1, 28, 28)).square().sum().backward()
gradients = b"".join(parameter.grad.numpy().tobytes() for parameter in network.parameters())
from src.learning import loops
loaded = [name for name, loop in vars(loops).items() if hasattr(loop, "stats") and loop.stats.cache_hits]
print(hashlib.sha256(gradients).hexdigest(), *sorted(loaded))
"""


def test_every_loop_is_loaded():
    load_loops(torch.float64)
    for name in LOOPS:
        assert any("float64" in str(signature) for signature in getattr(loops, name).signatures), name


@pytest.mark.slow
def test_the_process_that_finds_no_compiled_loops_computes_as_later_ones(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", TRAINING]
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert "compiling" in first.stderr
    assert "compiling" not in second.stderr
    assert first.stdout == second.stdout
    assert first.stdout.split()[1:] == sorted(LOOPS)


THREADS = """
import numba, torch
from src.learning.kernels import fast_kernels
from steps.step4 import Network
torch.set_num_threads(1)
for _ in range(2):
    with fast_kernels(Network()):
        print(numba.get_num_threads())
    print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_the_first_use_in_a_process_keeps_to_torchs_threads():
    command, environment = [sys.executable, "-c", THREADS], os.environ | {"NUMBA_NUM_THREADS": "2"}  # on one core, too
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 4
