"""A small network's layers, computed faster on a CPU: whole stretches of them at once, by loops on maps batch last."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

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


class Way(NamedTuple):
    """How a kind of layer computes on maps that lie batch last, (C, H, W, N); it may write into those it is given."""

    shape: Callable[[nn.Module, Shape], Shape | None]  # what it makes of such maps; None: that is left to torch
    forward: Callable[[nn.Module, np.ndarray], tuple[np.ndarray, Arrays]]  # maps → maps, and what backward needs
    backward: Callable[[nn.Module, Arrays, np.ndarray, bool], tuple[np.ndarray | None, Arrays]]  # → the gradients


@contextmanager
def fast_kernels(network: nn.Module) -> Iterator[None]:
    """While this lasts, the network's layers compute in their fastest way, on a CPU; what they compute is the same.

    A network on another device, or with a convolution that the loops cannot take, is left as it is. Torch has one
    thread meanwhile, as its idle ones would take the processor from those of the loops. Copies of the network are made
    before or after, not inside. Hooks of all modules at once may miss a layer, autocast does not reach the loops, and
    there is no second derivative.
    """
    with ExitStack() as undo:
        if _is_small(network):
            undo.callback(torch.set_num_threads, torch.get_num_threads())
            undo.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
            torch.set_num_threads(1)
            for layer in network.modules():
                if type(layer) is nn.Sequential and "forward" not in vars(layer):
                    layer.forward = partial(_sequence, layer)
                    undo.callback(delattr, layer, "forward")
        yield


def _is_small(network: nn.Module) -> bool:
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return on_cpu and bool(convolutions) and all(map(_is_plain, convolutions))


def _sequence(sequence: nn.Sequential, input: object) -> object:  # its name is torch's
    layers = list(sequence)
    while layers:
        if stretch := _stretch(layers, input):
            layers = layers[len(stretch) :]
            parameters = [parameter for layer in stretch for parameter in _parameters(layer)]
            input = _Stretch.apply(input, stretch, torch.is_grad_enabled(), *parameters)
        else:
            input = layers.pop(0)(input)
    return input


def _stretch(layers: Sequence[nn.Module], values: object) -> list[nn.Module]:
    """The first layers, up to one that the loops cannot take."""
    if not isinstance(values, Tensor) or values.dim() != 4 or values.dtype not in (torch.float32, torch.float64):
        return []
    count, *others = values.shape
    shape, stretch = (*others, count), []
    for layer in layers:
        changes_input = not stretch and getattr(layer, "inplace", False)  # of maps batch last it would change a copy
        watched = any(vars(layer)[hooks] for hooks in HOOKS) or "forward" in vars(layer)
        if type(layer) not in WAYS or changes_input or watched or 0 in shape:
            break
        alike = all(parameter.dtype == values.dtype for parameter in _parameters(layer))
        shape = WAYS[type(layer)].shape(layer, shape) if alike else None
        if shape is None:
            break
        stretch.append(layer)
    return stretch if any(isinstance(layer, nn.Conv2d) for layer in stretch) else []


def _parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The layer's own: `layer.parameters()` looks for layers within, which takes longer than some of them compute."""
    return [parameter for parameter in layer._parameters.values() if parameter is not None]


class _Stretch(torch.autograd.Function):
    """Several layers, one after the other, by their ways."""

    @staticmethod
    def forward(ctx, values: Tensor, layers: list[nn.Module], learns: bool, *parameters: Tensor) -> Tensor:
        maps, ctx.layers, kept = _batch_last(values), layers, []
        for layer in layers:
            maps, needed = WAYS[type(layer)].forward(layer, maps)
            kept.append(needed if learns else ())
        made = torch.from_numpy(maps.transpose(3, 0, 1, 2))
        ctx.numbers = [len(needed) for needed in kept]
        # Torch frees what it is given to save, and raises when that was changed before backward reads it: therefore the
        # parameters, and the result where what is kept is the same memory.
        seen = [*parameters, *([made] if kept[-1] and kept[-1][0] is maps else [])]
        ctx.save_for_backward(*(torch.from_numpy(array) for needed in kept for array in needed), *seen)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        kept = [[next(saved).detach().numpy() for _ in range(number)] for number in ctx.numbers]
        change, gradients = _batch_last(gradient), []
        for number, layer in reversed(list(enumerate(ctx.layers))):
            needed = number > 0 or ctx.needs_input_grad[0]
            change, its = WAYS[type(layer)].backward(layer, kept[number], change, needed)
            gradients[:0] = map(torch.from_numpy, its)
        before = None if change is None else torch.from_numpy(change.transpose(3, 0, 1, 2))
        return before, None, None, *gradients


