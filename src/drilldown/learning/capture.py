"""Updates as CUDA graphs: each is one launch, instead of more than a hundred."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from drilldown.learning.average import WeightAverage
from drilldown.learning.classifier import Classifier
from drilldown.learning.update import Update

Call = Callable[[], None]
Kind = tuple[int, bool]  # batch size, with or without an update of the average


class Recorder(Protocol):
    """What `CapturedUpdate` needs of a device."""

    def warm_up(self, call: Call) -> None:
        """Make the call, so that all is loaded that a recording needs."""

    def record(self, call: Call) -> Call:
        """Record the call without making it; return what replays it. Raises RuntimeError if that is impossible."""


class CapturedUpdate(Update):
    """An update that is recorded once for each kind of batch, and then replayed.

    A kind is a batch size, with or without an update of the average. The first update of a kind is made as it is, the
    second one is recorded. Both count, so nothing must be undone. If recording fails, a line says why, and from then
    on all updates are made as they are.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: Optimizer,
        average: WeightAverage | None,
        label_smoothing: float,
        epoch_updates: int,
        recorder: Recorder,
    ) -> None:
        super().__init__(classifier, optimizer, average, label_smoothing, epoch_updates)
        self._recorder: Recorder | None = recorder  # None after a failure
        self._warm: set[Kind] = set()
        self._replays: dict[Kind, Callable[[Tensor, Tensor], None]] = {}

    def __call__(self, pixels: Tensor, digits: Tensor, average: bool) -> None:
        """Do what `Update` does."""
        kind = len(digits), average
        make = partial(super().__call__, average=average)
        if self._recorder and kind not in self._warm:
            self._recorder.warm_up(lambda: make(pixels, digits))
            self._warm.add(kind)
            return
        if self._recorder and kind not in self._replays:
            try:
                self._replays[kind] = _record(make, pixels, digits, self._recorder)
            except RuntimeError as error:
                tqdm.write(f"CUDA graphs: not used, because the update cannot be captured: {_first_cause(error)}")
                self._recorder = None
                self._replays.clear()
        self._replays.get(kind, make)(pixels, digits)


def _record(
    make: Callable[[Tensor, Tensor], None], pixels: Tensor, digits: Tensor, recorder: Recorder
) -> Callable[[Tensor, Tensor], None]:
    """Record an update with tensors of its own for the batch; return a function that fills them and replays it."""
    own_pixels, own_digits = pixels.clone(), digits.clone()
    replay = recorder.record(lambda: make(own_pixels, own_digits))

    def fill_and_replay(pixels: Tensor, digits: Tensor) -> None:
        own_pixels.copy_(pixels)
        own_digits.copy_(digits)
        replay()

    return fill_and_replay


class CudaRecorder:
    """Records calls as CUDA graphs. All of them share their memory, so only one may be replayed at a time."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, call: Call) -> None:
        """Make the call on the stream on which it will be recorded."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)

    def record(self, call: Call) -> Call:
        """Capture the call as a graph; random numbers go on as without it."""
        graph = torch.cuda.CUDAGraph()
        try:
            # After a failure, torch.cuda.graph leaves its stream selected; the outer context selects the current one.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
            ):
                call()
        except RuntimeError:
            # A capture that failed leaves the generator in a state in which it draws for graphs only.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return graph.replay


def _first_cause(error: BaseException) -> str:
    """Return the message of the error that led to this one, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
