"""How kinds of layers compute on maps that lie batch last, (C, H, W, N), by loops, and plans of several in a row."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from src.learning import loops
from src.learning.pooling import is_halving

MOST_CHANNELS = 64  # of a convolution, for the loops to be faster than torch's products of matrices
CACHE_WAYS, CACHE_SPAN = 16, 1024  # so many lines of memory, so many values apart, can be in the fastest caches at once
Shape = tuple[int, int, int, int]  # of maps, batch last: channels, height, width, images
Arrays = tuple[np.ndarray, ...]  # gradients: in the order of a layer's parameters


class Plan:
    """A stretch of layers for maps of one shape, with the arrays that it computes in, pass after pass.

    A pass forward overwrites what the one before it kept for backward; `passes` tells which one's that is.
    """

    def __init__(self, layers: list[nn.Module], values: Tensor, learns: bool):
        count, *others = values.shape
        shape, dtype = (*others, count), torch.empty(0, dtype=values.dtype).numpy().dtype
        self.given, self.memory = np.empty(shape, dtype), Memory(dtype, learns)
        self.stages, self.passes = [], 0
        for layer in layers:
            made = STAGES[type(layer)].shape(layer, shape)
            if type(layer) is nn.ReLU and self.stages and type(self.stages[-1]) is Normalisation:
                self.stages[-1].rectifies = True
            else:
                self.stages.append(STAGES[type(layer)](layer, shape, made, self.memory))
            shape = made

    def forward(self, values: Tensor) -> Tensor:
        self.passes += 1
        maps, count = self.given, len(values)
        flat = torch.from_numpy(maps).view(-1, count)  # in two dimensions torch is fastest
        flat.copy_(values.detach().reshape(count, -1).t())
        for stage in self.stages:
            maps = stage.forward(maps)
        return torch.from_numpy(maps.transpose(3, 0, 1, 2)).clone()

    def backward(self, gradient: Tensor, needed: bool) -> tuple[Tensor | None, list[Tensor]]:
        gradient = gradient.permute(1, 2, 3, 0)
        change, gradients = self.memory.another(gradient.shape), []
        torch.from_numpy(change).copy_(gradient)
        for number, stage in reversed(list(enumerate(self.stages))):
            change, its = stage.backward(change, needed or number > 0)
            gradients[:0] = map(torch.from_numpy, its)
        return None if change is None else torch.from_numpy(change.transpose(3, 0, 1, 2)).clone(), gradients


class Memory:
    """Arrays to compute in, used again and again: new ones would be in no cache, and have to be asked of the system."""

    def __init__(self, dtype: np.dtype, learns: bool):
        self.dtype, self.learns = dtype, learns
        self._pair, self._turn = [np.empty(0, dtype), np.empty(0, dtype)], 0

    def kept(self, shape: Shape) -> Callable[[], np.ndarray]:
        """What gives an array of its own, always the same, if there will be a backward; if not, another of the pair."""
        return cache(partial(np.empty, shape, self.dtype)) if self.learns else partial(self.another, shape)

    def another(self, shape: Shape) -> np.ndarray:
        """The one of a pair that was not given last."""
        self._turn, size = 1 - self._turn, math.prod(shape)
        if self._pair[self._turn].size < size:
            self._pair[self._turn] = np.empty(size, self.dtype)
        return self._pair[self._turn][:size].reshape(shape)


class Stage(Protocol):
    """How a kind of layer computes on maps that lie batch last, (C, H, W, N); it may write into those it is given."""

    @staticmethod
    def shape(layer: nn.Module, shape: Shape) -> Shape | None:
        """What it makes of maps of that shape; None: that is left to torch."""

    def __init__(self, layer: nn.Module, shape: Shape, made: Shape, memory: Memory): ...

    def forward(self, maps: np.ndarray) -> np.ndarray:
        """The maps that it makes."""

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray | None, Arrays]:
        """The gradients of the maps that it was given, where they are needed, and of the layer's parameters."""


