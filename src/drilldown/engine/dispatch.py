"""Dispatch of the layers of an nn.Sequential: fused segments for the kernels, and the other layers for torch."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from drilldown.engine.layers import LAYER_OPS
from drilldown.engine.plan import Plan, chwn
from drilldown.engine.pooling import EvalMaxPool
from drilldown.engine.support import DTYPES

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
Layers = tuple[nn.Module, ...]


class FusedSequential:
    """A forward method for an nn.Sequential: in training mode, its supported segments are computed by plans."""

    def __init__(self, sequential: nn.Sequential):
        self._sequential = sequential
        self._segments: dict[tuple[Any, ...], tuple[Layers, Layers]] = {}
        self._idle_plans: defaultdict[tuple[Any, ...], list[Plan]] = defaultdict(list)  # that no backward needs

    def __call__(self, input: Any) -> Any:  # the parameter's name is torch's
        if not self._sequential.training:
            return nn.Sequential.forward(self._sequential, input)  # type: ignore[no-untyped-call]
        layers = tuple(self._sequential)
        while layers:
            if segment := self._segment(layers, input):
                layers = layers[len(segment) :]
                parameters = [parameter for layer in segment for parameter in _own(layer._parameters)]
                input = FusedSegment.apply(input, *self._plan(segment, input, parameters), *parameters)
            else:
                input, layers = layers[0](input), layers[1:]
        return input

    def _segment(self, layers: Layers, x: object) -> Layers:
        """Return the result of `find_segment` from a cache: finding one takes longer than some layers compute."""
        if not isinstance(x, Tensor):
            return ()
        key = x.shape, x.dtype, *((id(layer), layer.training, _is_observed(layer)) for layer in layers)
        if key not in self._segments:
            self._segments[key] = find_segment(layers, x), layers  # this reference keeps the ids from being reused
        return self._segments[key][0]

    def _plan(self, segment: Layers, x: Tensor, parameters: list[Tensor]) -> tuple[Plan, list[Plan]]:
        """Return a plan, and the list that it returns to when no backward needs it any more."""
        requires_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
        buffers = [buffer for layer in segment for buffer in _own(layer._buffers)]
        addresses = [tensor.data_ptr() for tensor in (*parameters, *buffers)]  # plans hold views of this memory
        idle = self._idle_plans[*map(id, segment), *addresses, x.shape, x.dtype, requires_grad]
        return idle.pop() if idle else Plan(segment, x, requires_grad), idle


def find_segment(layers: Layers, x: Tensor) -> Layers:
    """Return the first layers, up to one that the kernels do not take; none if no convolution is among them."""
    if x.dim() != 4 or x.dtype not in DTYPES or 0 in x.shape:
        return ()
    shape, segment = chwn(x), list[nn.Module]()
    for layer in layers:
        changes_input = not segment and getattr(layer, "inplace", False)  # a segment computes on a copy of its input
        if type(layer) not in LAYER_OPS or changes_input or _is_observed(layer):
            break
        if any(parameter.dtype != x.dtype for parameter in _own(layer._parameters)):
            break
        output_shape = LAYER_OPS[type(layer)].output_shape(layer, shape)
        if output_shape is None:
            break
        shape = output_shape
        segment.append(layer)
    return tuple(segment) if any(isinstance(layer, nn.Conv2d) for layer in segment) else ()


def _own(tensors: dict[str, Any]) -> list[Tensor]:
    """Return a layer's own parameters or buffers; `layer.parameters()` searches for child layers, which is slow."""
    return [tensor for tensor in tensors.values() if tensor is not None]


def _is_observed(layer: nn.Module) -> bool:
    """Whether a hook or a forward method that somebody else has replaced must see the layer's input and output."""
    attributes = vars(layer)
    forward = attributes.get("forward")
    return (forward is not None and type(forward) is not EvalMaxPool) or any(map(attributes.get, HOOKS))


class FusedSegment(torch.autograd.Function):
    """The layers of a segment, as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, idle_plans: list[Plan], *parameters: Tensor) -> Tensor:
        out = plan.forward(x)
        ctx.plan, ctx.idle_plans, ctx.num_forwards = plan, idle_plans, plan.num_forwards
        ctx.save_for_backward(*parameters)  # so that backward raises if they were changed, or already freed
        if not plan.requires_grad:
            idle_plans.append(plan)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        plan, _ = ctx.plan, ctx.saved_tensors
        if plan.num_forwards != ctx.num_forwards:
            raise RuntimeError("a later forward pass has overwritten the graph that an earlier backward retained")
        grad_x, param_grads = plan.backward(grad_out, ctx.needs_input_grad[0])
        if plan not in ctx.idle_plans:  # it is there already in a second backward of a retained graph
            ctx.idle_plans.append(plan)
        return grad_x, None, None, *param_grads
