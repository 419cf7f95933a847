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
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.errors import in_one_line
from src.learning import data, train
from src.learning.evaluate import evaluate
from src.learning.recipe import Recipe
from src.lifecycle.provenance import code_digest
from src.lifecycle.records import spread

SLICE = 5000
RUNS = Path(__file__).parents[1] / "results" / "step4-search.jsonl"


class Shape(nn.Module):
    """A candidate's network, for images (N, 1, 28, 28); returns (N, 10) logits, in evaluation the mean of its views."""

    def __init__(self, candidate: "Candidate"):
        super().__init__()
        self.views = VIEWS[ONE]
        (*threes, one), then = candidate.first, candidate.then
        layers = []

        def block(before: int, after: int, activation: type[nn.Module] = nn.ReLU, separable: bool = False) -> None:
            if separable:
                layers.extend([nn.Conv2d(before, before, 3, groups=before, bias=False), nn.BatchNorm2d(before)])
            kernel = 1 if separable else 3
            layers.extend([nn.Conv2d(before, after, kernel, bias=False), nn.BatchNorm2d(after), activation()])

        for before, after in pairwise((1, *threes)):
            block(before, after)
        if one:
            layers.append(nn.Conv2d(threes[-1], one, 1, bias=False))
        layers.append(nn.MaxPool2d(2))
        for before, after in pairwise((one or threes[-1], *then)):
            block(before, after, nn.SiLU if candidate.smooth else nn.ReLU, candidate.separable)
        if not candidate.mix:
            del layers[-2:]
        pool = nn.Conv2d(then[-1], then[-1], 4, groups=then[-1], bias=False) if candidate.weigh else nn.AvgPool2d(4)
        layers.append(pool)
        if candidate.mix:
            layers.append(nn.Conv2d(then[-1], 10, 1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.layers(images).flatten(1)  # (N, 10) logits
        views = [self.layers(images.roll(shift, (2, 3))) for shift in self.views]  # around a blank border
        return torch.stack(views).mean(0).flatten(1)


ONE = "one view"
VIEWS = {  # shifts in pixels (down, right), whose logits are averaged
    ONE: ((0, 0),),
    "five views": ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)),
    "nine views": tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)),
}


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
    """The study's shape: 3×3 convolutions on large maps, one pool, 3×3 convolutions down to a 4×4 map, its average."""

    first: tuple[int, ...]  # channels before the pool, the last of them by a 1×1 convolution (0: none)
    then: tuple[int, ...]  # channels after the pool
    mix: bool = True  # a 1×1 convolution makes the logits of the average; False: the last 3×3 convolution does
    weigh: bool = False  # the 4×4 map is not averaged but weighted, by weights of each channel's own
    smooth: bool = False  # SiLU in place of ReLU after the pool
    separable: bool = False  # after the pool, a 3×3 of each channel by itself and a 1×1, in place of one 3×3
    recipe: Recipe = RECIPE
    views: tuple[str, ...] = ()  # names of VIEWS, to be measured besides the one

    def __str__(self) -> str:
        *threes, one = self.first
        before = "→".join(map(str, (1, *threes))) + (f", 1×1→{one}" if one else "")
        end = ("weights" if self.weigh else "average") + (", 1×1→10" if self.mix else "")
        kind = (" with SiLU" if self.smooth else "") + (" separable" if self.separable else "")
        then = "→".join(map(str, self.then)) + kind
        return ", ".join([before, "pool", then, end])

    def network(self) -> Shape:
        return Shape(self)


WIDE = Candidate((4, 8, 16), (14, 14, 14, 10))
TWELVE = Candidate((4, 8, 12), (12, 12, 12, 10))
BARE = Candidate((4, 8, 0), (12, 12, 12, 10))
SMALL = Candidate((4, 8, 10), (10, 10, 10, 10))
WIDER = Candidate((4, 8, 16), (14, 14, 16, 10))
SEPARABLE_32 = Candidate((4, 8, 16), (32, 32, 32, 10), separable=True)
SEPARABLE_44 = Candidate((4, 8, 16), (44, 44, 44, 10), separable=True)
SEPARABLE_48 = Candidate((4, 8, 16), (32, 48, 48, 10), separable=True)
EARLY_48 = Candidate((4, 8, 16), (48, 48, 32, 10), separable=True)
TAPERED = Candidate((4, 8, 16), (48, 32, 24, 10), separable=True)


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
    "wide, decayed, lr 0.15, again": replace(decayed(WIDE, lr=0.15), views=("five views", "nine views")),
    "wide, weights": decayed(replace(WIDE, weigh=True), lr=0.15),
    "wider": decayed(WIDER, lr=0.15),
    "wide, scale 0.05": decayed(WIDE, lr=0.15, scale=0.05),
    "wide, SiLU": decayed(replace(WIDE, smooth=True), lr=0.15),
    "wide, rotation 5, shift 0.01": decayed(WIDE, lr=0.15, rotation=5, shift=0.01),
    "wide, 10 epochs, lr 0.15": decayed(WIDE, epochs=10, lr=0.15),
    "separable 32": decayed(SEPARABLE_32, lr=0.15),
    "separable 44": decayed(SEPARABLE_44, lr=0.15),
    "separable 32, 10 epochs": decayed(SEPARABLE_32, epochs=10, lr=0.15),
    "separable 48": decayed(SEPARABLE_48, lr=0.15),
    "separable 48, early": decayed(EARLY_48, lr=0.15),
    "separable 48, 10 epochs": decayed(SEPARABLE_48, epochs=10, lr=0.15),
    "separable 48, 12 epochs": decayed(SEPARABLE_48, epochs=12, lr=0.15),
    "separable 48, rotation 10, shift 0.03": decayed(SEPARABLE_48, lr=0.15, rotation=10, shift=0.03),
    "separable 48, weight decay 1e-3": decayed(SEPARABLE_48, lr=0.15, weight_decay=1e-3),
    # Once averaged weights had batch statistics of their own:
    "separable 32, own statistics": decayed(SEPARABLE_32, lr=0.15),
    "separable 48 to 24, own statistics": decayed(TAPERED, lr=0.15),
    "separable 48, early, 10 epochs, own statistics": decayed(EARLY_48, epochs=10, lr=0.15),
    "separable 48, early, own statistics": decayed(EARLY_48, lr=0.15),
    # A learning rate that falls sooner:
    "separable 48, early, quadratic": decayed(EARLY_48, lr=0.15, schedule="quadratic", rise=0.1),
    "separable 48, early, cubic": decayed(EARLY_48, lr=0.15, schedule="cubic", rise=0.1),
    "separable 48, early, cubic, rise 0.2": decayed(EARLY_48, lr=0.15, schedule="cubic"),
}


