"""A small network's layers, computed faster on a CPU: whole stretches of them at once, by loops on maps batch last."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from src.learning import loops

MOST_CHANNELS = 64  # of a convolution, for the loops to be faster than torch's products of matrices
CACHE_WAYS, CACHE_SPAN = 16, 1024  # so many lines of memory, so many values apart, can be in the fastest caches at once
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
Shape = tuple[int, int, int, int]  # of maps, batch last: channels, height, width, images
Arrays = tuple[np.ndarray, ...]  # gradients: in the order of a layer's parameters


@contextmanager
def fast_kernels(network: nn.Module) -> Iterator[None]:
    """While this lasts, the network's layers compute in their fastest way, on a CPU; what they compute is the same.

    A network on another device, or with a convolution that the loops cannot take, is left as it is. Torch has one
    thread meanwhile, as its idle ones would take the processor from those of the loops. Copies of the network are made
    before or after, not inside. Hooks of all modules at once may miss a layer, autocast does not reach the loops, there
    is no second derivative, and what backward retains is overwritten by the next pass forward.
    """
    with ExitStack() as undo:
        if _is_small(network):
            undo.callback(torch.set_num_threads, torch.get_num_threads())
            undo.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
            torch.set_num_threads(1)
            for layer in network.modules():
                if type(layer) is nn.Sequential and "forward" not in vars(layer):
                    layer.forward = _Sequence(layer)
                    undo.callback(delattr, layer, "forward")
        yield


def _is_small(network: nn.Module) -> bool:
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return on_cpu and bool(convolutions) and all(map(_is_plain, convolutions))


class _Sequence:
    """How an nn.Sequential computes meanwhile."""

    def __init__(self, layers: nn.Sequential):
        self.layers = layers
        self.idle: dict[tuple, list[_Plan]] = defaultdict(list)  # plans that no backward waits for

    def __call__(self, input: object) -> object:  # its name is torch's
        layers = list(self.layers)
        while layers:
            if stretch := _stretch(layers, input):
                layers = layers[len(stretch) :]
                parameters = [parameter for layer in stretch for parameter in _parameters(layer)]
                input = _Stretch.apply(input, self._plan(stretch, input, parameters), *parameters)
            else:
                input = layers.pop(0)(input)
        return input

    def _plan(self, stretch: list[nn.Module], values: Tensor, parameters: list[nn.Parameter]) -> "_Plan":
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (values, *parameters))
        places = [parameter.data_ptr() for parameter in parameters]
        idle = self.idle[*map(id, stretch), *places, values.shape, values.dtype, learns]
        return idle.pop() if idle else _Plan(stretch, values, learns, idle)


def _stretch(layers: Sequence[nn.Module], values: object) -> list[nn.Module]:
    """The first layers, up to one that the loops cannot take."""
    if not isinstance(values, Tensor) or values.dim() != 4 or values.dtype not in (torch.float32, torch.float64):
        return []
    count, *others = values.shape
    shape, stretch = (*others, count), []
    for layer in layers:
        own = vars(layer)
        changes_input = not stretch and own.get("inplace")  # of maps batch last it would change a copy
        watched = "forward" in own or any(own[hooks] for hooks in HOOKS)
        if type(layer) not in STAGES or changes_input or watched or 0 in shape:
            break
        alike = all(parameter.dtype == values.dtype for parameter in _parameters(layer))
        shape = STAGES[type(layer)].shape(layer, shape) if alike else None
        if shape is None:
            break
        stretch.append(layer)
    return stretch if any(isinstance(layer, nn.Conv2d) for layer in stretch) else []


def _parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The layer's own: `layer.parameters()` looks for layers within, which takes longer than some of them compute."""
    return [parameter for parameter in layer._parameters.values() if parameter is not None]


