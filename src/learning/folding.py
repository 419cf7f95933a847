"""Folded maps: a network's first layers, whose channels are few, computed with four times as many.

A map's 2×2 squares, row by row, each with its four pixels side by side, are (N, C, H/2, 2·W) of (N, C, H, W). Read as
the channels of one pixel, a square's are four times as many: they fill vector registers, and a 3×3 convolution is a 2×2
one. What goes pixel by pixel does not notice, and a pool of 2×2 is one of 1×4, after which the maps are usual ones.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_SIDE = 16  # of a large map
VECTOR = 16  # float32 values that a vector register holds
Way = Callable[[nn.Module, Tensor], Tensor]
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"  # they are to see usual maps


def can_be_folded(values: object) -> bool:
    """Whether these are large maps of even sides."""
    maps = isinstance(values, Tensor) and values.dim() == 4
    return maps and all(side >= SMALLEST_SIDE and side % 2 == 0 for side in values.shape[2:])


def folded_ways(layers: Sequence[nn.Module]) -> list[Way]:
    """How the first layers, up to the pool, compute on folded maps; empty where they cannot, or are no faster so."""
    ways = []
    for layer in layers:
        ways.append(_way(layer))
        wide = ways[-1] is _convolution and layer.out_channels >= VECTOR
        changes_input = len(ways) == 1 and getattr(layer, "inplace", False)  # folded, it would change a copy
        if ways[-1] is None or wide or changes_input or any(vars(layer)[hooks] for hooks in HOOKS):
            return []
        if ways[-1] is _pool:
            return ways if _convolution in ways else []
    return []


def compute_folded(layers: Sequence[nn.Module], ways: Sequence[Way], values: Tensor) -> Tensor:
    """What as many layers as there are ways, `folded_ways`, make of the maps (N, C, H, W)."""
    values = _fold(values)
    for layer, way in zip(layers, ways, strict=False):
        values = way(layer, values)
    return values


def _fold(values: Tensor) -> Tensor:
    count, channels, height, width = values.shape
    squares = values.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return maps_of(squares.reshape(-1, 2 * width * channels), (count, channels, height // 2, 2 * width))


def _convolution(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    (count, channels, height, width), made = maps.shape, layer.out_channels
    if channels != layer.in_channels:  # torch says what is wrong, of maps as they were
        return nn.Conv2d.forward(layer, maps.new_empty(count, channels, 2 * height, width // 2))
    kernel = layer.weight.reshape(-1, 9) @ FOLDING.to(layer.weight.dtype)
    kernel = kernel.view(made, channels, 4, 4, 2, 2).permute(2, 0, 4, 5, 3, 1).reshape(4 * made, 2, 2, 4 * channels)
    bias = None if layer.bias is None else layer.bias.repeat(4)
    squares = maps_of(rows_of(maps), (count, 4 * channels, height, width // 4))
    squares = F.conv2d(squares, kernel.permute(0, 3, 1, 2), bias)
    return maps_of(rows_of(squares), (count, made, height - 1, width - 4))


def _pool(layer: nn.MaxPool2d, maps: Tensor) -> Tensor:
    return F.max_pool2d(maps, (1, 4))


def _each_pixel(layer: nn.Module, maps: Tensor) -> Tensor:
    return layer(maps)


WAYS = {  # by kernel, stride, padding, dilation
    (nn.Conv2d, (3, 3), (1, 1), (0, 0), (1, 1)): _convolution,
    (nn.Conv2d, (1, 1), (1, 1), (0, 0), (1, 1)): _each_pixel,
    (nn.MaxPool2d, (2, 2), (2, 2), (0, 0), (1, 1)): _pool,
}


def _way(layer: nn.Module) -> Way | None:
    """How the layer computes on folded maps; None: it takes none."""
    if type(layer) in (nn.BatchNorm2d, nn.ReLU):
        return _each_pixel
    grouped = type(layer) is nn.Conv2d and layer.groups != 1
    special = type(layer) is nn.MaxPool2d and (layer.ceil_mode or layer.return_indices)
    if type(layer) not in (nn.Conv2d, nn.MaxPool2d) or grouped or special:
        return None
    sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    pairs = (tuple(size) if isinstance(size, (tuple, list)) else (size, size) for size in sizes)
    return WAYS.get((type(layer), *pairs))


def _folding() -> Tensor:
    """What makes the kernel of a convolution of folded maps from one of 3×3: (9, 4·4·2·2), of zeros and ones.

    Pixel p of a square of results sees a 4×4 field, its own square and the next ones; its kernel lies in it moved by p.
    The field is pixel q of square (down, right): the columns are p, q, down, right.
    """
    ones = torch.eye(9).view(9, 3, 3)
    fields = [F.pad(ones, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]  # (9, 4, 4)
    squares = torch.stack(fields, 1).view(9, 4, 2, 2, 2, 2)  # p, square and pixel down, square and pixel right
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(9, 64)


FOLDING = _folding()


def rows_of(maps: Tensor) -> Tensor:
    """(N·H, W·C) of (N, C, H, W): a view of channels-last maps, a copy of others."""
    count, channels, height, width = maps.shape
    return maps.permute(0, 2, 3, 1).reshape(count * height, width * channels)


def maps_of(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Channels-last maps of that shape, (N, C, H, W), of their rows: a view."""
    count, channels, height, width = shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)
