"""The model: raw pixels in, class probabilities out."""

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A step's network that normalizes its input itself.

    Training, evaluation, registry and server use it as one, so that no caller has to know how pixels are normalized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        """Take a network, (N, 1, 28, 28) to logits (N, 10), and the moments of the pixels on a scale from 0 to 1."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean * 255))
        self.register_buffer("std", torch.tensor(std * 255))

    def logits(self, images: Tensor) -> Tensor:
        """Map pixels from 0 to 255, of any type, (N, 28, 28), to logits (N, 10)."""
        logits: Tensor = self.network((images.unsqueeze(1) - self.mean) / self.std)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels uint8 (N, 28, 28) to probabilities float32 (N, 10)."""
        return self.logits(images).softmax(1)

    @property
    def num_parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())
