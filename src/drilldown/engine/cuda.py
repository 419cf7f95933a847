"""Layers with few channels on CUDA: torch's kernels for them keep a few of the GPU's 100 or so processors busy.

The forward methods here compute the same from other kernels of torch, in a fixed order of sums.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

MAX_CONV_INPUTS = 8  # with more input channels, cuDNN's gradient of the weights is as fast
MAX_NORM_CHANNELS = 16  # with more channels, cuDNN's batch normalization is as fast
MIN_NORM_VALUES = 2**15  # of a channel in a batch; with fewer, too
BLOCKS = 128  # blocks of threads that batch normalization is split into
WIDE = 128  # channels from which channels-last convolutions are faster, in a whole network


def is_wide(network: nn.Module) -> bool:
    """Whether a network computes faster with its tensors in channels-last format."""
    return any(isinstance(layer, nn.Conv2d) and layer.out_channels >= WIDE for layer in network.modules())


def has_few_inputs(conv: nn.Conv2d) -> bool:
    """Whether `FewInputsConv` takes a convolution."""
    plain = (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (0, 0), (1, 1), 1)
    return plain and conv.bias is None and conv.in_channels <= MAX_CONV_INPUTS


class FewInputsConv:
    """A forward method for a convolution with few input channels: the gradient of its weights is a matrix product."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv

    def __call__(self, input: Tensor) -> Tensor:  # the parameter's name is torch's
        if not self.conv.training:
            return nn.Conv2d.forward(self.conv, input)
        return _Conv.apply(input, self.conv.weight)  # type: ignore[no-any-return]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = conv2d_input(x.shape, weight, grad_out) if ctx.needs_input_grad[0] else None
        return grad_x, conv_weight_grad(x, grad_out, weight)


def conv_weight_grad(x: Tensor, grad_out: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weights (K, C, h, w) of a convolution without padding; x (N, C, ...)."""
    height, width = weight.shape[2:]
    taps = x.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, H, W, h, w)
    columns = taps.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)  # (N, C * h * w, H * W)
    products = grad_out.flatten(2) @ columns.transpose(1, 2)  # (N, K, C * h * w)
    return products.sum(0).reshape(weight.shape)


def has_few_channels(norm: nn.BatchNorm2d) -> bool:
    """Whether `SplitBatchNorm` takes a batch normalization."""
    return norm.affine and norm.track_running_stats and norm.num_features <= MAX_NORM_CHANNELS


class SplitBatchNorm:
    """A forward method for batch normalization with few channels: a block of threads for each of a channel's parts.

    torch has the kernels for SyncBatchNorm, where the parts lie on several devices.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.norm = norm

    def __call__(self, input: Tensor) -> Tensor:  # the parameter's name is torch's
        norm, (count, channels, height, width) = self.norm, input.shape
        parts = math.gcd(count, BLOCKS // channels)
        large = count * height * width >= MIN_NORM_VALUES
        if not (norm.training and norm.momentum is not None and parts > 1 and large):
            return nn.BatchNorm2d.forward(norm, input)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        statistics = norm.running_mean, norm.running_var, norm.momentum, norm.eps
        return _BatchNorm.apply(input.contiguous(), norm.weight, norm.bias, *statistics, parts)  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        parts: int,
    ) -> Tensor:
        mean, inv_std = (
            of_parts.view(parts, -1) for of_parts in torch.batch_norm_stats(split_channels(x, parts), eps)
        )  # (parts, C)
        values = torch.full((parts,), x.numel() // x.shape[1] // parts, dtype=mean.dtype, device=x.device)
        mean, inv_std = torch.batch_norm_gather_stats_with_counts(
            x, mean, inv_std, running_mean, running_var, momentum, eps, values
        )  # (C,)
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.parts = parts
        return torch.batch_norm_elemt(x, weight, bias, mean, inv_std, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        parts, grad_out = ctx.parts, grad_out.contiguous()
        # Of each part: the sums of grad and of grad * (x - mean).
        sums = torch.batch_norm_backward_reduce(
            split_channels(grad_out, parts),
            split_channels(x, parts),
            mean.repeat(parts),
            inv_std.repeat(parts),
            None,
            True,
            False,
            False,
        )[:2]
        grad_bias, centered = (of_parts.view(parts, -1).sum(0) for of_parts in sums)  # (C,)
        values = torch.full((1,), x.numel() // x.shape[1], dtype=torch.int32, device=x.device)
        grad_x = torch.batch_norm_backward_elemt(grad_out, x, mean, inv_std, weight, grad_bias, centered, values)
        return grad_x, centered * inv_std, grad_bias, None, None, None, None, None


def split_channels(x: Tensor, parts: int) -> Tensor:
    """View (N, C, H, W) as (N / parts, parts * C, H, W): each channel in as many channels as there are parts."""
    count, channels, height, width = x.shape
    return x.view(count // parts, parts * channels, height, width)
