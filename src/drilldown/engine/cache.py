"""Kernels from Numba's cache on disk, whichever process compiled them."""

import os
import subprocess
import sys
from functools import cache

import torch
from numba.core import event
from torch import nn

from drilldown.engine.plan import Plan
from drilldown.errors import EngineError


class _NotCachedError(Exception):
    """A kernel is not in the cache."""


class _CompilationGuard(event.Listener):
    """Stops Numba when it starts to compile."""

    def on_start(self, event: event.Event) -> None:
        raise _NotCachedError

    def on_end(self, event: event.Event) -> None:
        pass


@cache
def load_kernels(dtype: torch.dtype) -> None:
    """Load all kernels for a dtype from Numba's cache; if some are missing, compile them in a separate process first.

    Numba optimizes a parallel loop twice, alone and as a part of its function. The process that compiles runs one
    version and caches the other, and the two round differently. So no process may run what it compiled itself.

    Raises: EngineError when they cannot be compiled.
    """
    try:
        with event.install_listener("numba:compile", _CompilationGuard()):
            call_every_kernel(dtype)
    except _NotCachedError:
        print("compiling the training kernels for this processor, once (about 20 s)", file=sys.stderr)
        code = f"import torch; from {__name__} import call_every_kernel; call_every_kernel({dtype})"
        command, path = [sys.executable, "-c", code], os.pathsep.join(map(os.path.abspath, sys.path))
        environment = os.environ | {"PYTHONPATH": path}
        # In a session of its own, the process does not receive Ctrl-C; subprocess.run ends it when this one does.
        done = subprocess.run(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
        if done.returncode:  # the disk is full, the memory too small
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineError(
                f"the training kernels cannot be compiled (exit status {done.returncode}: {last}); engine=torch trains "
                "without them"
            ) from None
        call_every_kernel(dtype)


def call_every_kernel(dtype: torch.dtype) -> None:
    """Call every kernel with arrays of a dtype; torch's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.BatchNorm2d(1), nn.Dropout(), nn.MaxPool2d(2)]
        x = torch.ones(1, 1, 3, 3, dtype=dtype)
        plan = Plan([layer.to(dtype) for layer in layers], x, requires_grad=True)
        plan.backward(plan.forward(x), needs_input_grad=True)
