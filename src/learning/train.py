"""Training: one plain loop over images in memory, which hands out a row of figures an epoch."""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from src.learning.augment import augment
from src.learning.classifier import Classifier
from src.learning.data import Dataset
from src.learning.evaluate import evaluate, percent
from src.learning.kernels import fast_kernels
from src.learning.recipe import ParameterError, Recipe

DEVICES = ("auto", "cpu", "cuda")
REPORT_EVERY = 50  # updates between two looks at the loss: a look makes a GPU wait
AVERAGE_EVERY = 4  # updates; the average is as good, and costs a quarter
STATISTICS_IMAGES = 10_000  # for averaged weights' batch statistics; with all of MNIST's the loss is the same
STATISTICS_BATCH = 1000  # of them at once; each batch has statistics of its own, so it changes the result
AUGMENT_TOGETHER = 16  # batches; one large operation is faster than many small ones


class DivergedError(Exception):
    """The loss is no longer a finite number."""


@dataclass
class Training:
    """Everything that changes while a network learns."""

    classifier: Classifier
    optimizer: Optimizer
    scheduler: LRScheduler
    average: AveragedModel | None
    generator: torch.Generator  # of the order of the images and of their augmentation
    history: list[dict[str, float]] = field(default_factory=list)  # a row an epoch

    @property
    def result(self) -> Classifier:
        """The classifier that is measured and handed out: the averaged one, if the recipe averages."""
        return self.average.module if self.average else self.classifier


