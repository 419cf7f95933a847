"""The search for step 4's network and recipe: `python -m benchmarks.search`.

Each candidate is trained with several seeds on MNIST's training images without a fixed slice of 5,000, and measured on
that slice. The test images are not used. Each run is a line of results/step4-search.jsonl, and is not trained again.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import mean, median

import click
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.errors import one_line_errors
from drilldown.learning import data, train
from drilldown.learning.evaluate import evaluate
from drilldown.learning.recipe import Recipe
from drilldown.reporting.statistics import format_spread
from drilldown.steps import ROOT
from drilldown.tracking.provenance import code_digest

SLICE = 5000
RUNS = ROOT / "results" / "step4-search.jsonl"


class CandidateNetwork(nn.Module):
    """A candidate's network: images (N, 1, 28, 28) to logits (N, 10); in evaluation mode, the mean over its views."""

    def __init__(self, candidate: "Candidate"):
        super().__init__()
        self.views = VIEWS[ONE]
        (*channels, reduced), last = candidate.before_pool, candidate.after_pool[-1]
        layers = []

        def block(before: int, after: int, activation: type[nn.Module] = nn.ReLU, separable: bool = False) -> None:
            if separable:
                layers.extend([nn.Conv2d(before, before, 3, groups=before, bias=False), nn.BatchNorm2d(before)])
            kernel = 1 if separable else 3
            layers.extend([nn.Conv2d(before, after, kernel, bias=False), nn.BatchNorm2d(after), activation()])

        for before, after in pairwise((1, *channels)):
            block(before, after)
        if reduced:
            layers.append(nn.Conv2d(channels[-1], reduced, 1, bias=False))
        layers.append(nn.MaxPool2d(2))
        for before, after in pairwise((reduced or channels[-1], *candidate.after_pool)):
            block(before, after, nn.SiLU if candidate.silu else nn.ReLU, candidate.separable)
        if not candidate.logits_conv:
            del layers[-2:]
        layers.append(nn.Conv2d(last, last, 4, groups=last, bias=False) if candidate.weighted_pool else nn.AvgPool2d(4))
        if candidate.logits_conv:
            layers.append(nn.Conv2d(last, 10, 1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.layers(images).flatten(1)  # (N, 10) logits
        views = [self.layers(images.roll(shift, (2, 3))) for shift in self.views]  # the border is blank
        return torch.stack(views).mean(0).flatten(1)


ONE = "one view"
VIEWS = {  # shifts of the image in pixels (down, right); the logits are averaged over them
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
    ema_epochs=0.5,
    rotation=7,
    translate=0.015,
)


@dataclass(frozen=True)
class Candidate:
    """A network of the study's architecture, and a recipe.

    The architecture: 3×3 convolutions, a pool, 3×3 convolutions to a 4×4 feature map, its average, logits.
    """

    before_pool: tuple[int, ...]  # output channels; the last are those of a 1×1 convolution (0: there is none)
    after_pool: tuple[int, ...]  # output channels
    logits_conv: bool = True  # a 1×1 convolution after the average makes the logits; False: the last 3×3 convolution
    weighted_pool: bool = False  # learned weights for each channel in place of the average of the 4×4 map
    silu: bool = False  # SiLU in place of ReLU after the pool
    separable: bool = False  # after the pool, depthwise separable convolutions
    recipe: Recipe = RECIPE
    views: tuple[str, ...] = ()  # names of VIEWS to be measured besides ONE

    def __str__(self) -> str:
        *channels, reduced = self.before_pool
        before = "→".join(map(str, (1, *channels))) + (f", 1×1→{reduced}" if reduced else "")
        end = ("weights" if self.weighted_pool else "average") + (", 1×1→10" if self.logits_conv else "")
        kind = (" with SiLU" if self.silu else "") + (" separable" if self.separable else "")
        after = "→".join(map(str, self.after_pool)) + kind
        return ", ".join([before, "pool", after, end])

    def network(self) -> CandidateNetwork:
        return CandidateNetwork(self)


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
    """Return the candidate with changes to its recipe."""
    return replace(candidate, recipe=replace(candidate.recipe, **changes))


def decayed(candidate: Candidate, **changes) -> Candidate:
    """Return the candidate with weight decay and larger batches, the best of the first recipes, and changes to that."""
    return variant(candidate, **{"weight_decay": 5e-4, "batch_size": 128, "lr": 0.3, **changes})


CANDIDATES = {  # by the names in results/step4-search.jsonl
    "wide": WIDE,
    "small": SMALL,
    "bare": BARE,
    "12 channels": TWELVE,
    "small, last convolution gives the logits": replace(SMALL, logits_conv=False),
    "wide, 10 epochs, batch 128, lr 0.3": variant(WIDE, epochs=10, batch_size=128, lr=0.3),
    "wide, rotation 10, shift 0.03": variant(WIDE, rotation=10, translate=0.03),
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
    "wide, decayed, 12 epochs, lr 0.2, averaging 1": decayed(WIDE, epochs=12, lr=0.2, ema_epochs=1.0),
    "wide, decayed, 12 epochs, lr 0.15": decayed(WIDE, epochs=12, lr=0.15),
    "wide, decayed, 12 epochs, lr 0.15, averaging 1": decayed(WIDE, epochs=12, lr=0.15, ema_epochs=1.0),
    "wide, decayed, again": decayed(WIDE),  # after the rounding of the training had changed
    "wide, decayed, averaging 1": decayed(WIDE, ema_epochs=1.0),
    "wide, decayed, lr 0.2": decayed(WIDE, lr=0.2),
    "wide, decayed, lr 0.2, averaging 1": decayed(WIDE, lr=0.2, ema_epochs=1.0),
    "wide, decayed, lr 0.15": decayed(WIDE, lr=0.15),
    "wide, decayed, lr 0.15, averaging 1": decayed(WIDE, lr=0.15, ema_epochs=1.0),
    "wide, decayed, lr 0.1": decayed(WIDE, lr=0.1),
    "wide, decayed, lr 0.1, averaging 1": decayed(WIDE, lr=0.1, ema_epochs=1.0),
    "wide, decayed, lr 0.15, again": replace(decayed(WIDE, lr=0.15), views=("five views", "nine views")),
    "wide, weights": decayed(replace(WIDE, weighted_pool=True), lr=0.15),
    "wider": decayed(WIDER, lr=0.15),
    "wide, scale 0.05": decayed(WIDE, lr=0.15, scale=0.05),
    "wide, SiLU": decayed(replace(WIDE, silu=True), lr=0.15),
    "wide, rotation 5, shift 0.01": decayed(WIDE, lr=0.15, rotation=5, translate=0.01),
    "wide, 10 epochs, lr 0.15": decayed(WIDE, epochs=10, lr=0.15),
    "separable 32": decayed(SEPARABLE_32, lr=0.15),
    "separable 44": decayed(SEPARABLE_44, lr=0.15),
    "separable 32, 10 epochs": decayed(SEPARABLE_32, epochs=10, lr=0.15),
    "separable 48": decayed(SEPARABLE_48, lr=0.15),
    "separable 48, early": decayed(EARLY_48, lr=0.15),
    "separable 48, 10 epochs": decayed(SEPARABLE_48, epochs=10, lr=0.15),
    "separable 48, 12 epochs": decayed(SEPARABLE_48, epochs=12, lr=0.15),
    "separable 48, rotation 10, shift 0.03": decayed(SEPARABLE_48, lr=0.15, rotation=10, translate=0.03),
    "separable 48, weight decay 1e-3": decayed(SEPARABLE_48, lr=0.15, weight_decay=1e-3),
    # After averaged weights got their own batch statistics:
    "separable 32, own statistics": decayed(SEPARABLE_32, lr=0.15),
    "separable 48 to 24, own statistics": decayed(TAPERED, lr=0.15),
    "separable 48, early, 10 epochs, own statistics": decayed(EARLY_48, epochs=10, lr=0.15),
    "separable 48, early, own statistics": decayed(EARLY_48, lr=0.15),
    # A learning rate that falls earlier:
    "separable 48, early, quadratic": decayed(EARLY_48, lr=0.15, schedule="quadratic", warmup_fraction=0.1),
    "separable 48, early, cubic": decayed(EARLY_48, lr=0.15, schedule="cubic", warmup_fraction=0.1),
    "separable 48, early, cubic, rise 0.2": decayed(EARLY_48, lr=0.15, schedule="cubic"),
}


def measure(name: str, seed: int, threads: int, code: str) -> list[dict]:
    """Train one candidate with one seed; return its lines, one for each way to view the images."""
    candidate = CANDIDATES[name]
    device = train.prepare(seed, "cpu", threads)
    dataset = data.load("mnist").hold_out(SLICE)
    state = train.init_state(candidate.network(), candidate.recipe, dataset, seed, device)
    rows, accuracies = [], defaultdict(list)
    for row in train.fit(state, candidate.recipe, dataset):
        rows.append(row)
        accuracies[ONE].append(round(row.eval_accuracy, 2))
        network = state.eval_model.network
        for views in candidate.views:
            network.views = VIEWS[views]
            accuracy = evaluate(state.eval_model, dataset.test_images, dataset.test_labels).accuracy
            accuracies[views].append(round(accuracy, 2))
        network.views = VIEWS[ONE]
    common = {
        "train_accuracy": [round(row.train_accuracy, 3) for row in rows],
        "seconds": [round(row.epoch_seconds, 2) for row in rows],
    }
    facts = {"candidate": name, "seed": seed, "parameters": state.classifier.num_parameters, "code": code}
    return [{**facts, "views": views, "validation_accuracy": values, **common} for views, values in accuracies.items()]


def kept() -> Iterator[dict]:
    """Yield the lines of results/step4-search.jsonl."""
    if RUNS.exists():
        yield from map(json.loads, RUNS.read_text().splitlines())


def table() -> str:
    """Return the results, the best first: validation accuracy in percent, mean ± standard deviation over the seeds."""
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
        final = format_spread([line["validation_accuracy"][-1] for line in found])
        lowest = format_spread([min(line["validation_accuracy"][-5:]) for line in found])
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
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="per candidate")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="processes with one thread each")
@click.option("--show", is_flag=True, help="print the table of the results, and measure nothing")
@click.argument("names", nargs=-1, type=click.Choice(tuple(CANDIDATES)), metavar="[NAMES]...")
def main(seeds: int, jobs: int, show: bool, names: tuple[str, ...]) -> None:
    """Measure the candidates NAMES; by default, all that no other version of the code has measured."""
    if show:
        click.echo(table(), nl=False)
        return
    code, lines = code_digest("step4"), list(kept())  # the candidates share step 4's code
    done = {(line["candidate"], line["seed"]) for line in lines}
    closed = {line["candidate"] for line in lines if line.get("code") != code}  # their seeds and new ones would differ
    wanted = names or [name for name in CANDIDATES if name not in closed]
    missing = [(name, seed) for name in wanted for seed in range(seeds) if (name, seed) not in done]
    if refused := sorted(closed & {name for name, _ in missing}):
        raise click.ClickException(f"{', '.join(refused)}: measured by other code; rename it to measure it again")
    runs = Parallel(jobs, return_as="generator_unordered")(delayed(measure)(*pair, 1, code) for pair in missing)
    with one_line_errors():
        for found in tqdm(runs, total=len(missing), unit="run"):
            with RUNS.open("a") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in found)


if __name__ == "__main__":
    main()
