"""One update of the weights, as a function of tensors: called as it is, or captured as a CUDA graph."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from drilldown.errors import DivergedError
from drilldown.learning.average import WeightAverage
from drilldown.learning.classifier import Classifier
from drilldown.learning.evaluate import percent


class Update:
    """Forward, loss, backward, optimizer, average and running figures for one batch.

    Everything that differs from update to update comes in through tensors, and every result stays in tensors that are
    written in place. So a CUDA graph of one call can be replayed for all the others.

    Attributes:
        learning_rate: of the next update, (); set it in place.
        losses: of each update of this epoch, (updates,).
        correct: number of images of this epoch that were classified correctly before the update with them, ().
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: Optimizer,
        average: WeightAverage | None,
        label_smoothing: float,
        epoch_updates: int,
    ) -> None:
        self.classifier, self.optimizer, self.average = classifier, optimizer, average
        self.label_smoothing = label_smoothing
        device, dtype = classifier.mean.device, next(classifier.parameters()).dtype
        # The optimizer's kernel reads float32 on CUDA. On a CPU, float64 is the schedule's number itself.
        lr_dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.learning_rate = torch.zeros((), dtype=lr_dtype, device=device)
        self.losses = torch.zeros(epoch_updates, dtype=dtype, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)  # of the next loss

    def start_epoch(self) -> None:
        """Set the running figures to zero."""
        self.correct.zero_()
        self._position.zero_()

    def __call__(self, pixels: Tensor, digits: Tensor, average: bool) -> None:
        """Update the weights, and their average if `average` is true; pixels float (B, 28, 28), digits int64 (B,)."""
        logits = self.classifier.logits(pixels)  # (B, 10)
        loss = F.cross_entropy(logits, digits, label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self._step()
        if self.average is not None and average:
            self.average.update_parameters(self.classifier)
        self.losses.index_copy_(0, self._position, loss.detach().reshape(1))
        self._position += 1
        self.correct += (logits.detach().argmax(1) == digits).sum()

    def _step(self) -> None:
        """Step with the learning rate in the tensor: the scheduler's own is a number, which a graph would keep."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def figures(self, epoch: int, updates: int, images: int) -> tuple[float, float]:
        """Return the mean loss and the accuracy in percent of the epoch's updates so far.

        Raises DivergedError, with epoch and update, when a loss is not finite.
        """
        losses = self.losses[:updates]
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise DivergedError(f"training diverged: the loss of epoch {epoch}, update {first + 1} is {losses[first]}")
        return losses.mean().item(), percent(self.correct, images)
