"""The loops as Numba's cache has them, whatever process compiled them."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from numba.core import event
from torch import nn

from src.learning.stages import Plan

ROOT = Path(__file__).parents[2]


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
            use_loops(dtype)
    except _Missing:
        print("compiling the loops of training for this processor: once, for half a minute at most", file=sys.stderr)
        code = f"import torch; from {__name__} import use_loops; use_loops({dtype})"
        # In a session of its own it does not hear Ctrl-C, but is ended by the process that waits for it.
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, start_new_session=True)
        use_loops(dtype)


def use_loops(dtype: torch.dtype) -> None:
    """Call every loop, with such numbers."""
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(1, 1, 2, bias=False), nn.ReLU(), nn.BatchNorm2d(1), nn.Dropout(), nn.MaxPool2d(2)]
        values = torch.ones(1, 1, 3, 3, dtype=dtype)
        plan = Plan([layer.to(dtype) for layer in layers], values, True, [])
        plan.backward(plan.forward(values), True)
