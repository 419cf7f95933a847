"""The study's own way to train, as the baseline: a DataLoader, transforms image by image, a look at every batch's loss.

Written anew after the description of the study's step 4; none of its code is here.
"""

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from src.learning.data import Dataset


class Published(nn.Module):
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


class Pictures(torch.utils.data.Dataset):
    """Training images as the notebook gets them: one at a time, as pictures, transformed one by one."""

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


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, pictures: Pictures, batch_size: int, workers: int = 0
) -> float:
    """Train one epoch, loading images by so many processes (0: by this one); returns its accuracy in percent."""
    network.train()
    correct = 0
    context = "fork" if workers else None  # what the notebook's Linux does by itself
    loader = DataLoader(pictures, batch_size, shuffle=True, num_workers=workers, multiprocessing_context=context)
    for images, labels in loader:
        optimizer.zero_grad()
        log_probabilities = F.log_softmax(network(images), dim=1)
        loss = F.nll_loss(log_probabilities, labels)
        loss.backward()
        optimizer.step()
        loss.item()  # the notebook shows it after every batch
        correct += log_probabilities.argmax(1).eq(labels).sum().item()
    return 100 * correct / len(pictures)
