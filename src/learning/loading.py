"""The loops as Numba's cache has them, whatever process compiled them."""

import os
import subprocess
import sys
from functools import cache

import torch
from numba.core import event
from torch import nn

from src.learning.stages import Plan


class _Missing(Exception):
    """A loop is not in the cache."""


class _Refusal(event.Listener):
    """Lets nothing be compiled."""

    def on_start(self, event: event.Event) -> None:
        raise _Missing

    def on_end(self, event: event.Event) -> None:
        pass


@cache
def load_loops(dtype: torch.dtype) -> None:
    """Take the loops for such numbers from Numba's cache; a process of its own compiles those that are missing there.

    Compiled by the process that runs them they would round otherwise than in all later ones: Numba optimises a parallel
    loop once by itself and once within the function around it, runs the one where it compiles, and caches the other.
    """
    try:
        with event.install_listener("numba:compile", _Refusal()):
            call_every_loop(dtype)
    except _Missing:
        print("compiling the loops of training for this processor, once: some twenty seconds", file=sys.stderr)
        code = f"import torch; from {__name__} import call_every_loop; call_every_loop({dtype})"
        # In a session of its own it does not hear Ctrl-C, but is ended by the process that waits for it and does.
        command, path = [sys.executable, "-c", code], os.pathsep.join(map(os.path.abspath, sys.path))
        subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, start_new_session=True)
        call_every_loop(dtype)


def call_every_loop(dtype: torch.dtype) -> None:
    """Call every loop, with such numbers."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.BatchNorm2d(1), nn.Dropout(), nn.MaxPool2d(2)]
        plan = Plan([layer.to(dtype) for layer in layers], values := torch.ones(1, 1, 3, 3, dtype=dtype), learns=True)
        plan.backward(plan.forward(values), needed=True)