class Correlation:
    """Kernels (groups, D, I, h, w) for maps of one shape with zeros around, so many rows and columns on each side."""

    def __init__(self, weight: np.ndarray, shape: Shape, zeros: tuple[int, int], dtype: np.dtype):
        groups, outputs, inputs, down, right = weight.shape
        margin = _margin(shape, inputs)
        above, before = zeros[0] + margin, zeros[1] + margin
        channels, height, width, count = shape
        self.around = (channels, height + 2 * above, width + 2 * before, count)
        self.is_wider = above > 0 or before > 0
        self.places = _places(self.around, weight.shape, margin)
        self.kernels = np.zeros((groups * outputs, self.places.shape[1]), dtype)
        self._values = self.kernels[:, : inputs * down * right].reshape(weight.shape)  # in the same memory
        self._weight = weight

    def surround(self, maps: np.ndarray, array: Callable[[], np.ndarray]) -> np.ndarray:
        """The maps with their zeros around, in an array that is asked for if there are any."""
        if not self.is_wider:
            return maps
        loops.surround(maps, around := array())
        return around

    def convolve(self, around: np.ndarray, made: np.ndarray) -> np.ndarray:
        self._values[...] = self._weight
        loops.convolve(around, self.kernels, self.places, made)
        return made


def _margin(maps: Shape, inputs: int) -> int:
    """A row and a column around maps that would otherwise lie so far apart that all want the same lines of a cache."""
    return 1 if inputs > CACHE_WAYS and math.prod(maps[1:]) % CACHE_SPAN == 0 else 0


def _places(maps: Shape, weight: tuple[int, ...], margin: int) -> np.ndarray:
    """Where in such flat maps the values of such kernels meet the first pixel of the first image: (groups, T)."""
    (channels, height, width, count), (groups, _, _, down, right) = maps, weight
    pixels = np.arange(channels * height * width).reshape(groups, -1, height, width)
    first = pixels[..., margin : margin + down, margin : margin + right]
    places = first.reshape(groups, -1) * count
    return np.pad(places, ((0, 0), (0, -places.shape[1] % loops.TAPS)), mode="edge")


class Convolution:
    @staticmethod
    def shape(layer: nn.Conv2d, shape: Shape) -> Shape | None:
        (channels, height, width, count), (down, right) = shape, layer.kernel_size
        fits = channels == layer.in_channels and height >= down and width >= right
        return (layer.out_channels, height - down + 1, width - right + 1, count) if fits and is_plain(layer) else None

    def __init__(self, layer: nn.Conv2d, shape: Shape, made: Shape, memory: Memory):
        weight = layer.weight.detach().numpy()
        outputs, *others = self.weight_shape = weight.shape
        weight = weight.reshape(layer.groups, outputs // layer.groups, *others)
        turned, (down, right) = weight.swapaxes(1, 2)[..., ::-1, ::-1], layer.kernel_size
        self.forth = Correlation(weight, shape, (0, 0), memory.dtype)
        self.back = Correlation(turned, made, (down - 1, right - 1), memory.dtype)
        self.around, self.made = memory.kept(self.forth.around), memory.kept(made)
        self.between, self.change = partial(memory.another, self.back.around), partial(memory.another, shape)
        self.sums = np.empty((made[1], *self.forth.kernels.shape), memory.dtype)

    def forward(self, maps: np.ndarray) -> np.ndarray:
        self.maps = self.forth.surround(maps, self.around)
        return self.forth.convolve(self.maps, self.made())

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray | None, Arrays]:
        own = np.empty(self.weight_shape, gradient.dtype)
        loops.kernel_gradient(self.maps, gradient, self.forth.places, self.sums, own.reshape(len(own), -1))
        if not needed:
            return None, (own,)
        around = self.back.surround(gradient, self.between)
        return self.back.convolve(around, self.change()), (own,)


def is_plain(layer: nn.Conv2d) -> bool:
    usual = layer.stride == layer.dilation == (1, 1) and layer.padding == (0, 0) and layer.bias is None
    return usual and max(layer.in_channels, layer.out_channels) <= MOST_CHANNELS


