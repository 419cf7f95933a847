"""The same layers, computed faster on a CPU: memory layouts for small networks, and cheaper random bits for dropout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from src.learning.folding import SMALLEST_SIDE, VECTOR, can_be_folded, compute_folded, folded_ways, maps_of, rows_of

# Measured on networks with few channels. Large maps are fastest with a pixel's channels side by side, and those with
# the fewest channels folded; on maps below 16×16 a change of layout costs more than it saves. Torch's batch
# normalisation likes that layout when the channels fill whole vector registers; otherwise it wants each channel by
# itself, and on large maps the one below is twice as fast.


@contextmanager
def fast_kernels(network: nn.Module) -> Iterator[None]:
    """While this lasts, the network's layers compute in their fastest way, on a CPU; what they compute is the same.

    A network on another device is left as it is. Copies of the network are made before or after, not inside. Hooks of
    a layer see the maps that it sees otherwise; hooks of all modules at once may see others, or miss a layer.
    """
    with ExitStack() as undo:
        if all(parameter.device.type == "cpu" for parameter in network.parameters()):
            for layer in network.modules():
                if (compute := FAST.get(type(layer))) and "forward" not in vars(layer):
                    layer.forward = partial(compute, layer)
                    undo.callback(delattr, layer, "forward")
        yield


def _sequence(sequence: nn.Sequential, input: object) -> object:  # its name is torch's
    layers = list(sequence)
    ways = folded_ways(layers) if can_be_folded(input) else []
    if ways and all(map(_is_torchs, layers[: len(ways)])):
        input, layers = compute_folded(layers, ways, input), layers[len(ways) :]
    for layer in layers:
        input = layer(input)
    return input


def _is_torchs(layer: nn.Module) -> bool:
    """Whether nobody but `fast_kernels` has given the layer a forward of its own."""
    forward = vars(layer).get("forward")
    return forward is None or (isinstance(forward, partial) and forward.func is FAST.get(type(layer)))


def _convolution(layer: nn.Conv2d, values: Tensor) -> Tensor:
    return nn.Conv2d.forward(layer, _channels_last(values) if _large(values) else values)


def _max_pool(layer: nn.MaxPool2d, values: Tensor) -> Tensor:
    return nn.MaxPool2d.forward(layer, _channels_last(values) if _large(values) else values)


def _batch_norm(layer: nn.BatchNorm2d, values: Tensor) -> Tensor:
    if values.dim() != 4 or values.shape[1] != layer.num_features:
        return nn.BatchNorm2d.forward(layer, values)  # which says what is wrong
    if layer.num_features % VECTOR == 0 or not layer.training:
        values = _channels_last(values)
    elif _large(values) and _usual(layer, values):
        layer.num_batches_tracked += 1
        statistics = layer.running_mean, layer.running_var, layer.momentum
        rows = _BatchNormOfRows.apply(rows_of(values), layer.weight, layer.bias, *statistics, layer.eps)
        return maps_of(rows, values.shape)
    elif not values.is_contiguous():
        values = _ChannelsApart.apply(values)
    return nn.BatchNorm2d.forward(layer, values)


def _usual(layer: nn.BatchNorm2d, values: Tensor) -> bool:
    tracked = layer.track_running_stats and layer.num_batches_tracked is not None and layer.momentum is not None
    return layer.affine and tracked and values.dtype == layer.weight.dtype and values.numel() > 0


def _large(values: Tensor) -> bool:
    return values.dim() == 4 and values.shape[-1] >= SMALLEST_SIDE


def _channels_last(values: Tensor) -> Tensor:
    # `contiguous(memory_format=…)` would leave one channel as it is, and what follows would not be channels-last.
    return values if values.stride(1) == 1 else maps_of(rows_of(values), values.shape)


class _ChannelsApart(torch.autograd.Function):
    """A change of layout that is undone for the gradient: the layer before gets it in the layout it computed in."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values.contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


class _BatchNormOfRows(torch.autograd.Function):
    """Batch normalisation of channels-last maps, a row of them as one long vector: (N·H, W·C) of (N, C, H, W).

    The formulas are those of Ioffe and Szegedy, "Batch Normalization" (2015), section 3.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias, running_mean, running_var, momentum, eps) -> Tensor:
        mean = _channel_means(rows, len(weight))
        centred = rows - _row_of(mean, rows)
        variance = _channel_means(centred.square(), len(weight))
        count = rows.numel() // len(weight)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, weight, scale)
        return torch.addcmul(_row_of(bias, rows), centred, _row_of(scale * weight, rows))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight, scale = ctx.saved_tensors
        count = gradient.numel() // len(weight)
        mean = _channel_means(gradient, len(weight))
        mean_product = _channel_means(gradient * centred, len(weight)) * scale  # with the normalised values
        slope = scale * weight
        change = torch.addcmul(_row_of(-slope * mean, gradient), gradient, _row_of(slope, gradient))
        change.addcmul_(centred, _row_of(-slope * scale * mean_product, gradient))
        return change, mean_product * count, mean * count, None, None, None, None


def _channel_means(rows: Tensor, channels: int) -> Tensor:
    return rows.mean(0).view(-1, channels).mean(0)


def _row_of(each_channel: Tensor, rows: Tensor) -> Tensor:
    return each_channel.expand(rows.shape[1] // len(each_channel), -1).reshape(-1)


def _dropout(layer: nn.Dropout, values: Tensor) -> Tensor:
    """Dropout with 16 random bits a value in place of a float: four times fewer draws, its rate exact to 1/65,536."""
    threshold = round((layer.p - 0.5) * 2**16)
    if not layer.training or threshold == 2**15:
        return nn.Dropout.forward(layer, values)
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits = torch.empty_like(values, dtype=torch.int16)  # uniform in ±2¹⁵, in the values' own layout
    bits = draws.view(torch.int16).as_strided(bits.shape, bits.stride())
    keep = bits >= threshold
    return values * (keep * (1 / (1 - layer.p)))


FAST = {
    nn.Sequential: _sequence,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.Dropout: _dropout,
}
