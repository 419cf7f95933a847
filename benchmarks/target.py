"""Seconds of training until the target holds for good: step 4 against the notebook's step 4, on the same cores.

That is until the end of the first epoch of the final unbroken stretch of epochs at or above the target. Both are run to
their last epoch, in turn, each in a process of its own; the evaluation after each epoch is not counted. The study's own
run held the target sooner than the notebook does here, so the ratio is also given with its epoch.
"""

import json
import time
from collections.abc import Mapping, Sequence
from statistics import mean, median

import click
import torch
from torch.optim.lr_scheduler import StepLR

from benchmarks.epoch import apart
from benchmarks.notebook import Pictures, Published, optimizer, train_epoch
from src.learning import data, train
from src.learning.classifier import Classifier
from src.learning.evaluate import evaluate
from src.lifecycle.records import STUDY
from steps import step4

EPOCHS, BATCH_SIZE, ROTATION = 20, 64, 7.0  # the notebook's


def measure(repeats: int) -> dict:
    """Run both procedures with so many seeds, and print when the target holds."""
    target = data.load("mnist").target_accuracy
    results = {"drilldown": [], "notebook": []}
    for seed in range(repeats):
        for name, procedure in (("drilldown", ours), ("notebook", theirs)):
            seconds, accuracies = apart(procedure, seed)
            epoch = holds_from(accuracies, target)
            total = sum(seconds[:epoch]) if epoch else None
            results[name].append(
                {"seed": seed, "epoch": epoch, "seconds_to_target": total, "test_accuracy": accuracies}
            )
            said = f"{total:6.1f} s, from epoch {epoch} on" if epoch else "never for good"
            click.echo(f"  seed {seed}: {name:10} {said} (of {len(accuracies)}; {sum(seconds):.0f} s in all)")
    pairs = [
        (mine["seconds_to_target"], their["seconds_to_target"])
        for mine, their in zip(results["drilldown"], results["notebook"], strict=True)
    ]
    ratios = [theirs / mine for mine, theirs in pairs if mine and theirs]
    found = {"median": median(ratios) if ratios else None, "repeats": ratios}
    shown = f"{median(ratios):.2f} times" if ratios else "no pair of runs in which both reach it"
    click.echo(f"time_to_target_speedup: {shown} (median of {len(ratios)} of {repeats})")
    if by_the_study := by_the_studys_epoch(results, target):
        click.echo(f"  had the notebook held it when the study's run did: {median(by_the_study):.2f} times")
    return {"time_to_target_speedup": found, "time_to_target": results}


def by_the_studys_epoch(results: Mapping[str, Sequence[Mapping]], target: float) -> list[float]:
    """A ratio for each of our runs, had the notebook held the target from the epoch of the study's own run on."""
    epoch = holds_from(json.loads(STUDY.read_text())["steps"]["step4"]["test_accuracy"], target)
    seconds = [run["seconds_to_target"] / run["epoch"] for run in results["notebook"] if run["epoch"]]
    ours = [run["seconds_to_target"] for run in results["drilldown"] if run["epoch"]]
    return [epoch * mean(seconds) / mine for mine in ours] if seconds else []


def holds_from(accuracies: Sequence[float], target: float) -> int | None:
    """The first epoch (from 1) of the final unbroken stretch at or above the target; None when the last is below."""
    below = [epoch for epoch, accuracy in enumerate(accuracies, start=1) if accuracy < target]
    start = max(below, default=0) + 1
    return start if start <= len(accuracies) else None


def ours(seed: int) -> tuple[list[float], list[float]]:
    """Seconds of training and test accuracy (percent) of each epoch of step 4."""
    device, dataset = train.prepare(seed, "cpu"), data.load("mnist")
    training = train.start(step4.Network(), step4.RECIPE, dataset, seed, device)
    rows = list(train.fit(training, step4.RECIPE, dataset))
    seconds = [len(dataset.train_images) / row["images_per_second"] for row in rows]
    return seconds, [row["test_accuracy"] for row in rows]


def theirs(seed: int) -> tuple[list[float], list[float]]:
    """The same for the notebook's fourth network and recipe."""
    torch.manual_seed(seed)
    dataset, network = data.load("mnist"), Published()
    pictures = Pictures(dataset, ROTATION)
    sgd = optimizer(network)
    scheduler = StepLR(sgd, step_size=6, gamma=0.1)
    seconds, accuracies = [], []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        train_epoch(network, sgd, pictures, BATCH_SIZE)
        seconds.append(time.perf_counter() - started)
        scheduler.step()
        classifier = Classifier(network, *dataset.moments())
        accuracies.append(evaluate(classifier, dataset.test_images, dataset.test_labels).accuracy)
    return seconds, accuracies
