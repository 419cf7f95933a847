"""The baseline: training as in the study's notebook, with a DataLoader and transforms image by image.

Written for this comparison from the description of the study's step 4; it contains no code of the study.
"""

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from drilldown.learning.data import Dataset


class StudyNetwork(nn.Module):
    """The study's fourth network, 9,300 parameters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),  # (N, 4, 26, 26)
            nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),  # (N, 8, 24, 24)
            nn.Conv2d(8, 16, 1, bias=False),  # (N, 16, 24, 24)
            nn.MaxPool2d(2),  # (N, 16, 12, 12)
            nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.15),  # (N, 16, 10, 10)
            nn.Conv2d(16, 16, 1, bias=False),  # (N, 16, 10, 10)
            nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.15),  # (N, 16, 8, 8)
            nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),  # (N, 16, 6, 6)
            nn.Conv2d(16, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(),  # (N, 10, 4, 4)
            nn.AvgPool2d(4),  # (N, 10, 1, 1)
            nn.Conv2d(10, 10, 1, bias=False),  # (N, 10, 1, 1)
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # (N, 10) logits


class TransformedImages(torch.utils.data.Dataset):
    """Training images as PIL images, each transformed on access."""

    def __init__(self, dataset: Dataset, rotation: float):
        self.images, self.labels = dataset.train_images.numpy(), dataset.train_labels.tolist()
        mean, std = dataset.moments()
        self.transform = transforms.Compose(
            [transforms.RandomRotation(rotation), transforms.ToTensor(), transforms.Normalize((mean,), (std,))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the study."""
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: TransformedImages,
    batch_size: int,
    workers: int = 0,
) -> float:
    """Train one epoch and return its accuracy in percent; `workers` is the number of processes that load images."""
    network.train()
    correct = 0
    context = "fork" if workers else None  # the default on the notebook's Linux
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, multiprocessing_context=context)
    for batch, labels in loader:
        optimizer.zero_grad()
        log_probabilities = F.log_softmax(network(batch), dim=1)
        loss = F.nll_loss(log_probabilities, labels)
        loss.backward()
        optimizer.step()
        loss.item()  # the notebook shows it after every batch
        correct += log_probabilities.argmax(1).eq(labels).sum().item()
    return 100 * correct / len(images)
