"""One epoch of this project's training loop against one of the notebook's, and against the machine's peak rate.

Both train the same network on the same images with the same batch size, augmentation and cores. They take turns, each
epoch in a new process, and only training is timed. The notebook's images are loaded by the training process, and in a
second measurement by one worker per core; the headline is the ratio to the faster of the two.
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

from benchmarks.notebook import StudyNetwork, TransformedImages, make_optimizer, train_epoch
from drilldown.hardware import cores
from drilldown.learning import data, train
from drilldown.learning.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.01, momentum=0.9, rotation=7)


def measure(repeats: int, images: int = 60_000) -> dict:
    """Time epochs of each kind in turn, and print them."""
    dataset = first_images(images)
    kinds = {
        "drilldown": (time_drilldown, images),
        "notebook": (time_notebook, images),
        f"notebook, {cores()} workers": (time_notebook, images, cores()),
    }
    seconds, rates = {name: [] for name in kinds}, []
    click.echo(f"{dataset.name}, {len(dataset.train_images)} images an epoch, batches of {RECIPE.batch_size}")
    for repeat in range(1, repeats + 1):
        for name, call in kinds.items():
            elapsed, accuracy = in_new_process(*call)
            seconds[name].append(elapsed)
            click.echo(f"  repeat {repeat}: {name:20} {elapsed:7.2f} s   training accuracy {accuracy:.2f} %")
        rates.append(in_new_process(matrix_product_rate))
    own, *baselines = seconds.values()
    ratios = ([theirs / ours for ours, theirs in zip(own, baseline, strict=True)] for baseline in baselines)
    to_faster, to_slower = sorted(ratios, key=median)
    shares = [num_operations(images) / elapsed / rate for elapsed, rate in zip(own, rates, strict=True)]
    click.echo(f"epoch_speedup: {median(to_faster):.2f} times (median of {repeats})")
    click.echo(f"  to the slower of the two: {median(to_slower):.2f} times")
    click.echo(f"matrix products: {median(rates) / 1e9:.0f} GFLOP/s; training reaches {median(shares):.0%} of it")
    return {
        "epoch_speedup": {"median": median(to_faster), "repeats": to_faster},
        "epoch_speedup_to_the_slower": {"median": median(to_slower), "repeats": to_slower},
        "epoch_seconds": seconds,
        "matrix_product_gflops": {"median": median(rates) / 1e9, "repeats": [rate / 1e9 for rate in rates]},
        "share_of_matrix_product_rate": {"median": median(shares), "repeats": shares},
        "images": len(dataset.train_images),
    }


def time_drilldown(images: int) -> tuple[float, float]:
    """Train one epoch as this project does; return its seconds and its accuracy in percent."""
    dataset = first_images(images)
    device = train.prepare(0, "cpu")
    state = train.init_state(StudyNetwork(), RECIPE, dataset, 0, device)
    row = next(train.fit(state, RECIPE, dataset))
    return len(dataset.train_images) / row.images_per_second, row.train_accuracy


def time_notebook(images: int, workers: int = 0) -> tuple[float, float]:
    """Train one epoch as the notebook does; return its seconds and its accuracy in percent."""
    torch.manual_seed(0)
    network, transformed = StudyNetwork(), TransformedImages(first_images(images), RECIPE.rotation)
    started = time.perf_counter()
    accuracy = train_epoch(network, make_optimizer(network), transformed, RECIPE.batch_size, workers)
    return time.perf_counter() - started, accuracy


def first_images(count: int) -> data.Dataset:
    """Load MNIST with only its first `count` training images."""
    dataset = data.load("mnist")
    return replace(dataset, train_images=dataset.train_images[:count], train_labels=dataset.train_labels[:count])


def num_operations(images: int) -> int:
    """Return the floating-point operations of the forward and backward passes over the images, as torch counts them."""
    network, batch = StudyNetwork(), torch.zeros(RECIPE.batch_size, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(network(batch), torch.zeros(len(batch), dtype=torch.int64)).backward()
    return counter.get_total_flops() * images // len(batch)


def matrix_product_rate(side: int = 1024, seconds: float = 2) -> float:
    """Measure the floating-point operations per second of products of square float32 matrices."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    for _ in range(5):
        left @ right
    products, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        left @ right
        products += 1
    return 2 * side**3 * products / (time.perf_counter() - started)


def in_new_process(function: Callable, *arguments):
    """Call the function in a new process, so that measurements do not influence each other; return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()
