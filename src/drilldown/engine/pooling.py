"""2×2 max pools for evaluation, faster on a CPU than torch's. The maximum is exact, so the values are the same."""

import torch
from torch import Tensor, nn


def is_max_pool_2x2(pool: nn.MaxPool2d) -> bool:
    """Whether a pool takes 2×2 windows with stride 2 and leaves out a last odd row or column."""
    sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    return sizes in ((2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))) and not (pool.return_indices or pool.ceil_mode)


def max_pool_2x2(x: Tensor) -> Tensor:
    """Return the maximum of each 2×2 window: (..., H, W) to (..., H // 2, W // 2)."""
    height, width = x.shape[-2:]
    rows = torch.maximum(x[..., 0 : height - 1 : 2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., 0 : width - 1 : 2], rows[..., 1::2])


class EvalMaxPool:
    """A forward method for a 2×2 max pool: `max_pool_2x2` in evaluation mode, torch's own in training mode.

    Where a gradient is needed it is torch's too: `torch.maximum` would share it between equal values.
    """

    def __init__(self, pool: nn.MaxPool2d):
        self.pool = pool

    def __call__(self, input: Tensor) -> Tensor:  # the parameter's name is torch's
        if self.pool.training or (torch.is_grad_enabled() and input.requires_grad):
            return nn.MaxPool2d.forward(self.pool, input)  # type: ignore[no-any-return]
        return max_pool_2x2(input)
