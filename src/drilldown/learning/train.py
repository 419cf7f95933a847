"""Training: one plain loop over images in memory that yields the metrics of each epoch."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR, StepLR
from tqdm import tqdm

from drilldown.engine import accelerate
from drilldown.hardware import keep_freed_memory, select_device
from drilldown.learning.augment import augment
from drilldown.learning.average import WeightAverage
from drilldown.learning.capture import CapturedUpdate, CudaRecorder, Recorder
from drilldown.learning.classifier import Classifier
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import Evaluation, compute_answers
from drilldown.learning.optimizer import SGD
from drilldown.learning.recipe import Recipe
from drilldown.learning.update import Update

LOSS_INTERVAL = 50  # updates between two looks at the loss on a CPU; a GPU would wait, so it is looked at once an epoch
EMA_INTERVAL = 4  # updates between two updates of the average: a quarter of the cost, and as accurate
BN_IMAGES = 10_000  # for the batch statistics of averaged weights; all of MNIST gives the same loss
BN_BATCH_SIZE = 1000  # the statistics depend on it: each batch has its own
AUGMENT_BATCHES = 16  # batches augmented at once: one large operation is faster than many small ones


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch: losses in nats, accuracies in percent."""

    epoch: int  # from 1
    train_loss: float
    train_accuracy: float
    eval_loss: float  # on the test images, or on the validation slice
    eval_accuracy: float
    learning_rate: float  # of the epoch's last update
    epoch_seconds: float  # evaluation included
    images_per_second: float  # training images, evaluation excluded

    def named(self, split: str) -> dict[str, float]:
        """Return the metrics by the names under which they are logged; `split` is what the evaluation was done on."""
        return {
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            "train_accuracy": self.train_accuracy,
            f"{split}_loss": self.eval_loss,
            f"{split}_accuracy": self.eval_accuracy,
            "learning_rate": self.learning_rate,
            "epoch_seconds": self.epoch_seconds,
            "images_per_second": self.images_per_second,
        }


@dataclass
class TrainState:
    """Everything that changes in a training."""

    classifier: Classifier
    optimizer: Optimizer
    scheduler: LRScheduler
    average: WeightAverage | None
    generator: torch.Generator  # of the order of the images and of their augmentation
    history: list[EpochMetrics] = field(default_factory=list)
    evaluation: Evaluation | None = None  # of `eval_model` after the last epoch; a saved state has none

    @property
    def accuracies(self) -> list[float]:
        """Of each epoch, on the images that it was evaluated on, in percent."""
        return [row.eval_accuracy for row in self.history]

    @property
    def eval_model(self) -> Classifier:
        """The classifier that is evaluated and registered: the average of the weights, if the recipe has one."""
        if self.average is None:
            return self.classifier
        averaged: Classifier = self.average.module  # type: ignore[assignment]
        return averaged


def prepare(seed: int, device: str = "auto", threads: int | None = None) -> torch.device:
    """Seed torch, make it deterministic, and select the device; call it before the network is created.

    Raises ParameterError when this machine does not have the device.
    """
    selected = select_device(device)
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return selected


def init_state(network: nn.Module, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device) -> TrainState:
    """Create the state in which the training of a new network starts."""
    classifier = Classifier(network, *dataset.moments()).to(device)
    optimizer = SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    epoch_updates = _epoch_updates(recipe, dataset.train_images)
    average = None
    if recipe.ema_epochs:
        # The time constant of the average, in updates of the average.
        decay = 1 - 1 / max(1, recipe.ema_epochs * math.ceil(epoch_updates / EMA_INTERVAL))
        average = WeightAverage(classifier, decay)
    scheduler = _make_scheduler(optimizer, recipe, epoch_updates)
    return TrainState(classifier, optimizer, scheduler, average, torch.Generator().manual_seed(seed))


def _epoch_updates(recipe: Recipe, images: Tensor) -> int:
    return math.ceil(len(images) / recipe.batch_size)


def _make_scheduler(optimizer: Optimizer, recipe: Recipe, epoch_updates: int) -> LRScheduler:
    total = recipe.epochs * epoch_updates
    warmup = recipe.warmup_fraction
    match recipe.schedule:
        case "constant":
            return ConstantLR(optimizer, factor=1)
        case "step":
            return StepLR(optimizer, step_size=recipe.lr_step_epochs * epoch_updates, gamma=0.1)
    if warmup * total == 1:
        warmup = 2 / total  # with a single update of warm-up, OneCycleLR divides by zero
    match recipe.schedule:
        case "one-cycle":
            return OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=warmup, cycle_momentum=False)
        case "quadratic":
            return LambdaLR(optimizer, partial(lr_factor, warmup_fraction=warmup, total=total, power=2))
        case "cubic":
            return LambdaLR(optimizer, partial(lr_factor, warmup_fraction=warmup, total=total, power=3))


def lr_factor(update: int, warmup_fraction: float, total: int, power: int) -> float:
    """Return the learning rate as a share of its peak: a linear warm-up, then a polynomial decay to 0."""
    warmup = warmup_fraction * total
    return min((update + 1) / warmup, ((total - update) / (total - warmup)) ** power)


def fit(
    state: TrainState, recipe: Recipe, dataset: Dataset, engine: str = "auto", graphs: bool = True
) -> Iterator[EpochMetrics]:
    """Train from the last finished epoch to the recipe's last one, and yield the metrics of each epoch.

    On CUDA the computation is captured as graphs, unless `graphs` is false; the weights are the same either way. The
    test images are only measured on: they never influence the weights. Raises DivergedError, with epoch and update,
    when the loss is not finite.
    """
    with closing(fit_stepwise(state, recipe, dataset, engine, graphs)) as steps:
        for metrics in steps:
            if metrics is not None:
                yield metrics


