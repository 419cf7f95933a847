"""Calls as CUDA graphs: each is one launch, instead of hundreds."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from drilldown.learning.average import WeightAverage
from drilldown.learning.classifier import Classifier
from drilldown.learning.update import Update

Call = Callable[[], None]


class Recorder(ABC):
    """Records calls and replays them; a subclass for each kind of device.

    Attributes:
        failed: whether a call could not be recorded. From then on, all calls are made as they are.
    """

    failed = False

    @abstractmethod
    def warm_up(self, call: Call) -> None:
        """Make the call, in the way in which it will be recorded."""

    @abstractmethod
    def record(self, call: Call) -> Call:
        """Record the call without making it; return what replays it. Raises RuntimeError if that is impossible."""

    def captured(self, call: Call) -> Call:
        """Return a function that makes the call as it is the first time, records it the second time, and replays it.

        Each of them counts, so nothing must be undone. If recording fails, a line says why, and calls are made as they
        are. All tensors that the call reads or writes must stay where they are.
        """
        return _Captured(call, self)


class _Captured:
    def __init__(self, call: Call, recorder: Recorder) -> None:
        self._call, self._recorder = call, recorder
        self._replay: Call | None = None
        self._is_warm = False

    def __call__(self) -> None:
        if self._recorder.failed:
            self._call()
        elif not self._is_warm:
            self._recorder.warm_up(self._call)
            self._is_warm = True
        else:
            if self._replay is None:
                self._replay = self._record()
            self._replay()

    def _record(self) -> Call:
        try:
            return self._recorder.record(self._call)
        except RuntimeError as error:
            self._recorder.failed = True
            tqdm.write(f"CUDA graphs: not used, because the training cannot be captured: {_first_cause(error)}")
            return self._call


class CudaRecorder(Recorder):
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


class CapturedUpdate(Update):
    """An update that is captured for each kind of batch: its size, with or without an update of the average.

    The graphs refer to the update weakly, so that their memory is free as soon as the update is gone.
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
        self._recorder = recorder
        self._captured: dict[tuple[int, bool], tuple[Tensor, Tensor, Call]] = {}

    def __call__(self, pixels: Tensor, digits: Tensor, average: bool) -> None:
        """Do what `Update` does; the batch is copied, as a graph reads from where it was recorded."""
        kind = len(digits), average
        if kind not in self._captured:
            batch = torch.empty_like(pixels), torch.empty_like(digits)
            this: Any = weakref.proxy(self)
            self._captured[kind] = *batch, self._recorder.captured(lambda: Update.__call__(this, *batch, average))
        own_pixels, own_digits, update = self._captured[kind]
        own_pixels.copy_(pixels)
        own_digits.copy_(digits)
        update()


def _first_cause(error: BaseException) -> str:
    """Return the message of the error that led to this one, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
