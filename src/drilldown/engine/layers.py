"""The kinds of layers that the kernels compute: one class for each kind."""

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from drilldown.engine import kernels
from drilldown.engine.pooling import is_max_pool_2x2
from drilldown.engine.support import unsupported_feature
from drilldown.engine.workspace import Allocator, Shape, Workspace

# Channels whose distance is a multiple of CACHE_STRIDE values compete for the same CACHE_WAYS lines of the cache.
CACHE_WAYS, CACHE_STRIDE = 16, 1024
Arrays = tuple[np.ndarray, ...]
Layer = TypeVar("Layer", bound=nn.Module)


class LayerOp(ABC, Generic[Layer]):
    """A layer, prepared for CHWN inputs of one shape. It may write into the arrays that it is given."""

    @staticmethod
    @abstractmethod
    def output_shape(layer: Layer, shape: Shape) -> Shape | None:
        """Return the shape of the output for an input of this shape; None if the layer is left to torch."""

    @abstractmethod
    def __init__(self, layer: Layer, input_shape: Shape, output_shape: Shape, workspace: Workspace): ...

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the output."""

    @abstractmethod
    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray | None, Arrays]:
        """Return the gradients of the input, or None if it needs none, and of the parameters in the layer's order.

        Args:
            grad: the gradient of the output of the last forward pass.
        """


class DirectConv:
    """A direct convolution for one shape of input, with zero padding.

    Args:
        weight: (groups, D, C, h, w), output and input channels of one group; its current values are read at each call.
        shape: of the input without padding.
        padding: rows and columns of zeros on each side.
    """

    def __init__(self, weight: np.ndarray, shape: Shape, padding: tuple[int, int], dtype: np.dtype[Any]):
        groups, out_channels, in_channels, kernel_height, kernel_width = weight.shape
        extra = _extra_padding(shape, in_channels)
        top, left = padding[0] + extra, padding[1] + extra
        channels, height, width, batch = shape
        self.padded_shape = channels, height + 2 * top, width + 2 * left, batch
        self.tap_offsets = _tap_offsets(self.padded_shape, weight.shape, extra)
        self.packed_weight = np.zeros((groups * out_channels, self.tap_offsets.shape[1]), dtype)
        taps = in_channels * kernel_height * kernel_width
        self._packed_view = self.packed_weight[:, :taps].reshape(weight.shape)
        self._weight, self._has_padding = weight, top > 0 or left > 0

    def pad(self, x: np.ndarray, allocate: Allocator) -> np.ndarray:
        """Return x with its padding, in an allocated array, or x itself if there is no padding."""
        if not self._has_padding:
            return x
        kernels.pad(x, padded := allocate())
        return padded

    def __call__(self, padded: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Compute the convolution of what `pad` returned into out, and return out."""
        self._packed_view[...] = self._weight
        kernels.conv(padded, self.packed_weight, self.tap_offsets, out)
        return out


def _extra_padding(shape: Shape, in_channels: int) -> int:
    """Return 1 if the channels would compete for the same cache lines; more padding moves them apart."""
    return 1 if in_channels > CACHE_WAYS and math.prod(shape[1:]) % CACHE_STRIDE == 0 else 0


def _tap_offsets(padded_shape: Shape, weight_shape: tuple[int, ...], extra: int) -> np.ndarray:
    """Return (groups, T): where in the flat padded input each tap reads its value for the first output pixel."""
    channels, height, width, batch = padded_shape
    groups, _, _, kernel_height, kernel_width = weight_shape
    pixels = np.arange(channels * height * width).reshape(groups, -1, height, width)
    window = pixels[..., extra : extra + kernel_height, extra : extra + kernel_width]
    offsets = window.reshape(groups, -1) * batch
    return np.pad(offsets, ((0, 0), (0, -offsets.shape[1] % kernels.TAP_GROUP)), mode="edge")


class Conv2dOp(LayerOp[nn.Conv2d]):
    @staticmethod
    def output_shape(layer: nn.Conv2d, shape: Shape) -> Shape | None:
        (channels, height, width, batch), (kernel_height, kernel_width) = shape, layer.kernel_size
        fits = channels == layer.in_channels and height >= kernel_height and width >= kernel_width
        if not fits or unsupported_feature(layer):
            return None
        return layer.out_channels, height - kernel_height + 1, width - kernel_width + 1, batch

    def __init__(self, layer: nn.Conv2d, input_shape: Shape, output_shape: Shape, workspace: Workspace):
        weight = layer.weight.detach().numpy()
        self.weight_shape = weight.shape
        out_channels, *kernel_shape = weight.shape  # (D, C / groups, h, w)
        grouped = weight.reshape(layer.groups, out_channels // layer.groups, *kernel_shape)
        # grad_x is a convolution of the padded grad_out, by flipped kernels with input and output channels swapped.
        flipped = grouped.swapaxes(1, 2)[..., ::-1, ::-1]
        self.conv = DirectConv(grouped, input_shape, (0, 0), workspace.dtype)
        padding = layer.kernel_size[0] - 1, layer.kernel_size[1] - 1
        self.grad_conv = DirectConv(flipped, output_shape, padding, workspace.dtype)
        self.allocate_padded = workspace.saved(self.conv.padded_shape)
        self.allocate_out = workspace.saved(output_shape)
        self.workspace, self.input_shape = workspace, input_shape
        self.row_sums = np.empty((output_shape[1], *self.conv.packed_weight.shape), workspace.dtype)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = self.conv.pad(x, self.allocate_padded)
        return self.conv(self.x, self.allocate_out())

    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray | None, Arrays]:
        grad_weight = np.empty(self.weight_shape, grad.dtype)
        flat_grad_weight = grad_weight.reshape(len(grad_weight), -1)
        kernels.conv_weight_grad(self.x, grad, self.conv.tap_offsets, self.row_sums, flat_grad_weight)
        if not needs_input_grad:
            return None, (grad_weight,)
        padded = self.grad_conv.pad(grad, lambda: self.workspace.scratch(self.grad_conv.padded_shape))
        return self.grad_conv(padded, self.workspace.scratch(self.input_shape)), (grad_weight,)


