"""A small network, and its training."""

from torch import Tensor, nn

from drilldown.learning import train
from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Recipe

SMALL_RECIPE = Recipe(epochs=5, batch_size=64, lr=0.1, schedule="one-cycle", ema_epochs=0.5, rotation=5, translate=0.02)


class SmallNetwork(nn.Module):
    """A network that learns the digits in a second, by either engine."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),  # (N, 1, 14, 14)
            nn.Conv2d(1, 8, 5, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),  # (N, 8, 10, 10)
            nn.Conv2d(8, 10, 10, bias=False),  # (N, 10, 1, 1)
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # (N, 10) logits


def train_small(
    dataset: Dataset, recipe: Recipe = SMALL_RECIPE, seed: int = 0, dropout: float = 0.1, engine: str = "torch"
) -> train.TrainState:
    """Train the small network to the end; by default with torch's own kernels, which need not be loaded."""
    device = train.prepare(seed, "cpu")
    state = train.init_state(SmallNetwork(dropout), recipe, dataset, seed, device)
    for _ in train.fit(state, recipe, dataset, engine):
        pass
    return state
