"""An epoch of this project's loop against an epoch of the notebook's: `make bench`.

The same network, images, batch size, augmentation and cores, in turn, in one process; only training is timed.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.notebook import Pictures, Published, train_epoch
from src.learning import data, train
from src.learning.recipe import Recipe
from src.lifecycle.tracking import machine, versions

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.01, momentum=0.9, rotation=7)
RESULT = Path(__file__).parents[1] / "results" / "benchmark.json"


def ours(dataset: data.Dataset) -> tuple[float, float]:
    """Seconds of training and accuracy inside the epoch."""
    training = train.start(Published(), RECIPE, dataset, 0, train.prepare(0, "cpu"))
    row = next(train.fit(training, RECIPE, dataset))
    return len(dataset.train_images) / row["images_per_second"], row["train_accuracy"]


def theirs(dataset: data.Dataset, workers: int) -> tuple[float, float]:
    """The same for the notebook's loop."""
    train.prepare(0, "cpu")
    pictures = Pictures(dataset, RECIPE.rotation)
    started = time.perf_counter()
    accuracy = train_epoch(Published(), pictures, RECIPE.batch_size, workers)
    return time.perf_counter() - started, accuracy


@click.command()
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="epochs of each kind")
@click.option("--images", type=click.IntRange(min=64), default=60_000, show_default=True, help="an epoch")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/benchmark.json")
def main(repeats: int, images: int, keep: bool) -> None:
    """Time epochs of this project's loop and of the notebook's in turn, and print the ratio."""
    dataset = data.load("auto")
    dataset = replace(dataset, train_images=dataset.train_images[:images], train_labels=dataset.train_labels[:images])
    cores = os.cpu_count() or 1
    kinds = {
        "drilldown": lambda: ours(dataset),
        "notebook, loading in the training process": lambda: theirs(dataset, 0),
        f"notebook, loading in {cores} worker processes": lambda: theirs(dataset, cores),
    }
    seconds = {name: [] for name in kinds}
    click.echo(f"{dataset.name}, {len(dataset.train_images)} images an epoch, batches of {RECIPE.batch_size}")
    for repeat in range(1, repeats + 1):
        for name, measure in kinds.items():
            took, accuracy = measure()
            seconds[name].append(took)
            click.echo(f"  repeat {repeat}: {name:45} {took:7.2f} s   accuracy inside the epoch {accuracy:.2f} %")
    mine, *baselines = kinds
    best = min(baselines, key=lambda name: median(seconds[name]))
    ratios = [slow / fast for slow, fast in zip(seconds[best], seconds[mine], strict=True)]
    click.echo(f"epoch_speedup: {median(ratios):.2f} times, against the faster way ({best})")
    if keep:
        result = {
            "epoch_speedup": {"median": median(ratios), "repeats": ratios, "seconds": seconds},
            "dataset": dataset.name,
            "images": len(dataset.train_images),
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"kept in {RESULT.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
