"""The same layers, computed faster on a CPU: memory layouts for small networks, and cheaper random bits for dropout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

# Measured on networks with few channels: convolutions and pooling are faster when a pixel's channels lie side by
# side, batch normalisation when each channel lies by itself; on maps below 16×16 the change costs more than it saves.
SMALLEST_SIDE = 16


@contextmanager
def fast_kernels(network: nn.Module) -> Iterator[None]:
    """While this lasts, the network's layers compute in their fastest way, on a CPU; what they compute is the same.

    A network on another device is left as it is.
    """
    with ExitStack() as undo:
        if all(parameter.device.type == "cpu" for parameter in network.parameters()):
            for layer in network.modules():
                if compute := FAST.get(type(layer)):
                    layer.forward = partial(compute, layer)
                    undo.callback(delattr, layer, "forward")
        yield


def _convolution(layer: nn.Conv2d, values: Tensor) -> Tensor:
    return nn.Conv2d.forward(layer, _channels_last(values))


def _max_pool(layer: nn.MaxPool2d, values: Tensor) -> Tensor:
    return nn.MaxPool2d.forward(layer, _channels_last(values))


def _batch_norm(layer: nn.BatchNorm2d, values: Tensor) -> Tensor:
    if not values.is_contiguous():
        values = _ToLayout.apply(values, torch.contiguous_format)
    return nn.BatchNorm2d.forward(layer, values)


def _channels_last(values: Tensor) -> Tensor:
    large = values.shape[-1] >= SMALLEST_SIDE
    if large and not values.is_contiguous(memory_format=torch.channels_last):
        return _ToLayout.apply(values, torch.channels_last)
    return values


class _ToLayout(torch.autograd.Function):
    """A change of layout that is undone for the gradient: the layer before gets it in the layout it computed in."""

    @staticmethod
    def forward(ctx, values: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.layout_before = torch.contiguous_format if values.is_contiguous() else torch.channels_last
        return values.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous(memory_format=ctx.layout_before), None


def _dropout(layer: nn.Dropout, values: Tensor) -> Tensor:
    """Dropout with 16 random bits a value in place of a float: four times fewer draws, its rate exact to 1/65,536."""
    if not layer.training:
        return values
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits = draws.view(torch.int16)[: values.numel()].view_as(values)  # uniform in ±2¹⁵
    keep = bits >= round((layer.p - 0.5) * 2**16)
    return values * (keep * (1 / (1 - layer.p)))


FAST = {nn.Conv2d: _convolution, nn.MaxPool2d: _max_pool, nn.BatchNorm2d: _batch_norm, nn.Dropout: _dropout}
