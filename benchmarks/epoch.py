"""An epoch of this project's loop against an epoch of the notebook's, and against what the machine could do at best.

The same network, images, batch size, augmentation and cores, in turn, each epoch in a process of its own; only training
is timed. The notebook's images are loaded in the training process, and once more by as many workers as there are cores;
the headline is the ratio to the faster of the two.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import median

import click
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.notebook import Pictures, Published, optimizer, train_epoch
from src.learning import data, train
from src.learning.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.01, momentum=0.9, rotation=7)


def measure(repeats: int, images: int = 60_000) -> dict:
    """Time epochs of each kind in turn, and print them."""
    dataset = first(images)
    kinds = {
        "drilldown": (ours, images),
        "notebook": (theirs, images),
        f"notebook, {train.cores()} workers": (theirs, images, train.cores()),
    }
    seconds, rates = {name: [] for name in kinds}, []
    click.echo(f"{dataset.name}, {len(dataset.train_images)} images an epoch, batches of {RECIPE.batch_size}")
    for repeat in range(1, repeats + 1):
        for name, arguments in kinds.items():
            took, accuracy = apart(*arguments)
            seconds[name].append(took)
            click.echo(f"  repeat {repeat}: {name:20} {took:7.2f} s   accuracy inside the epoch {accuracy:.2f} %")
        rates.append(apart(matrix_product_rate))
    mine, *baselines = seconds.values()
    faster, slower = sorted(([t / m for m, t in zip(mine, base, strict=True)] for base in baselines), key=median)
    shares = [operations(images) / took / rate for took, rate in zip(mine, rates, strict=True)]
    click.echo(f"epoch_speedup: {median(faster):.2f} times (median of {repeats})")
    click.echo(f"  to the slower of the two: {median(slower):.2f} times")
    click.echo(f"matrix products: {median(rates) / 1e9:.0f} GFLOP/s; training reaches {median(shares):.0%} of it")
    return {
        "epoch_speedup": {"median": median(faster), "repeats": faster},
        "epoch_speedup_to_the_slower": {"median": median(slower), "repeats": slower},
        "epoch_seconds": seconds,
        "matrix_product_gflops": {"median": median(rates) / 1e9, "repeats": [rate / 1e9 for rate in rates]},
        "share_of_matrix_product_rate": {"median": median(shares), "repeats": shares},
        "images": len(dataset.train_images),
    }


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
    network, pictures = Published(), Pictures(first(images), RECIPE.rotation)
    started = time.perf_counter()
    accuracy = train_epoch(network, optimizer(network), pictures, RECIPE.batch_size, workers)
    return time.perf_counter() - started, accuracy


def first(images: int) -> data.Dataset:
    """MNIST's first so many training images."""
    dataset = data.load("mnist")
    return replace(dataset, train_images=dataset.train_images[:images], train_labels=dataset.train_labels[:images])


def operations(images: int) -> int:
    """Floating-point operations of training on so many images: forward and backward, as torch counts them."""
    network, batch = Published(), torch.zeros(RECIPE.batch_size, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(batch), torch.zeros(len(batch), dtype=torch.int64)).backward()
    return counter.get_total_flops() * images // len(batch)


def matrix_product_rate(side: int = 1024, seconds: float = 2) -> float:
    """Floating-point operations a second in products of square float32 matrices."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    for _ in range(5):
        left @ right
    products, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        left @ right
        products += 1
    return 2 * side**3 * products / (time.perf_counter() - started)


def apart(measured: Callable, *arguments):
    """Measure in a process of its own: what one loop does to its process is not to touch the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, *arguments).result()
