"""The search for step 4's network and recipe: `python -m benchmarks.search`.

Every candidate is trained on MNIST's training images less a fixed slice of 5,000, and measured on that slice, over
several seeds; the test images are never looked at. What was measured is kept in results/step4-search.jsonl, a line a
run, and is not trained again; results/step4-search.md is written from it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm import tqdm

from src.learning import data, train
from src.learning.recipe import Recipe

SLICE = 5000
RUNS = Path(__file__).parents[1] / "results" / "step4-search.jsonl"
TABLE = RUNS.with_suffix(".md")


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class Shape(nn.Module):
    """The study's shape: 3×3 convolutions on large maps, one pool, 3×3 convolutions down to a 4×4 map, its average.

    `first`: channels before the pool, the last of them by a 1×1 convolution; `then`: channels after it;
    `mix`: a 1×1 convolution 10→10 at the end.
    """

    def __init__(self, first: tuple[int, ...], then: tuple[int, ...], mix: bool = True):
        super().__init__()
        *threes, one = first
        layers = [layer for pair in zip((1, *threes), threes, strict=False) for layer in block(*pair)]
        if one:
            layers += [nn.Conv2d(threes[-1], one, 1, bias=False)]
        layers += [nn.MaxPool2d(2)]
        channels = (one or threes[-1], *then)
        layers += [layer for pair in zip(channels, then, strict=False) for layer in block(*pair)]
        layers += [nn.AvgPool2d(4), nn.Conv2d(then[-1], 10, 1, bias=False)] if mix else [nn.AvgPool2d(4)]
        if not mix:  # the last convolution gives the logits
            layers = [*layers[:-3], nn.AvgPool2d(4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # (N, 10) logits


RECIPE = Recipe(
    epochs=15,
    batch_size=64,
    lr=0.15,
    schedule="one-cycle",
    momentum=0.9,
    nesterov=True,
    averaging=0.5,
    rotation=7,
    shift=0.015,
)


@dataclass(frozen=True)
class Candidate:
    first: tuple[int, ...]
    then: tuple[int, ...]
    mix: bool = True
    recipe: Recipe = RECIPE


WIDE = Candidate((4, 8, 16), (14, 14, 14, 10))
SMALL = Candidate((4, 8, 10), (10, 10, 10, 10))


def variant(candidate: Candidate, **changes) -> Candidate:
    """The candidate with another recipe."""
    return replace(candidate, recipe=replace(candidate.recipe, **changes))


CANDIDATES = {
    "wide": WIDE,
    "small": SMALL,
    "no 1×1 before the pool": Candidate((4, 8, 0), (12, 12, 12, 10)),
    "12 channels": Candidate((4, 8, 12), (12, 12, 12, 10)),
    "small, last convolution gives the logits": replace(SMALL, mix=False),
    "wide, 10 epochs, batch 128, lr 0.3": variant(WIDE, epochs=10, batch_size=128, lr=0.3),
    "wide, rotation 10, shift 0.03": variant(WIDE, rotation=10, shift=0.03),
    "wide, weight decay 5e-4": variant(WIDE, weight_decay=5e-4),
    "wide, lr 0.3": variant(WIDE, lr=0.3),
    "wide, 10 epochs": variant(WIDE, epochs=10),
    "wide, scale 0.1": variant(WIDE, scale=0.1),
    "more before the pool": Candidate((6, 10, 16), (13, 13, 13, 10)),
    "wide, label smoothing 0.05": variant(WIDE, label_smoothing=0.05),
    "wide, averaging 1": variant(WIDE, averaging=1),
}


def measure(name: str, seed: int, threads: int) -> dict:
    """Train one candidate with one seed, and return its line."""
    candidate = CANDIDATES[name]
    device = train.prepare(seed, "cpu", threads)
    dataset = data.load("mnist").hold_out(SLICE)
    network = Shape(candidate.first, candidate.then, candidate.mix)
    training = train.start(network, candidate.recipe, dataset, seed, device)
    rows = list(train.fit(training, candidate.recipe, dataset))
    return {
        "candidate": name,
        "seed": seed,
        "parameters": training.classifier.parameters_count,
        "validation_accuracy": [round(row["validation_accuracy"], 2) for row in rows],
        "train_accuracy": [round(row["train_accuracy"], 3) for row in rows],
        "seconds": [round(row["epoch_seconds"], 2) for row in rows],
    }


def kept() -> Iterator[dict]:
    """The lines measured so far."""
    if RUNS.exists():
        yield from map(json.loads, RUNS.read_text().splitlines())


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="of each candidate")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="processes, a thread each")
@click.argument("names", nargs=-1)
def main(seeds: int, jobs: int, names: tuple[str, ...]) -> None:
    """Measure the candidates NAMES (all of them when none is named) that are not measured yet."""
    done = {(line["candidate"], line["seed"]) for line in kept()}
    wanted = [(name, seed) for name in names or CANDIDATES for seed in range(seeds)]
    missing = [pair for pair in wanted if pair not in done]
    lines = Parallel(jobs, return_as="generator_unordered")(delayed(measure)(*pair, 1) for pair in missing)
    for line in tqdm(lines, total=len(missing), unit="run"):
        with RUNS.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
