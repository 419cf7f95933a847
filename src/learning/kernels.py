"""A small network's layers, computed faster on a CPU: whole stretches of them at once, by loops on maps batch last."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numba
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from src.learning.loading import load_loops
from src.learning.stages import STAGES, Plan, is_plain

DTYPES = {torch.float32, torch.float64}
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


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
            threads = torch.get_num_threads()  # asked before Numba starts its own, which changes torch's number
            undo.callback(torch.set_num_threads, threads)
            undo.callback(numba.set_num_threads, numba.get_num_threads())
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            torch.set_num_threads(1)
            for dtype in {parameter.dtype for parameter in network.parameters()} & DTYPES:
                load_loops(dtype)
            for layer in network.modules():
                if type(layer) is nn.Sequential and "forward" not in vars(layer):
                    layer.forward = _Sequence(layer)
                    undo.callback(delattr, layer, "forward")
        yield


def _is_small(network: nn.Module) -> bool:
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return on_cpu and bool(convolutions) and all(map(is_plain, convolutions))


class _Sequence:
    """How an nn.Sequential computes meanwhile."""

    def __init__(self, layers: nn.Sequential):
        self.layers = layers
        self.stretches: dict[tuple, tuple[list[nn.Module], tuple[nn.Module, ...]]] = {}
        self.idle: dict[tuple, list[Plan]] = defaultdict(list)  # plans that no backward waits for

    def __call__(self, input: object) -> object:  # its name is torch's
        layers = list(self.layers)
        while layers:
            if stretch := self._stretch(layers, input):
                layers = layers[len(stretch) :]
                parameters = [parameter for layer in stretch for parameter in _own(layer._parameters)]
                input = _Stretch.apply(input, *self._plan(stretch, input, parameters), *parameters)
            else:
                input = layers.pop(0)(input)
        return input

    def _stretch(self, layers: list[nn.Module], values: object) -> list[nn.Module]:
        """What `_find_stretch` finds, kept with what it depends on: finding takes longer than some layers compute."""
        if not isinstance(values, Tensor):
            return []
        key = values.shape, values.dtype, *map(_state, layers)
        if key not in self.stretches:
            self.stretches[key] = _find_stretch(layers, values), tuple(layers)  # so that no other gets their ids
        return self.stretches[key][0]

    def _plan(
        self, stretch: list[nn.Module], values: Tensor, parameters: list[nn.Parameter]
    ) -> tuple[Plan, list[Plan]]:
        """A plan, and where it goes when no backward waits for it any more."""
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (values, *parameters))
        buffers = [buffer for layer in stretch for buffer in _own(layer._buffers)]
        places = [tensor.data_ptr() for tensor in (*parameters, *buffers)]
        idle = self.idle[*map(id, stretch), *places, values.shape, values.dtype, learns]
        return idle.pop() if idle else Plan(stretch, values, learns), idle


def _own(tensors: dict[str, Tensor | None]) -> list[Tensor]:
    """A layer's own parameters or buffers: `layer.parameters()` looks for layers within, which takes much longer."""
    return [tensor for tensor in tensors.values() if tensor is not None]


def _state(layer: nn.Module) -> tuple[int, bool, bool]:
    """What may change from pass to pass: the layer, its mode, and whether something else is to see what it computes."""
    own = vars(layer)
    return id(layer), own["training"], "forward" in own or any(map(own.get, HOOKS))


def _find_stretch(layers: list[nn.Module], values: Tensor) -> list[nn.Module]:
    """The first layers, up to one that the loops cannot take."""
    if values.dim() != 4 or values.dtype not in DTYPES:
        return []
    count, *others = values.shape
    shape, stretch = (*others, count), []
    for layer in layers:
        *_, watched = _state(layer)
        changes_input = not stretch and getattr(layer, "inplace", False)  # of maps batch last it would change a copy
        if type(layer) not in STAGES or changes_input or watched or 0 in shape:
            break
        alike = all(parameter.dtype == values.dtype for parameter in _own(layer._parameters))
        shape = STAGES[type(layer)].shape(layer, shape) if alike else None
        if shape is None:
            break
        stretch.append(layer)
    return stretch if any(isinstance(layer, nn.Conv2d) for layer in stretch) else []


class _Stretch(torch.autograd.Function):
    """Several layers, one after the other, by a plan."""

    @staticmethod
    def forward(ctx, values: Tensor, plan: Plan, idle: list[Plan], *parameters: Tensor) -> Tensor:
        made = plan.forward(values)
        ctx.plan, ctx.idle, ctx.passes = plan, idle, plan.passes
        ctx.save_for_backward(*parameters)  # torch raises when they were changed, or freed, before backward
        if not plan.memory.learns:
            idle.append(plan)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, _ = ctx.plan, ctx.saved_tensors
        if plan.passes != ctx.passes:
            raise RuntimeError("backward after another pass forward has overwritten what an earlier backward retained")
        change, gradients = plan.backward(gradient, ctx.needs_input_grad[0])
        if plan not in ctx.idle:  # it is there when this is a second backward, of what was retained
            ctx.idle.append(plan)
        return change, None, None, *gradients
