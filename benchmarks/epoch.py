"""An epoch of this project's loop against an epoch of the notebook's: `make bench`.

The same network, images, batch size, augmentation and cores, in turn, each epoch in a process of its own; only training
is timed. The notebook's images are loaded in the training process, and once more by as many workers as there are cores;
the headline is the ratio to the faster of the two.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.notebook import Pictures, Published, train_epoch
from src.learning import data, train
from src.learning.recipe import Recipe
from src.lifecycle.provenance import machine, versions

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.01, momentum=0.9, rotation=7)
RESULT = Path(__file__).parents[1] / "results" / "benchmark.json"


def ours(images: int) -> tuple[float, float]:
    """Seconds of training and accuracy (percent) inside the epoch."""
    dataset = first(images)
    device = train.prepare(0, "cpu")
    training = train.start(Published(), RECIPE, dataset, 0, device)
    row = next(train.fit(training, RECIPE, dataset))
    return len(dataset.train_images) / row["images_per_second"], row["train_accuracy"]


def theirs(images: int, workers: int = 0) -> tuple[float, float]:
    """The same for the notebook's loop."""
    torch.manual_seed(0)
    pictures = Pictures(first(images), RECIPE.rotation)
    started = time.perf_counter()
    accuracy = train_epoch(Published(), pictures, RECIPE.batch_size, workers)
    return time.perf_counter() - started, accuracy


def first(images: int) -> data.Dataset:
    """The first so many training images."""
    dataset = data.load("auto")
    return replace(dataset, train_images=dataset.train_images[:images], train_labels=dataset.train_labels[:images])


def apart(measure: Callable, *arguments) -> tuple[float, float]:
    """Measure in a process of its own: what one loop does to its process is not to touch the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


@click.command()
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="epochs of each kind")
@click.option("--images", type=click.IntRange(min=64), default=60_000, show_default=True, help="an epoch")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/benchmark.json")
def main(repeats: int, images: int, keep: bool) -> None:
    """Time epochs of this project's loop and of the notebook's in turn, and print the ratio."""
    dataset = first(images)
    cores = os.cpu_count() or 1
    kinds = {
        "drilldown": (ours, images),
        "notebook": (theirs, images),
        f"notebook, {cores} workers": (theirs, images, cores),
    }
    seconds = {name: [] for name in kinds}
    click.echo(f"{dataset.name}, {len(dataset.train_images)} images an epoch, batches of {RECIPE.batch_size}")
    for repeat in range(1, repeats + 1):
        for name, measure in kinds.items():
            took, accuracy = apart(*measure)
            seconds[name].append(took)
            click.echo(f"  repeat {repeat}: {name:20} {took:7.2f} s   accuracy inside the epoch {accuracy:.2f} %")
    mine, *baselines = seconds.values()
    faster, slower = sorted(([t / m for m, t in zip(mine, base, strict=True)] for base in baselines), key=median)
    click.echo(f"epoch_speedup: {median(faster):.2f} times (median of {repeats})")
    click.echo(f"  to the slower of the two: {median(slower):.2f} times")
    if keep:
        result = {
            "epoch_speedup": {"median": median(faster), "repeats": faster},
            "epoch_speedup_to_the_slower": {"median": median(slower), "repeats": slower},
            "seconds": seconds,
            "dataset": dataset.name,
            "images": len(dataset.train_images),
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"kept in {RESULT.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
