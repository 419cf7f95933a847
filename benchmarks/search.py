"""The search for step 4's network and recipe: `python -m benchmarks.search`.

Every candidate is trained on MNIST's training images less a fixed slice of 5,000, and measured on that slice, over
several seeds; the test images are never looked at. What was measured is kept in results/step4-search.jsonl, a line a
run, and is not trained again; results/step4-search.md has it as a table, with what followed from it.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import click
from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm import tqdm

from src.learning import data, train
from src.learning.recipe import Recipe
from src.lifecycle.records import spread

SLICE = 5000
RUNS = Path(__file__).parents[1] / "results" / "step4-search.jsonl"


class Shape(nn.Module):
    """The study's shape: 3×3 convolutions on large maps, one pool, 3×3 convolutions down to a 4×4 map, its average.

    `first`: channels before the pool, the last of them by a 1×1 convolution (0: none); `then`: channels after it;
    `mix`: whether a 1×1 convolution makes the logits of the average, or the last 3×3 convolution does.
    """

    def __init__(self, first: tuple[int, ...], then: tuple[int, ...], mix: bool = True):
        super().__init__()
        *threes, one = first
        layers = []

        def block(before: int, after: int) -> None:
            layers.extend([nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()])

        for before, after in pairwise((1, *threes)):
            block(before, after)
        if one:
            layers.append(nn.Conv2d(threes[-1], one, 1, bias=False))
        layers.append(nn.MaxPool2d(2))
        for before, after in pairwise((one or threes[-1], *then)):
            block(before, after)
        if mix:
            layers += [nn.AvgPool2d(4), nn.Conv2d(then[-1], 10, 1, bias=False)]
        else:
            layers[-2:] = [nn.AvgPool2d(4)]
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

    def __str__(self) -> str:
        *threes, one = self.first
        before = "→".join(map(str, (1, *threes))) + (f", 1×1→{one}" if one else "")
        end = "average, 1×1→10" if self.mix else "average"
        return ", ".join([before, "pool", "→".join(map(str, self.then)), end])

    def network(self) -> Shape:
        return Shape(self.first, self.then, self.mix)


WIDE = Candidate((4, 8, 16), (14, 14, 14, 10))
TWELVE = Candidate((4, 8, 12), (12, 12, 12, 10))
BARE = Candidate((4, 8, 0), (12, 12, 12, 10))
SMALL = Candidate((4, 8, 10), (10, 10, 10, 10))


def variant(candidate: Candidate, **changes) -> Candidate:
    """The candidate with another recipe."""
    return replace(candidate, recipe=replace(candidate.recipe, **changes))


def decayed(candidate: Candidate, **changes) -> Candidate:
    """The candidate with weight decay and larger batches, the best that the first ones led to, and changes to it."""
    return variant(candidate, **{"weight_decay": 5e-4, "batch_size": 128, "lr": 0.3, **changes})


CANDIDATES = {
    "wide": WIDE,
    "small": SMALL,
    "bare": BARE,
    "12 channels": TWELVE,
    "small, last convolution gives the logits": replace(SMALL, mix=False),
    "wide, 10 epochs, batch 128, lr 0.3": variant(WIDE, epochs=10, batch_size=128, lr=0.3),
    "wide, rotation 10, shift 0.03": variant(WIDE, rotation=10, shift=0.03),
    "wide, weight decay 5e-4": variant(WIDE, weight_decay=5e-4),
    "wide, weight decay 1e-3": variant(WIDE, weight_decay=1e-3),
    "wide, decayed": decayed(WIDE),
    "wide, decayed, 10 epochs": decayed(WIDE, epochs=10),
    "small, decayed": decayed(SMALL),
    "bare, decayed": decayed(BARE),
    "12 channels, decayed": decayed(TWELVE),
    "wide, decayed, weight decay 1e-3": decayed(WIDE, weight_decay=1e-3),
    "wide, decayed, lr 0.5": decayed(WIDE, lr=0.5),
    "wide, decayed, 12 epochs": decayed(WIDE, epochs=12),
    "wide, decayed, 12 epochs, label smoothing": decayed(WIDE, epochs=12, label_smoothing=0.1),
    "wide, decayed, 12 epochs, lr 0.5": decayed(WIDE, epochs=12, lr=0.5),
    "wide, decayed, 12 epochs, lr 0.2": decayed(WIDE, epochs=12, lr=0.2),
    "wide, decayed, 12 epochs, lr 0.2, averaging 1": decayed(WIDE, epochs=12, lr=0.2, averaging=1.0),
    "wide, decayed, 12 epochs, lr 0.15": decayed(WIDE, epochs=12, lr=0.15),
    "wide, decayed, 12 epochs, lr 0.15, averaging 1": decayed(WIDE, epochs=12, lr=0.15, averaging=1.0),
    "wide, decayed, again": decayed(WIDE),  # once training's sums were ordered otherwise
    "wide, decayed, averaging 1": decayed(WIDE, averaging=1.0),
    "wide, decayed, lr 0.2": decayed(WIDE, lr=0.2),
    "wide, decayed, lr 0.2, averaging 1": decayed(WIDE, lr=0.2, averaging=1.0),
    "wide, decayed, lr 0.15": decayed(WIDE, lr=0.15),
    "wide, decayed, lr 0.15, averaging 1": decayed(WIDE, lr=0.15, averaging=1.0),
    "wide, decayed, lr 0.1": decayed(WIDE, lr=0.1),
    "wide, decayed, lr 0.1, averaging 1": decayed(WIDE, lr=0.1, averaging=1.0),
}


def measure(name: str, seed: int, threads: int) -> dict:
    """Train one candidate with one seed, and return its line."""
    candidate = CANDIDATES[name]
    device = train.prepare(seed, "cpu", threads)
    dataset = data.load("mnist").hold_out(SLICE)
    training = train.start(candidate.network(), candidate.recipe, dataset, seed, device)
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


def table() -> str:
    """What was measured, the best first: validation accuracy in percent as mean ± standard deviation over the seeds."""
    lines = [
        "| candidate | network | parameters | recipe, where it differs | final | lowest of the last five | seeds "
        "| s an epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = defaultdict(list)
    for line in kept():
        runs[line["candidate"]].append(line)
    means = {name: mean(line["validation_accuracy"][-1] for line in found) for name, found in runs.items()}
    for name in sorted(runs, key=means.get, reverse=True):
        found, candidate = runs[name], CANDIDATES[name]
        final = spread([line["validation_accuracy"][-1] for line in found])
        lowest = spread([min(line["validation_accuracy"][-5:]) for line in found])
        seconds = median(second for line in found for second in line["seconds"])
        changes = [
            f"{field} {value:g}" for field, value in asdict(candidate.recipe).items() if value != getattr(RECIPE, field)
        ]
        lines.append(
            f"| {name} | {candidate} | {found[0]['parameters']:,} | {', '.join(changes) or '–'} | {final} | {lowest} "
            f"| {len(found)} | {seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="of each candidate")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="processes, a thread each")
@click.option("--show", is_flag=True, help="print the table of what was measured, and measure nothing")
@click.argument("names", nargs=-1)
def main(seeds: int, jobs: int, show: bool, names: tuple[str, ...]) -> None:
    """Measure the candidates NAMES (all of them when none is named) that are not measured yet."""
    if show:
        click.echo(table(), nl=False)
        return
    done = {(line["candidate"], line["seed"]) for line in kept()}
    wanted = [(name, seed) for name in names or CANDIDATES for seed in range(seeds)]
    missing = [pair for pair in wanted if pair not in done]
    lines = Parallel(jobs, return_as="generator_unordered")(delayed(measure)(*pair, 1) for pair in missing)
    for line in tqdm(lines, total=len(missing), unit="run"):
        with RUNS.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