def prepare(seed: int, device: str = "auto", threads: int | None = None) -> torch.device:
    """Seed torch, make it repeatable, and choose where it computes. Call it before the network is made.

    Raises ParameterError when the device or the number of threads cannot be had.
    """
    if device not in DEVICES:
        raise ParameterError(f"device is {device!r}: it takes one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ParameterError("device is 'cuda': this machine has no CUDA device; it takes cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device(device)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep what it frees, where there is glibc: otherwise every large tensor is new pages from the system.

    That is about a tenth of the training time on a CPU. The options and their limits are those of `man mallopt`; older
    glibc refuses a threshold above its limit, and would then stay at 128 KiB for good, as the other option is set.
    """
    trim_threshold, mmap_threshold, most, limit = -1, -3, 2**30, 2**25
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(mmap_threshold, most):
            mallopt(mmap_threshold, limit)
        mallopt(trim_threshold, most)


def start(network: nn.Module, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> Training:
    """Make what `fit` needs for a fresh network."""
    classifier = Classifier(network, *dataset.moments()).to(device)
    optimizer = SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    updates = -(-len(dataset.train_images) // recipe.batch_size)  # an epoch
    total = recipe.epochs * updates
    rise = recipe.rise if recipe.rise * total != 1 else 2 / total  # in one update, OneCycleLR divides by zero
    scheduler = {
        "constant": lambda: ConstantLR(optimizer, factor=1),
        "step": lambda: StepLR(optimizer, step_size=recipe.step_epochs * updates, gamma=0.1),
        "one-cycle": lambda: OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=rise, cycle_momentum=False),
        "quadratic": lambda: LambdaLR(optimizer, partial(share_of_peak, rise=rise, total=total, power=2)),
        "cubic": lambda: LambdaLR(optimizer, partial(share_of_peak, rise=rise, total=total, power=3)),
    }[recipe.schedule]()
    average = None
    if recipe.averaging:
        decay = 1 - 1 / max(1, recipe.averaging * -(-updates // AVERAGE_EVERY))
        average = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return Training(classifier, optimizer, scheduler, average, torch.Generator().manual_seed(seed))


def share_of_peak(update: int, rise: float, total: int, power: int) -> float:
    """A learning rate, as a share of its peak: it climbs in a line for so many of all updates, and falls by a power."""
    return min((update + 1) / (rise * total), ((total - update) / (total - rise * total)) ** power)


def fit(training: Training, recipe: Recipe, dataset: Dataset) -> Iterator[dict[str, float]]:
    """Train from the last finished epoch to the recipe's last one, and yield each epoch's row.

    A row holds the epoch (from 1), losses in nats, accuracies in percent, the learning rate of its last update,
    seconds (with the evaluation) and training images a second. Nothing here depends on the test figures.

    Raises DivergedError at a loss that is not finite, with its epoch and update.
    """
    classifier, device = training.classifier, training.classifier.mean.device
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    test_images, test_labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    with fast_kernels(classifier):
        pass  # the loops are loaded now, or compiled, so that the first epoch takes no longer than the others
    for epoch in range(len(training.history) + 1, recipe.epochs + 1):
        started = time.perf_counter()
        classifier.train()
        losses, correct, seen = [], 0, 0
        with fast_kernels(classifier), progress_bar(epoch, recipe, len(images)) as bar:
            for pixels, digits in batches(images, labels, recipe, training.generator):
                logits = classifier.logits(pixels)  # (B, 10)
                loss = F.cross_entropy(logits, digits, label_smoothing=recipe.label_smoothing)
                training.optimizer.zero_grad()
                loss.backward()
                training.optimizer.step()
                learning_rate = training.scheduler.get_last_lr()[0]
                training.scheduler.step()
                losses.append(loss.detach())
                seen += len(digits)
                if training.average and (len(losses) % AVERAGE_EVERY == 0 or seen == len(images)):
                    training.average.update_parameters(classifier)
                correct += (logits.detach().argmax(1) == digits).sum()
                bar.update()
                if len(losses) % REPORT_EVERY == 0 or seen == len(images):
                    mean_loss = finite_mean(losses, epoch)
                    bar.set_postfix(loss=f"{mean_loss:.4f}", accuracy=f"{percent(correct, seen):.2f} %", refresh=False)
        if training.average:
            take_statistics(training.result, images)
        trained = time.perf_counter()
        evaluation = evaluate(training.result, test_images, test_labels)
        row = {
            "epoch": epoch,
            "train_loss": mean_loss,
            "train_accuracy": percent(correct, seen),
            f"{dataset.split}_loss": evaluation.loss,
            f"{dataset.split}_accuracy": evaluation.accuracy,
            "learning_rate": learning_rate,
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": seen / (trained - started),
        }
        training.history.append(row)
        yield row


def take_statistics(classifier: Classifier, images: Tensor) -> None:
    """Take batch normalisation's statistics from training images as they are, uint8 (N, 28, 28).

    Averaged weights need statistics of their own (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018, section 3.2). Those of images as they are fit unaugmented images better than augmented ones'.
    """
    with fast_kernels(classifier):
        update_bn(images[:STATISTICS_IMAGES].split(STATISTICS_BATCH), classifier)


def batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images once, in random order, augmented: pixels float (B, 28, 28) with their labels (B,)."""
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for chunk in order.split(recipe.batch_size * AUGMENT_TOGETHER):
        pixels = augment(
            images[chunk].float(), generator, rotation=recipe.rotation, shift=recipe.shift, scale=recipe.scale
        )
        yield from zip(pixels.split(recipe.batch_size), labels[chunk].split(recipe.batch_size), strict=True)


def progress_bar(epoch: int, recipe: Recipe, images: int) -> tqdm:
    """An epoch's bar, a step a batch; where nobody watches (no terminal) it stays silent."""
    total = -(-images // recipe.batch_size)
    return tqdm(total=total, desc=f"epoch {epoch}/{recipe.epochs}", unit="batch", leave=False, disable=None)


def finite_mean(losses: list[torch.Tensor], epoch: int) -> float:
    """The mean of an epoch's losses so far; raises DivergedError at the first that is not finite."""
    values = torch.stack(losses)
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        update = int(wrong[0]) + 1
        raise DivergedError(f"training diverged: the loss of epoch {epoch}, update {update} is {values[update - 1]}")
    return values.mean().item()