class _Stretch(torch.autograd.Function):
    """Several layers, one after the other, by a plan."""

    @staticmethod
    def forward(ctx, values: Tensor, plan: "_Plan", *parameters: Tensor) -> Tensor:
        ctx.plan, ctx.passed = plan, plan.passed + 1
        ctx.save_for_backward(*parameters)  # torch raises when they were changed, or freed, before backward
        return plan.forward(values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, _ = ctx.plan, ctx.saved_tensors
        if plan.passed != ctx.passed:
            raise RuntimeError("backward after another pass forward has overwritten what an earlier backward retained")
        change, gradients = plan.backward(gradient, ctx.needs_input_grad[0])
        return change, None, *gradients


class _Plan:
    """A stretch of layers for maps of one shape, with the arrays that it computes in, pass after pass.

    While a backward is to come it is not idle, so that no other pass overwrites what that needs.
    """

    def __init__(self, layers: list[nn.Module], values: Tensor, learns: bool, idle: "list[_Plan]"):
        count, *others = values.shape
        self.given = torch.empty(shape := (*others, count), dtype=values.dtype)
        self.memory = Memory(self.given.numpy().dtype, learns)
        self.idle, self.passed, self.stages = idle, 0, []  # passed: how many times forward
        for layer in layers:
            made = STAGES[type(layer)].shape(layer, shape)
            self.stages.append(STAGES[type(layer)](layer, shape, made, self.memory))
            shape = made

    def forward(self, values: Tensor) -> Tensor:
        self.passed += 1
        maps = self.given.copy_(values.detach().permute(1, 2, 3, 0)).numpy()
        for stage in self.stages:
            maps = stage.forward(maps)
        if not self.memory.learns:
            self.idle.append(self)
        return torch.from_numpy(maps.transpose(3, 0, 1, 2)).clone()

    def backward(self, gradient: Tensor, needed: bool) -> tuple[Tensor | None, list[Tensor]]:
        gradient = gradient.permute(1, 2, 3, 0)
        change, gradients = self.memory.another(gradient.shape), []
        torch.from_numpy(change).copy_(gradient)
        for number, stage in reversed(list(enumerate(self.stages))):
            change, its = stage.backward(change, needed or number > 0)
            gradients[:0] = map(torch.from_numpy, its)
        if self not in self.idle:  # a second backward, of what was retained
            self.idle.append(self)
        return None if change is None else torch.from_numpy(change.transpose(3, 0, 1, 2)).clone(), gradients


class Memory:
    """Arrays to compute in, used again and again: new ones would be in no cache, and have to be asked of the system."""

    def __init__(self, dtype: np.dtype, learns: bool):
        self.dtype, self.learns = dtype, learns
        self._pair, self._turn = [np.empty(0, dtype), np.empty(0, dtype)], 0

    def kept(self, shape: Shape) -> Callable[[], np.ndarray]:
        """What gives, in every pass forward, an array for what backward needs; if there is none, any other array."""
        array = np.empty(shape, self.dtype) if self.learns else None
        return partial(self.another, shape) if array is None else lambda: array

    def another(self, shape: Shape) -> np.ndarray:
        """Not the array that was given last, but maybe the one before that."""
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


class _Correlation:
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
        return (layer.out_channels, height - down + 1, width - right + 1, count) if fits and _is_plain(layer) else None

    def __init__(self, layer: nn.Conv2d, shape: Shape, made: Shape, memory: Memory):
        weight = layer.weight.detach().numpy()
        outputs, *others = self.weight_shape = weight.shape
        weight = weight.reshape(layer.groups, outputs // layer.groups, *others)
        turned, (down, right) = weight.swapaxes(1, 2)[..., ::-1, ::-1], layer.kernel_size
        self.forth = _Correlation(weight, shape, (0, 0), memory.dtype)
        self.back = _Correlation(turned, made, (down - 1, right - 1), memory.dtype)
        self.around, self.made = memory.kept(self.forth.around), memory.kept(made)
        self.between, self.change = partial(memory.another, self.back.around), partial(memory.another, shape)
        self.sums = np.empty((made[1], *self.forth.kernels.shape), memory.dtype)

    def forward(self, maps: np.ndarray) -> np.ndarray:
        self.maps = self.forth.surround(maps, self.around)
        return self.forth.convolve(self.maps, self.made())

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray | None, Arrays]:
        self.sums.fill(0)
        loops.kernel_gradient(self.maps, gradient, self.forth.places, self.sums)
        own = self.sums.sum(0)[:, : math.prod(self.weight_shape[1:])].reshape(self.weight_shape)
        if not needed:
            return None, (own,)
        around = self.back.surround(gradient, self.between)
        return self.back.convolve(around, self.change()), (own,)


def _is_plain(layer: nn.Conv2d) -> bool:
    usual = layer.stride == layer.dilation == (1, 1) and layer.padding == (0, 0) and layer.bias is None
    return usual and max(layer.in_channels, layer.out_channels) <= MOST_CHANNELS


class Normalisation:
    @staticmethod
    def shape(layer: nn.BatchNorm2d, shape: Shape) -> Shape | None:
        usual = layer.training and layer.affine and layer.track_running_stats and layer.num_batches_tracked is not None
        return shape if usual and shape[0] == layer.num_features and math.prod(shape[1:]) > 1 else None

    def __init__(self, layer: nn.BatchNorm2d, shape: Shape, made: Shape, memory: Memory):
        self.layer, self.made, self.number = layer, memory.kept(made), memory.dtype.type
        self.weight, self.bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        self.mean, self.variance = np.empty_like(self.weight), np.empty_like(self.weight)
        count = math.prod(shape[1:])
        self.unbiased = count / (count - 1)

    def forward(self, maps: np.ndarray) -> np.ndarray:
        layer, self.maps, made = self.layer, maps, self.made()
        loops.normalise(maps, self.weight, self.bias, layer.eps, made, self.mean, self.variance)
        self.scale = 1 / np.sqrt(self.variance + self.number(layer.eps))
        layer.num_batches_tracked.add_(1)
        momentum = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
        for running, now in (layer.running_mean, self.mean), (layer.running_var, self.variance * self.unbiased):
            values = running.numpy()
            values += momentum * (now - values)
        return made

    def backward(self, gradient: np.ndarray, needed: bool) -> tuple[np.ndarray, Arrays]:
        own = np.empty_like(self.mean), np.empty_like(self.mean)
        loops.normalise_gradient(self.maps, self.weight, self.mean, self.scale, gradient, *own)
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
        sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        halves = sizes in ((2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))) and not layer.return_indices
        return (channels, height // 2, width // 2, count) if halves and height % 2 == width % 2 == 0 else None

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
        self.layer, self.draws = layer, torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64)
        self.bits = self.draws.view(torch.int16).numpy()  # uniform in ±2¹⁵

    def forward(self, maps: np.ndarray) -> np.ndarray:
        self.draws.random_(-(2**63), None)  # all 64 bits
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
