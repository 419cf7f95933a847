"""Training time until the test accuracy stays at or above the target: step 4 against the notebook's step 4.

It ends with the first epoch from which on every epoch reaches the target. Both are trained to their last epoch on the
same cores, in turn, each in a new process; evaluation is not timed. The study's own run held the target from an earlier
epoch than the notebook does here, so a second ratio uses that epoch.
"""

import json
import time
from collections.abc import Mapping, Sequence
from statistics import mean, median

import click
import torch
from torch.optim.lr_scheduler import StepLR

from benchmarks.epoch import in_new_process
from benchmarks.notebook import StudyNetwork, TransformedImages, make_optimizer, train_epoch
from drilldown.experiments.records import STUDY
from drilldown.learning import data, train
from drilldown.learning.classifier import Classifier
from drilldown.learning.evaluate import evaluate
from drilldown.steps import load_step

EPOCHS, BATCH_SIZE, ROTATION = 20, 64, 7.0  # the notebook's


def measure(repeats: int) -> dict:
    """Train by both procedures with each seed, and print when the target holds."""
    target = data.load("mnist").target_accuracy
    results = {"drilldown": [], "notebook": []}
    for seed in range(repeats):
        for name, procedure in (("drilldown", train_drilldown), ("notebook", train_notebook)):
            seconds, accuracies = in_new_process(procedure, seed)
            epoch = holds_from(accuracies, target)
            total = sum(seconds[:epoch]) if epoch else None
            results[name].append(
                {"seed": seed, "epoch": epoch, "seconds_to_target": total, "test_accuracy": accuracies}
            )
            outcome = f"{total:6.1f} s, from epoch {epoch} on" if epoch else "below the target at the end"
            click.echo(f"  seed {seed}: {name:10} {outcome} (of {len(accuracies)}; {sum(seconds):.0f} s in all)")
    pairs = [
        (ours["seconds_to_target"], theirs["seconds_to_target"])
        for ours, theirs in zip(results["drilldown"], results["notebook"], strict=True)
    ]
    ratios = [theirs / ours for ours, theirs in pairs if ours and theirs]
    speedup = {"median": median(ratios) if ratios else None, "repeats": ratios}
    shown = f"{median(ratios):.2f} times" if ratios else "no seed with which both reach it"
    click.echo(f"time_to_target_speedup: {shown} (median of {len(ratios)} of {repeats})")
    if by_study := by_the_studys_epoch(results, target):
        click.echo(f"  if the notebook held it from the study's epoch on: {median(by_study):.2f} times")
    return {"time_to_target_speedup": speedup, "time_to_target": results}


def by_the_studys_epoch(results: Mapping[str, Sequence[Mapping]], target: float) -> list[float]:
    """Return a ratio for each of our runs, as if the notebook held the target from the epoch of the study's run on."""
    epoch = holds_from(json.loads(STUDY.read_text())["steps"]["step4"]["test_accuracy"], target)
    seconds = [run["seconds_to_target"] / run["epoch"] for run in results["notebook"] if run["epoch"]]
    ours = [run["seconds_to_target"] for run in results["drilldown"] if run["epoch"]]
    return [epoch * mean(seconds) / own for own in ours] if seconds else []


def holds_from(accuracies: Sequence[float], target: float) -> int | None:
    """Return the first epoch (from 1) from which on all reach the target; None if the last one does not."""
    below = [epoch for epoch, accuracy in enumerate(accuracies, start=1) if accuracy < target]
    start = max(below, default=0) + 1
    return start if start <= len(accuracies) else None


def train_drilldown(seed: int) -> tuple[list[float], list[float]]:
    """Train step 4; return the seconds of training and the test accuracy (percent) of each epoch."""
    step, device, dataset = load_step("step4"), train.prepare(seed, "cpu"), data.load("mnist")
    state = train.init_state(step.network(), step.recipe, dataset, seed, device)
    rows = list(train.fit(state, step.recipe, dataset))
    seconds = [len(dataset.train_images) / row.images_per_second for row in rows]
    return seconds, [row.eval_accuracy for row in rows]


def train_notebook(seed: int) -> tuple[list[float], list[float]]:
    """Train the study's fourth network by its recipe; return the same as `train_drilldown`."""
    torch.manual_seed(seed)
    dataset, network = data.load("mnist"), StudyNetwork()
    images = TransformedImages(dataset, ROTATION)
    optimizer = make_optimizer(network)
    scheduler = StepLR(optimizer, step_size=6, gamma=0.1)
    seconds, accuracies = [], []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        train_epoch(network, optimizer, images, BATCH_SIZE)
        seconds.append(time.perf_counter() - started)
        scheduler.step()
        classifier = Classifier(network, *dataset.moments())
        accuracies.append(evaluate(classifier, dataset.test_images, dataset.test_labels).accuracy)
    return seconds, accuracies