class Normalisation:
    """Batch normalisation, and the ReLU after it, if there is one."""

    @staticmethod
    def shape(layer: nn.BatchNorm2d, shape: Shape) -> Shape | None:
        usual = layer.training and layer.affine and layer.track_running_stats and layer.num_batches_tracked is not None
        alike = usual and layer.running_mean.dtype == layer.running_var.dtype == layer.weight.dtype
        return shape if alike and shape[0] == layer.num_features and math.prod(shape[1:]) > 1 else None

    def __init__(self, layer: nn.BatchNorm2d, shape: Shape, made: Shape, memory: Memory):
        self.layer, self.made, self.rectifies = layer, memory.kept(made), False
        self.weight, self.bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        self.batches = layer.num_batches_tracked.numpy()
        self.running = layer.running_mean.numpy(), layer.running_var.numpy()
        self.mean, self.scale = np.empty_like(self.weight), np.empty_like(self.weight)

    def forward(self, maps: np.ndarray) -> np.ndarray:
        layer, self.maps, self.results = self.layer, maps, self.made()
        self.batches += 1
        momentum = 1 / int(self.batches) if layer.momentum is None else float(layer.momentum)
        given = maps, self.weight, self.bias, float(layer.eps), momentum, self.rectifies
        loops.normalise(*given, *self.running, self.results, self.mean, self.scale)
        return self.results

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray, Arrays]:
        own = np.empty_like(self.mean), np.empty_like(self.mean)
        given = self.maps, self.results, self.rectifies, self.weight, self.mean, self.scale
        loops.normalise_gradient(*given, gradient, *own)
        return gradient, own


class Rectification:
    def __init__(self, layer: nn.ReLU, shape: Shape, made: Shape, memory: Memory):
        pass

    @staticmethod
    def shape(layer: nn.ReLU, shape: Shape) -> Shape:
        return shape

    def forward(self, maps: np.ndarray) -> np.ndarray:
        loops.rectify(maps)
        self.made = maps
        return maps

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray, Arrays]:
        loops.rectify_gradient(self.made, gradient)
        return gradient, ()


class Pool:
    @staticmethod
    def shape(layer: nn.MaxPool2d, shape: Shape) -> Shape | None:
        channels, height, width, count = shape
        fits = is_halving(layer) and height % 2 == width % 2 == 0
        return (channels, height // 2, width // 2, count) if fits else None

    def __init__(self, layer: nn.MaxPool2d, shape: Shape, made: Shape, memory: Memory):
        self.made, self.change = memory.kept(made), partial(memory.another, shape)
        self.places = np.empty(made, np.int8)

    def forward(self, maps: np.ndarray) -> np.ndarray:
        loops.pool(maps, made := self.made(), self.places)
        return made

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray, Arrays]:
        loops.pool_gradient(gradient, self.places, change := self.change())
        return change, ()


class Dropout:
    @staticmethod
    def shape(layer: nn.Dropout, shape: Shape) -> Shape | None:
        return shape if layer.training and layer.p < 1 else None

    def __init__(self, layer: nn.Dropout, shape: Shape, made: Shape, memory: Memory):
        """Of 16 random bits a value, not a float: four times fewer draws, and a rate exact to 1/65,536."""
        self.layer, self.draws = layer, np.empty(-(-math.prod(shape) // 4), np.int64)
        self.bits = self.draws.view(np.int16)[: math.prod(shape)].reshape(*shape[:2], -1)  # uniform in ±2¹⁵

    def forward(self, maps: np.ndarray) -> np.ndarray:
        torch.from_numpy(self.draws).random_(-(2**63), None)  # all 64 bits
        self.share = self.layer.p
        return self._drop(maps)

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray, Arrays]:
        return self._drop(gradient), ()

    def _drop(self, maps: np.ndarray) -> np.ndarray:
        """In place: of a ReLU before, which keeps these maps, no value that is dropped has a gradient either."""
        loops.drop(self.bits, round((self.share - 0.5) * 2**16), 1 / (1 - self.share), maps)
        return maps


STAGES: dict[type[nn.Module], type[Stage]] = {
    nn.Conv2d: Convolution,
    nn.BatchNorm2d: Normalisation,
    nn.ReLU: Rectification,
    nn.MaxPool2d: Pool,
    nn.Dropout: Dropout,
}