def _batch_last(values: Tensor) -> np.ndarray:
    """A copy, as the layers' ways may write into what they are given."""
    return values.detach().permute(1, 2, 3, 0).clone(memory_format=torch.contiguous_format).numpy()


def _is_plain(layer: nn.Conv2d) -> bool:
    usual = layer.stride == layer.dilation == (1, 1) and layer.padding == (0, 0) and layer.bias is None
    return usual and max(layer.in_channels, layer.out_channels) <= MOST_CHANNELS


def _convolution_shape(layer: nn.Conv2d, shape: Shape) -> Shape | None:
    (channels, height, width, count), (down, right) = shape, layer.kernel_size
    fits = channels == layer.in_channels and height >= down and width >= right
    return (layer.out_channels, height - down + 1, width - right + 1, count) if fits and _is_plain(layer) else None


def _convolution(layer: nn.Conv2d, maps: np.ndarray) -> tuple[np.ndarray, Arrays]:
    weight, margin = layer.weight.detach().numpy(), _margin(maps.shape, layer.weight.shape)
    around = _surround(maps, margin, margin)
    return _convolve(around, weight, layer.groups, margin), (around, weight)


def _convolution_gradient(layer, kept, gradient, needed) -> tuple[np.ndarray | None, Arrays]:
    (around, weight), groups = kept, layer.groups
    outputs, inputs, down, right = weight.shape
    margin = (around.shape[1] - gradient.shape[1] - (down - 1)) // 2
    places = _places(around.shape, weight.shape, groups, margin)
    sums = np.zeros((gradient.shape[1], outputs, places.shape[1]), gradient.dtype)
    loops.kernel_gradient(around, gradient, places, sums)
    own = sums.sum(0)[:, : inputs * down * right].reshape(weight.shape)
    if not needed:
        return None, (own,)
    turned = weight.reshape(groups, outputs // groups, inputs, down, right).swapaxes(1, 2)[..., ::-1, ::-1]
    turned = turned.reshape(groups * inputs, outputs // groups, down, right)
    margin = _margin(gradient.shape, turned.shape)
    around = _surround(gradient, down - 1 + margin, right - 1 + margin)
    return _convolve(around, turned, groups, margin), (own,)


def _margin(maps: Shape, weight: tuple[int, ...]) -> int:
    """A row and a column around maps that would otherwise lie so far apart that all want the same lines of a cache."""
    return 1 if weight[1] > CACHE_WAYS and math.prod(maps[1:]) % CACHE_SPAN == 0 else 0


def _surround(maps: np.ndarray, above: int, before: int) -> np.ndarray:
    if not (above or before):
        return maps
    channels, height, width, count = maps.shape
    around = np.empty((channels, height + 2 * above, width + 2 * before, count), maps.dtype)
    loops.surround(maps, around)
    return around


def _convolve(maps: np.ndarray, weight: np.ndarray, groups: int, margin: int) -> np.ndarray:
    """Convolve what is inside the maps' margin."""
    (_, height, width, count), (channels, _, down, right) = maps.shape, weight.shape
    places = _places(maps.shape, weight.shape, groups, margin)
    kernels = np.zeros((channels, places.shape[1]), maps.dtype)
    kernels[:, : weight[0].size] = weight.reshape(channels, -1)
    made = np.empty((channels, height - 2 * margin - down + 1, width - 2 * margin - right + 1, count), maps.dtype)
    loops.convolve(maps, kernels, places, made)
    return made


@lru_cache(maxsize=256)
def _places(maps: Shape, weight: tuple[int, ...], groups: int, margin: int) -> np.ndarray:
    """Where in such flat maps the values of such a kernel meet the first pixel of the first image: (groups, T)."""
    (channels, height, width, count), (down, right) = maps, weight[2:]
    pixels = np.arange(channels * height * width).reshape(groups, -1, height, width)
    first = pixels[..., margin : margin + down, margin : margin + right]
    places = first.reshape(groups, -1) * count
    return np.pad(places, ((0, 0), (0, -places.shape[1] % loops.TAPS)), mode="edge")


def _normalisation_shape(layer: nn.BatchNorm2d, shape: Shape) -> Shape | None:
    usual = layer.training and layer.affine and layer.track_running_stats and layer.num_batches_tracked is not None
    return shape if usual and shape[0] == layer.num_features and math.prod(shape[1:]) > 1 else None


def _normalisation(layer: nn.BatchNorm2d, maps: np.ndarray) -> tuple[np.ndarray, Arrays]:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    made, mean, variance = np.empty_like(maps), np.empty_like(weight), np.empty_like(weight)
    loops.normalise(maps, weight, bias, layer.eps, made, mean, variance)
    layer.num_batches_tracked.add_(1)
    momentum = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
    count = maps.size // len(maps)
    for running, now in (layer.running_mean, mean), (layer.running_var, variance * (count / (count - 1))):
        values = running.numpy()
        values += momentum * (now - values)
    return made, (maps, weight, mean, 1 / np.sqrt(variance + maps.dtype.type(layer.eps)))


def _normalisation_gradient(layer, kept, gradient, needed) -> tuple[np.ndarray, Arrays]:
    maps, weight, mean, scale = kept
    own = np.empty_like(mean), np.empty_like(mean)
    loops.normalise_gradient(maps, weight, mean, scale, gradient, *own)
    return gradient, own


def _same_shape(layer: nn.Module, shape: Shape) -> Shape:
    return shape


def _rectification(layer: nn.ReLU, maps: np.ndarray) -> tuple[np.ndarray, Arrays]:
    loops.rectify(maps)
    return maps, (maps,)


def _rectification_gradient(layer, kept, gradient, needed) -> tuple[np.ndarray, Arrays]:
    loops.rectify_gradient(kept[0], gradient)
    return gradient, ()


def _pool_shape(layer: nn.MaxPool2d, shape: Shape) -> Shape | None:
    (channels, height, width, count), sizes = shape, (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    halves = sizes in ((2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))) and not layer.return_indices
    return (channels, height // 2, width // 2, count) if halves and height % 2 == width % 2 == 0 else None


def _pool(layer: nn.MaxPool2d, maps: np.ndarray) -> tuple[np.ndarray, Arrays]:
    channels, height, width, count = maps.shape
    made = np.empty((channels, height // 2, width // 2, count), maps.dtype)
    places = np.empty(made.shape, np.int8)
    loops.pool(maps, made, places)
    return made, (places,)


def _pool_gradient(layer, kept, gradient, needed) -> tuple[np.ndarray, Arrays]:
    channels, height, width, count = gradient.shape
    made = np.empty((channels, 2 * height, 2 * width, count), gradient.dtype)
    loops.pool_gradient(gradient, kept[0], made)
    return made, ()


def _dropout_shape(layer: nn.Dropout, shape: Shape) -> Shape | None:
    return shape if layer.training and layer.p < 1 else None


def _dropout(layer: nn.Dropout, maps: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """Of 16 random bits a value, not a float: four times fewer draws, and a rate exact to 1/65,536."""
    draws = torch.empty(-(-maps.size // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits, share = draws.view(torch.int16).numpy(), np.array(layer.p)  # uniform in ±2¹⁵
    return _drop(bits, share, maps), (bits, share)


def _dropout_gradient(layer, kept, gradient, needed) -> tuple[np.ndarray, Arrays]:
    return _drop(*kept, gradient), ()


def _drop(bits: np.ndarray, share: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """In place: of a ReLU before, which keeps these maps, no value that is dropped has a gradient either."""
    loops.drop(bits, round((share.item() - 0.5) * 2**16), 1 / (1 - share.item()), maps)
    return maps


WAYS = {
    nn.Conv2d: Way(_convolution_shape, _convolution, _convolution_gradient),
    nn.BatchNorm2d: Way(_normalisation_shape, _normalisation, _normalisation_gradient),
    nn.ReLU: Way(_same_shape, _rectification, _rectification_gradient),
    nn.MaxPool2d: Way(_pool_shape, _pool, _pool_gradient),
    nn.Dropout: Way(_dropout_shape, _dropout, _dropout_gradient),
}
