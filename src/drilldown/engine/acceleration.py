"""The entry point of the engine: choose Numba or torch, and replace the forward methods of networks accordingly.

This module must not import Numba, directly or through another module, before an acceleration is entered.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from drilldown.choices import ENGINES
from drilldown.engine import cuda
from drilldown.engine.pooling import EvalMaxPool, is_max_pool_2x2
from drilldown.engine.support import DTYPES, why_unavailable, why_unsupported
from drilldown.errors import ParameterError


def accelerate(*networks: nn.Module, engine: str = "auto", device: torch.device | None = None) -> "Acceleration":
    """Choose the engine for a training; entering the returned context puts it into effect.

    Args:
        networks: the trained network and, if there is one, the average of its weights.
        engine: "numba"; "torch"; or "auto", which is "numba" for the networks that it supports, if Numba can compile.
        device: where the networks will train; by default, where their parameters are.

    Raises:
        ParameterError: no such engine, or engine="numba" and the networks are not supported, or Numba cannot compile.
    """
    if engine not in ENGINES:
        raise ParameterError(f"engine is {engine!r}: it takes one of {', '.join(ENGINES)}")
    devices = {device} if device else {tensor.device for network in networks for tensor in network.parameters()}
    device_types = {device.type for device in devices}
    reason = None if engine == "torch" else why_unsupported(networks, device_types) or why_unavailable()
    if engine == "numba" and reason:
        raise ParameterError(f"engine is 'numba': it takes auto or torch here, because {reason}")
    chosen = "torch" if engine == "torch" or reason else "numba"
    return Acceleration(networks, chosen, reason, device_types)


class Acceleration:
    """A context in which networks compute faster. Enter it once for a whole training.

    On a CPU in training mode, an nn.Sequential computes its supported layers by the Numba kernels (engine "numba"). In
    evaluation mode, all layers are torch's, except that 2×2 max pools run faster, with the same values. On CUDA, layers
    with few channels train by other kernels of torch, and wide networks are in channels-last format. Layers that
    another acceleration has already changed are left alone.

    Limits inside the context: copy, pickle or export a network before or after. Global module hooks may miss layers.
    Autocast does not reach the kernels. There is no second derivative. A graph that backward retained is valid until
    the next forward pass of the same network.

    Attributes:
        engine: "numba" or "torch".
        reason: why "auto" chose torch, as a clause; None if it did not.
    """

    def __init__(self, networks: tuple[nn.Module, ...], engine: str, reason: str | None, device_types: set[str]):
        self.engine, self.reason = engine, reason
        self._on_cpu, self._on_cuda = device_types <= {"cpu"}, device_types == {"cuda"}
        self._networks, self._restore = networks, ExitStack()

    def __enter__(self) -> Self:
        """Load the kernels, or compile them (about 20 s, once for each processor), and replace forward methods."""
        with ExitStack() as restore:
            if self.engine == "numba":
                self._load_kernels()
            for network in self._networks:
                if self._on_cuda and cuda.is_wide(network):
                    restore.callback(network.to, memory_format=torch.contiguous_format)
                    network.to(memory_format=torch.channels_last)
                    continue
                for layer in network.modules():
                    self._replace_forward(layer, restore)
            self._restore = restore.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the forward methods."""
        self._restore.close()

    @contextmanager
    def training_threads(self) -> Iterator[None]:
        """Give Numba torch's threads, and torch one: idle threads of torch would slow the kernels down."""
        if self.engine == "torch":
            yield
            return
        threads = torch.get_num_threads()  # read first: Numba, when it starts its own threads, changes this number
        import numba

        with ExitStack() as restore:
            restore.callback(torch.set_num_threads, threads)
            restore.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
            torch.set_num_threads(1)
            yield

    def _load_kernels(self) -> None:
        from drilldown.engine.cache import load_kernels

        with self.training_threads():
            for dtype in {tensor.dtype for network in self._networks for tensor in network.parameters()} & DTYPES:
                load_kernels(dtype)

    def _replace_forward(self, layer: nn.Module, restore: ExitStack) -> None:
        if "forward" in vars(layer):  # by another acceleration, or by the network's author
            return
        if forward := self._other_forward(layer):
            layer.forward = forward
            restore.callback(delattr, layer, "forward")

    def _other_forward(self, layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """Return the forward method that takes the place of a layer's own, if there is one for it."""
        if self._on_cpu and type(layer) is nn.Sequential and self.engine == "numba":
            from drilldown.engine.dispatch import FusedSequential

            return FusedSequential(layer)
        if self._on_cpu and type(layer) is nn.MaxPool2d and is_max_pool_2x2(layer):
            return EvalMaxPool(layer)
        if self._on_cuda and type(layer) is nn.Conv2d and cuda.has_few_inputs(layer):
            return cuda.FewInputsConv(layer)
        if self._on_cuda and type(layer) is nn.BatchNorm2d and cuda.has_few_channels(layer):
            return cuda.SplitBatchNorm(layer)
        return None
