"""Several trainings at a time on one CUDA device, in one process.

A small network keeps a part of the GPU busy; trainings on streams of their own share it. Processes do not: they take
turns on it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from drilldown.errors import DivergedError
from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Recipe
from drilldown.learning.train import TrainState, fit_stepwise, init_state, prepare

AT_A_TIME = 8  # more of them take as long (docs/scaling.md)


@dataclass(frozen=True)
class Trained:
    """A training that is over, or has diverged."""

    seed: int
    state: TrainState
    error: DivergedError | None = None


def fit_side_by_side(
    make_network: Callable[[], nn.Module],
    recipe: Recipe,
    dataset: Dataset,
    seeds: Iterable[int],
    at_a_time: int = AT_A_TIME,
) -> Iterator[Trained]:
    """Train with each of the seeds, `at_a_time` of them at the same time, and yield each when it is over.

    The trainings take turns update by update, each with a stream, graphs and random numbers of its own. So a seed gives
    the same bits as it does alone. Raises ParameterError without a CUDA device.
    """
    waiting = (_Training(make_network, recipe, dataset, seed) for seed in seeds)
    running = list(islice(waiting, at_a_time))
    generator = _device_generator()
    before = generator.graphsafe_get_state()
    try:
        while running:
            for training in list(running):
                if trained := training.advance():
                    running.remove(training)
                    running.extend(islice(waiting, 1))
                    yield trained
    finally:
        generator.graphsafe_set_state(before)


class _Training:
    """One of the trainings, made up to now."""

    def __init__(self, make_network: Callable[[], nn.Module], recipe: Recipe, dataset: Dataset, seed: int) -> None:
        device = prepare(seed, "cuda")
        self._seed = seed
        self._random = _device_generator().clone_state()  # for dropout
        self._state = init_state(make_network(), recipe, dataset, seed, device)
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        self._steps = fit_stepwise(self._state, recipe, dataset)

    def advance(self) -> Trained | None:
        """Make the next update; return the training when it is over."""
        generator = _device_generator()
        generator.graphsafe_set_state(self._random)
        error = None
        with torch.cuda.stream(self._stream):
            try:
                next(self._steps)
                return None
            except StopIteration:
                pass
            except DivergedError as diverged:
                error = diverged
            finally:
                self._random = generator.graphsafe_get_state()
        return Trained(self._seed, self._state, error)


def _device_generator() -> torch.Generator:
    return torch.cuda.default_generators[torch.cuda.current_device()]
