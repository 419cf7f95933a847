"""The exponential moving average of a network's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(AveragedModel):
    """torch's AveragedModel with an update that a CUDA graph can hold.

    torch's own update reads its counter, which would stop the capture. Only the first update needs the counter, and
    that one is never captured. In a graph the counter stands still.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start an average that keeps the share `decay` of itself in each update."""
        self._average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=self._average)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Copy the weights at the first call, average them at the later ones; buffers are copied."""
        if self.n_averaged == 0:
            super().update_parameters(model)
            return
        self._average(list(self.parameters()), list(model.parameters()), self.n_averaged)
        for floating in (True, False):  # one kernel for each type
            own, other = (
                [buffer for buffer in module.buffers() if buffer.is_floating_point() is floating]
                for module in (self.module, model)
            )
            if own:
                torch._foreach_copy_(own, other)
        self.n_averaged += 1