class BatchNorm2dOp(LayerOp[nn.BatchNorm2d]):
    """Batch normalization in training mode, and the ReLU after it if `relu`."""

    @staticmethod
    def output_shape(layer: nn.BatchNorm2d, shape: Shape) -> Shape | None:
        has_statistics = layer.track_running_stats and layer.num_batches_tracked is not None
        if not (layer.training and layer.affine and has_statistics):
            return None
        tensors = layer.weight, layer.running_mean, layer.running_var
        same_dtype = len({tensor.dtype for tensor in tensors if tensor is not None}) == 1
        return shape if same_dtype and shape[0] == layer.num_features and math.prod(shape[1:]) > 1 else None

    def __init__(self, layer: nn.BatchNorm2d, input_shape: Shape, output_shape: Shape, workspace: Workspace):
        self.layer, self.allocate_out, self.relu = layer, workspace.saved(output_shape), False
        self.weight, self.bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        buffers = layer.running_mean, layer.running_var, layer.num_batches_tracked
        self.running_mean, self.running_var, self.num_batches = (
            buffer.numpy()
            for buffer in buffers
            if buffer is not None  # none is None, as output_shape has checked
        )
        self.mean, self.inv_std = np.empty_like(self.weight), np.empty_like(self.weight)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, self.out = x, self.allocate_out()
        self.num_batches += 1
        # momentum=None stands for a cumulative average, as in torch.
        momentum = 1 / int(self.num_batches) if self.layer.momentum is None else float(self.layer.momentum)
        kernels.batch_norm(
            x,
            self.weight,
            self.bias,
            float(self.layer.eps),
            momentum,
            self.relu,
            self.running_mean,
            self.running_var,
            self.out,
            self.mean,
            self.inv_std,
        )
        return self.out

    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray, Arrays]:
        grad_weight, grad_bias = np.empty_like(self.mean), np.empty_like(self.mean)
        kernels.batch_norm_grad(
            self.x, self.out, self.relu, self.weight, self.mean, self.inv_std, grad, grad_weight, grad_bias
        )
        return grad, (grad_weight, grad_bias)


class ReLUOp(LayerOp[nn.ReLU]):
    def __init__(self, layer: nn.ReLU, input_shape: Shape, output_shape: Shape, workspace: Workspace):
        pass

    @staticmethod
    def output_shape(layer: nn.ReLU, shape: Shape) -> Shape:
        return shape

    def forward(self, x: np.ndarray) -> np.ndarray:
        kernels.relu(x)
        self.out = x
        return x

    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray, Arrays]:
        kernels.relu_grad(self.out, grad)
        return grad, ()


class MaxPool2dOp(LayerOp[nn.MaxPool2d]):
    @staticmethod
    def output_shape(layer: nn.MaxPool2d, shape: Shape) -> Shape | None:
        channels, height, width, batch = shape
        fits = is_max_pool_2x2(layer) and height % 2 == width % 2 == 0
        return (channels, height // 2, width // 2, batch) if fits else None

    def __init__(self, layer: nn.MaxPool2d, input_shape: Shape, output_shape: Shape, workspace: Workspace):
        self.allocate_out, self.workspace, self.input_shape = workspace.saved(output_shape), workspace, input_shape
        self.argmax = np.empty(output_shape, np.int8)

    def forward(self, x: np.ndarray) -> np.ndarray:
        kernels.max_pool(x, out := self.allocate_out(), self.argmax)
        return out

    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray, Arrays]:
        kernels.max_pool_grad(grad, self.argmax, grad_x := self.workspace.scratch(self.input_shape))
        return grad_x, ()


class DropoutOp(LayerOp[nn.Dropout]):
    """Dropout by 16 random bits for each value: four values from each 64-bit draw, a rate exact to 1/65,536."""

    @staticmethod
    def output_shape(layer: nn.Dropout, shape: Shape) -> Shape | None:
        return shape if layer.training and layer.p < 1 else None

    def __init__(self, layer: nn.Dropout, input_shape: Shape, output_shape: Shape, workspace: Workspace):
        size = math.prod(input_shape)
        self.layer, self.draws = layer, np.empty(-(-size // 4), np.int64)
        self.bits = self.draws.view(np.int16)[:size].reshape(*input_shape[:2], -1)  # uniform in [-2¹⁵, 2¹⁵)

    def forward(self, x: np.ndarray) -> np.ndarray:
        torch.from_numpy(self.draws).random_(-(2**63), None)  # all 64 bits
        self.p = self.layer.p
        return self._apply(x)

    def backward(self, grad: np.ndarray, needs_input_grad: bool) -> tuple[np.ndarray, Arrays]:
        return self._apply(grad), ()

    def _apply(self, x: np.ndarray) -> np.ndarray:
        """Drop values of x in place.

        This also changes the output that a ReLU before this layer saved. That is correct: the gradient of a dropped
        value is zero.
        """
        kernels.dropout(self.bits, round((self.p - 0.5) * 2**16), 1 / (1 - self.p), x)
        return x


LAYER_OPS: dict[type[nn.Module], type[LayerOp[Any]]] = {
    nn.Conv2d: Conv2dOp,
    nn.BatchNorm2d: BatchNorm2dOp,
    nn.ReLU: ReLUOp,
    nn.MaxPool2d: MaxPool2dOp,
    nn.Dropout: DropoutOp,
}
