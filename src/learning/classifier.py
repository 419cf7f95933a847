"""The model: raw pixels in, class probabilities out."""

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A step's network with the normalisation of its training pixels inside.

    It is trained, measured, registered and served as one, so that nobody has to repeat how its input was prepared.
    """

    def __init__(self, network: nn.Module, mean: float, std: float):
        """`network`: (N, 1, 28, 28) to logits (N, 10); mean and std: of the pixels on a scale from 0 to 1."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean * 255))
        self.register_buffer("std", torch.tensor(std * 255))

    def logits(self, images: Tensor) -> Tensor:
        """Pixels from 0 to 255, of any type, (N, 28, 28), to logits (N, 10)."""
        return self.network((images.unsqueeze(1) - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 (N, 28, 28) to probabilities float32 (N, 10)."""
        return self.logits(images).softmax(1)

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())
