"""Training on a CUDA device: with and without graphs, and many seeds side by side.

`python -m benchmarks.gpu` or `python -m benchmarks --part gpu`. 24 seeds take less than two minutes on an H100.
It needs no MLflow. The figures go to results/benchmark-gpu.json.
"""

import json
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click
import torch

from benchmarks.errors import one_line_errors
from drilldown.hardware import select_device
from drilldown.learning import data, train
from drilldown.learning.data import Dataset
from drilldown.learning.side_by_side import AT_A_TIME, fit_side_by_side
from drilldown.learning.train import EpochMetrics
from drilldown.reporting.statistics import format_spread
from drilldown.steps import ROOT, load_step
from drilldown.tracking.provenance import code_digest

DEVICE = "cuda"
STEPS = ("step4", "step3", "step1")
WARM_UP_IMAGES = 2_000  # the first use of a kernel loads it
SEEDS = 64  # of step 4, 2.2 s each on an H100
RESULT = ROOT / "results" / "benchmark-gpu.json"


def measure(seeds: int = SEEDS, at_a_time: int = AT_A_TIME) -> Iterator[dict]:
    """Train each step alone, then step 4 with many seeds; print the figures, and yield those so far."""
    device = select_device(DEVICE)
    dataset = data.load("mnist")
    card = torch.cuda.get_device_name(device)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    click.echo(f"{card}, {versions}")
    figures = {"card": card, "versions": versions, "code": code_digest(STEPS[0]), "steps": {}}
    for name in STEPS:
        figures["steps"][name] = time_step(name, dataset)
        yield figures
    figures["side_by_side"] = time_seeds(STEPS[0], dataset, seeds, at_a_time)
    yield figures


def time_step(name: str, dataset: Dataset) -> dict:
    """Train an epoch without graphs, then the whole recipe with them."""
    few = replace(
        dataset,
        train_images=dataset.train_images[:WARM_UP_IMAGES],
        train_labels=dataset.train_labels[:WARM_UP_IMAGES],
    )
    list(train_step(name, few, epochs=1, graphs=False))
    (eager,) = train_step(name, dataset, epochs=1, graphs=False)
    started = time.perf_counter()
    captured = list(train_step(name, dataset))
    total = time.perf_counter() - started
    accuracies = [row.eval_accuracy for row in captured]
    eager_seconds, *seconds = (training_seconds(row, dataset) for row in (eager, *captured))
    click.echo(
        f"{name}: an epoch takes {eager_seconds:.2f} s of training without graphs, {seconds[-1]:.3f} s with; "
        f"{len(captured)} epochs {sum(seconds):.2f} s of training, {total:.2f} s with evaluation; test accuracy "
        f"{accuracies[-1]:.2f} %, lowest of the last five {min(accuracies[-5:]):.2f} %"
    )
    return {
        "eager_epoch_seconds": eager_seconds,
        "epoch_seconds": seconds,
        "total_seconds": total,
        "test_accuracy": accuracies,
    }


def training_seconds(row: EpochMetrics, dataset: Dataset) -> float:
    """Return the seconds that an epoch took without its evaluation."""
    return len(dataset.train_images) / row.images_per_second


def time_seeds(name: str, dataset: Dataset, seeds: int, at_a_time: int) -> dict:
    """Train a step with many seeds, some of them at a time."""
    step, accuracies = load_step(name), {}
    started = time.perf_counter()
    for trained in fit_side_by_side(step.network, step.recipe, dataset, range(seeds), at_a_time):
        accuracies[trained.seed] = trained.state.accuracies
    seconds = time.perf_counter() - started
    finals = [values[-1] for values in accuracies.values()]
    passed = sum(min(values[-step.target.last :]) >= dataset.target_accuracy for values in accuracies.values())
    click.echo(
        f"{name}: {seeds} seeds, {at_a_time} at a time, in {seconds:.1f} s, {seconds / seeds:.2f} s each; "
        f"test accuracy {format_spread(finals)} %, {passed} of {seeds} at or above {dataset.target_accuracy} % "
        f"in each of the last {step.target.last} epochs"
    )
    return {
        "step": name,
        "at_a_time": at_a_time,
        "seconds": seconds,
        "test_accuracy": [accuracies[seed] for seed in range(seeds)],
    }


def train_step(name: str, dataset: Dataset, epochs: int | None = None, graphs: bool = True) -> Iterator[EpochMetrics]:
    """Train a step with seed 0."""
    step = load_step(name)
    recipe = replace(step.recipe, epochs=epochs or step.recipe.epochs)
    device = train.prepare(0, DEVICE)
    state = train.init_state(step.network(), recipe, dataset, 0, device)
    return train.fit(state, recipe, dataset, graphs=graphs)


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=SEEDS, show_default=True, help="to train side by side")
@click.option("--at-a-time", type=click.IntRange(min=1), default=AT_A_TIME, show_default=True, help="of these seeds")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/benchmark-gpu.json")
def main(seeds: int, at_a_time: int, keep: bool) -> None:
    """Time the training of steps 4, 3 and 1 on a CUDA device, then of step 4 with many seeds."""
    write_figures(measure(seeds, at_a_time), keep)


def write_figures(measured: Iterable[dict], keep: bool) -> None:
    """Take the figures as they are measured, and keep each of them at once: later ones may fail."""
    with one_line_errors():
        for figures in measured:
            if keep:
                RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    if keep:
        click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    main()
