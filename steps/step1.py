"""Step 1: a network that works.

Target: Get the set-up right (data, loss, loop, measurement) with a network that is large enough not to be the
limit.

Result: not measured in full yet.

Analysis: Six million parameters learn the training set by heart: the study's training accuracy reaches 100 % while
its test accuracy stays below 99.4 %. The network is far larger than the problem, so the next step takes the
parameters away.

Run: mlflow run . -e step1 --env-manager local
"""

from torch import Tensor, nn

from src.learning.recipe import Recipe, Target


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),  # (N, 32, 28, 28)
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),  # (N, 64, 28, 28)
            nn.MaxPool2d(2),  # (N, 64, 14, 14)
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),  # (N, 128, 14, 14)
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(),  # (N, 256, 14, 14)
            nn.MaxPool2d(2),  # (N, 256, 7, 7)
            nn.Conv2d(256, 512, 3), nn.ReLU(),  # (N, 512, 5, 5)
            nn.Conv2d(512, 1024, 3), nn.ReLU(),  # (N, 1024, 3, 3)
            nn.Conv2d(1024, 10, 3),  # (N, 10, 1, 1)
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # (N, 10) logits


RECIPE = Recipe(epochs=20, batch_size=128, lr=0.01, momentum=0.9)
TARGET = Target()