def measure(name: str, seed: int, threads: int, code: str) -> list[dict]:
    """Train one candidate with one seed, and return its lines, one for each way to view the images."""
    candidate = CANDIDATES[name]
    device = train.prepare(seed, "cpu", threads)
    dataset = data.load("mnist").hold_out(SLICE)
    training = train.start(candidate.network(), candidate.recipe, dataset, seed, device)
    rows, accuracies = [], defaultdict(list)
    for row in train.fit(training, candidate.recipe, dataset):
        rows.append(row)
        accuracies[ONE].append(round(row["validation_accuracy"], 2))
        network = training.result.network
        for views in candidate.views:
            network.views = VIEWS[views]
            accuracy = evaluate(training.result, dataset.test_images, dataset.test_labels).accuracy
            accuracies[views].append(round(accuracy, 2))
        network.views = VIEWS[ONE]
    common = {
        "train_accuracy": [round(row["train_accuracy"], 3) for row in rows],
        "seconds": [round(row["epoch_seconds"], 2) for row in rows],
    }
    named = {"candidate": name, "seed": seed, "parameters": training.classifier.parameters_count, "code": code}
    return [{**named, "views": views, "validation_accuracy": found, **common} for views, found in accuracies.items()]


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
        runs[line["candidate"], line.get("views", ONE)].append(line)
    means = {key: mean(line["validation_accuracy"][-1] for line in found) for key, found in runs.items()}
    for name, views in sorted(runs, key=means.get, reverse=True):
        found, candidate = runs[name, views], CANDIDATES[name]
        final = spread([line["validation_accuracy"][-1] for line in found])
        lowest = spread([min(line["validation_accuracy"][-5:]) for line in found])
        seconds = median(second for line in found for second in line["seconds"])
        changes = [
            f"{field} {value}" if isinstance(value, str) else f"{field} {value:g}"
            for field, value in asdict(candidate.recipe).items()
            if value != getattr(RECIPE, field)
        ]
        label = name if views == ONE else f"{name}, {views}"
        lines.append(
            f"| {label} | {candidate} | {found[0]['parameters']:,} | {', '.join(changes) or '–'} | {final} | {lowest} "
            f"| {len(found)} | {seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="of each candidate")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="processes, a thread each")
@click.option("--show", is_flag=True, help="print the table of what was measured, and measure nothing")
@click.argument("names", nargs=-1, type=click.Choice(tuple(CANDIDATES)), metavar="[NAMES]...")
def main(seeds: int, jobs: int, show: bool, names: tuple[str, ...]) -> None:
    """Measure the candidates NAMES that are not measured yet (none named: all that other code has not begun)."""
    if show:
        click.echo(table(), nl=False)
        return
    code, lines = code_digest("step4"), list(kept())  # step 4 is a candidate; the others differ in network and recipe
    done = {(line["candidate"], line["seed"]) for line in lines}
    closed = {line["candidate"] for line in lines if line.get("code") != code}  # more seeds would not be like these
    wanted = names or [name for name in CANDIDATES if name not in closed]
    missing = [(name, seed) for name in wanted for seed in range(seeds) if (name, seed) not in done]
    if refused := sorted(closed & {name for name, _ in missing}):
        raise click.ClickException(f"{', '.join(refused)}: measured by other code; to ask again, give it another name")
    runs = Parallel(jobs, return_as="generator_unordered")(delayed(measure)(*pair, 1, code) for pair in missing)
    with in_one_line():
        for found in tqdm(runs, total=len(missing), unit="run"):
            with RUNS.open("a") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in found)


if __name__ == "__main__":
    main()
