"""Plans: the layers of a segment, prepared for inputs of one shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drilldown.engine.layers import LAYER_OPS, BatchNorm2dOp, LayerOp, ReLUOp
from drilldown.engine.workspace import Shape, Workspace


class Plan:
    """The forward and backward pass of a segment for one input shape, with the arrays that it reuses.

    A forward pass overwrites what the pass before it saved for backward. `num_forwards` tells which pass is saved.

    Args:
        layers: of kinds in LAYER_OPS; each takes the output of the layer before it.
        x: (N, C, H, W), an example of the input.
        requires_grad: whether backward may be called.
    """

    def __init__(self, layers: Sequence[nn.Module], x: Tensor, requires_grad: bool):
        shape, dtype = chwn(x), torch.empty(0, dtype=x.dtype).numpy().dtype
        self.requires_grad, self.num_forwards = requires_grad, 0
        self._input, self._workspace = np.empty(shape, dtype), Workspace(dtype, requires_grad)
        self._ops: list[LayerOp[Any]] = []
        for layer in layers:
            op_type = LAYER_OPS[type(layer)]
            output_shape = op_type.output_shape(layer, shape)
            assert output_shape is not None
            previous = self._ops[-1] if self._ops else None
            if op_type is ReLUOp and isinstance(previous, BatchNorm2dOp):
                previous.relu = True
            else:
                self._ops.append(op_type(layer, shape, output_shape, self._workspace))
            shape = output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, C', H', W') for the input (N, C, H, W), in memory of its own."""
        self.num_forwards += 1
        array, batch = self._input, len(x)
        # A transposed copy of a matrix is torch's fastest way from NCHW to CHWN.
        torch.from_numpy(array).view(-1, batch).copy_(x.detach().reshape(batch, -1).t())
        for op in self._ops:
            array = op.forward(array)
        return torch.from_numpy(array.transpose(3, 0, 1, 2)).clone()

    def backward(self, grad_out: Tensor, needs_input_grad: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the input, if it needs one, and of the parameters, in the order of the layers."""
        grad_out = grad_out.permute(1, 2, 3, 0)
        grad: np.ndarray | None = self._workspace.scratch(grad_out.shape)
        torch.from_numpy(grad).copy_(grad_out)
        param_grads: list[Tensor] = []
        for index, op in reversed(list(enumerate(self._ops))):
            assert grad is not None  # only the first op may leave it out
            grad, grads = op.backward(grad, needs_input_grad or index > 0)
            param_grads[:0] = map(torch.from_numpy, grads)
        grad_x = None if grad is None else torch.from_numpy(grad.transpose(3, 0, 1, 2)).clone()
        return grad_x, param_grads


def chwn(x: Tensor) -> Shape:
    """Return the CHWN shape of an NCHW tensor."""
    batch, channels, height, width = x.shape
    return channels, height, width, batch