def fit_stepwise(
    state: TrainState, recipe: Recipe, dataset: Dataset, engine: str = "auto", graphs: bool = True
) -> Generator[EpochMetrics | None, None, None]:
    """Do what `fit` does, and yield None after each update, too."""
    classifier, device = state.classifier, state.classifier.mean.device
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    test_images, test_labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    recorder = CudaRecorder() if graphs and device.type == "cuda" else None
    update = _make_update(state, recipe, _epoch_updates(recipe, images), recorder)
    answers: list[Tensor] = []

    def refresh_statistics() -> None:
        update_bn_statistics(state.eval_model, images)

    def answer() -> None:
        answers[:] = compute_answers(state.eval_model, test_images, test_labels)

    refresh, measure = refresh_statistics, answer
    has_statistics = bool(state.average and _batch_norms(state.eval_model))  # torch warns of an empty graph
    if recorder:
        refresh, measure = recorder.captured(refresh), recorder.captured(measure)
    with accelerate(classifier, state.eval_model, engine=engine) as acceleration:
        for epoch in range(len(state.history) + 1, recipe.epochs + 1):
            started = time.perf_counter()
            with acceleration.training_threads():
                train_loss, train_accuracy, learning_rate = yield from _train_epoch(
                    state, recipe, update, images, labels, epoch
                )
                if has_statistics:
                    refresh()
                if recorder:
                    torch.cuda.current_stream().synchronize()  # so that evaluation is not charged for it
            trained = time.perf_counter()
            measure()
            state.evaluation = evaluation = Evaluation.collect(test_labels, *answers)
            metrics = EpochMetrics(
                epoch=epoch,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                eval_loss=evaluation.loss,
                eval_accuracy=evaluation.accuracy,
                learning_rate=learning_rate,
                epoch_seconds=time.perf_counter() - started,
                images_per_second=len(images) / (trained - started),
            )
            state.history.append(metrics)
            yield metrics


def _make_update(state: TrainState, recipe: Recipe, epoch_updates: int, recorder: Recorder | None) -> Update:
    parts = state.classifier, state.optimizer, state.average, recipe.label_smoothing, epoch_updates
    return CapturedUpdate(*parts, recorder) if recorder else Update(*parts)


def _train_epoch(
    state: TrainState, recipe: Recipe, update: Update, images: Tensor, labels: Tensor, epoch: int
) -> Generator[None, None, tuple[float, float, float]]:
    """Train for one epoch; return its mean loss, its accuracy, and the learning rate of its last update."""
    state.classifier.train()
    update.start_epoch()
    seen, last = 0, _epoch_updates(recipe, images)
    interval = LOSS_INTERVAL if images.device.type == "cpu" else last
    with _progress_bar(epoch, recipe, last) as bar:
        for number, (pixels, digits) in enumerate(_batches(images, labels, recipe, state.generator), 1):
            learning_rate = float(state.scheduler.get_last_lr()[0])
            update.learning_rate.fill_(learning_rate)
            update(pixels, digits, average=number % EMA_INTERVAL == 0 or number == last)
            state.scheduler.step()
            seen += len(digits)
            bar.update()
            if number % interval == 0 or number == last:
                mean_loss, accuracy = update.figures(epoch, number, seen)
                bar.set_postfix(loss=f"{mean_loss:.4f}", accuracy=f"{accuracy:.2f} %", refresh=False)
            yield
    return mean_loss, accuracy, learning_rate


def _batch_norms(classifier: Classifier) -> list[_BatchNorm]:
    return [layer for layer in classifier.modules() if isinstance(layer, _BatchNorm)]


@torch.no_grad()
def update_bn_statistics(classifier: Classifier, images: Tensor) -> None:
    """Compute batch normalization's statistics from training images without augmentation, uint8 (N, 28, 28).

    Averaged weights need their own statistics (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018, section 3.2). The test images are not augmented either, so these fit them best. torch's
    update_bn does the same, but reads a counter from the device in each layer.
    """
    layers = _batch_norms(classifier)
    momenta, training = [layer.momentum for layer in layers], classifier.training
    for layer in layers:
        layer.reset_running_stats()
    classifier.train()
    for number, batch in enumerate(images[:BN_IMAGES].split(BN_BATCH_SIZE), 1):
        for layer in layers:
            layer.momentum = 1 / number  # the mean over the batches
        classifier(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    classifier.train(training)


def _batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the training images once, in random order and augmented: pixels float (B, 28, 28), labels (B,)."""
    order = torch.randperm(len(images), generator=generator).to(images.device, non_blocking=True)
    for chunk in order.split(recipe.batch_size * AUGMENT_BATCHES):
        pixels = augment(
            images[chunk].float(), generator, rotation=recipe.rotation, translate=recipe.translate, scale=recipe.scale
        )
        yield from zip(pixels.split(recipe.batch_size), labels[chunk].split(recipe.batch_size), strict=True)


def _progress_bar(epoch: int, recipe: Recipe, updates: int) -> "tqdm[None]":
    """Return the progress bar of an epoch, silent without a terminal."""
    return tqdm(total=updates, desc=f"epoch {epoch}/{recipe.epochs}", unit="batch", leave=False, disable=None)
