"""MNIST and scikit-learn's digits as tensors in memory; a checksum is verified at every load."""

import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from drilldown.choices import DATASETS
from drilldown.errors import DataError, ParameterError, UnreachableDataError
from drilldown.learning.download import ensure_mnist

FOLDER_VARIABLE = "DRILLDOWN_DATA"

MNIST_SOURCE = "http://yann.lecun.com/exdb/mnist/"
DIGITS_SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"

# SHA-256 of each of MNIST's four files, unpacked.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# SHA-256 of the 1,797 images at MNIST's size, followed by their labels.
DIGITS_SHA256 = "9279aabcbd19c67e87615d9aaacb5fbbfce68e7c62c01abb7e7fa4efbcb99704"


@dataclass(frozen=True)
class Dataset:
    """Images to train on and images to evaluate on.

    Images are uint8 (N, 28, 28), white on black; labels are int64 (N,).
    """

    name: str  # "mnist" or "digits"
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str  # the first 32 hexadecimal digits of a SHA-256 of the whole dataset
    source: str  # address of the publisher
    target_accuracy: float  # percent of the test images
    split: str = "test"  # what test_images are: "test", or "validation" after hold_out()

    def hold_out(self, count: int) -> "Dataset":
        """Return a dataset whose test images are the last `count` training images; without the real test images.

        Recipes are chosen on that slice, so that the test set decides nothing.
        """
        if not 0 <= count < len(self.train_images):
            raise ParameterError(
                f"validation is {count}: it takes a whole number from 0 to {len(self.train_images) - 1}"
            )
        if count == 0:
            return self
        return replace(
            self,
            train_images=self.train_images[:-count],
            train_labels=self.train_labels[:-count],
            test_images=self.train_images[-count:],
            test_labels=self.train_labels[-count:],
            split="validation",
        )

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels, on a scale from 0 to 1."""
        return self._moments

    @cached_property  # many trainings in one process ask for them
    def _moments(self) -> tuple[float, float]:
        counts = torch.bincount(
            self.train_images.flatten(), minlength=256
        ).numpy()  # pixels of each value: five times faster than a mean
        values, total = np.arange(256), counts.sum()
        mean = (counts * values).sum() / total
        variance = (counts * (values - mean) ** 2).sum() / total
        return float(mean / 255), float(np.sqrt(variance) / 255)


def load(name: str = "auto", folder: str | Path | None = None) -> Dataset:
    """Load a dataset into memory.

    Args:
        name: "mnist" (from disk, or else downloaded), "digits" (bundled with scikit-learn), or "auto": MNIST, or
            digits with a warning when MNIST is not on disk and no mirror has it.
        folder: where MNIST is kept; default: the variable DRILLDOWN_DATA, or else the user's cache folder.

    Raises: ParameterError for an unknown name or a path that cannot be a folder, DataError when the data cannot be had
    or has a wrong checksum.
    """
    if name not in DATASETS:
        raise ParameterError(f"dataset is {name!r}: it takes one of {', '.join(DATASETS)}")
    if name == "digits":
        return _digits()
    try:
        root = Path(folder or os.environ.get(FOLDER_VARIABLE) or user_cache_path("drilldown")).expanduser().absolute()
    except RuntimeError as error:  # ~ of an unknown user
        raise ParameterError(f"data_dir is {str(folder)!r}: it takes a folder ({error})") from None
    try:
        raw = ensure_mnist(root, MNIST_SHA256)
    except UnreachableDataError as error:
        if name == "mnist":
            raise
        warnings.warn(
            f"\n{'!' * 100}\nTraining on DIGITS (scikit-learn's 1,797 small images), NOT on MNIST: {error}\n"
            f"{'!' * 100}",
            stacklevel=2,
        )
        return _digits()
    return _mnist(raw)


def _mnist(raw: Path) -> Dataset:
    tensors = []
    for file, expected in MNIST_SHA256.items():
        try:
            content = bytearray((raw / file).read_bytes())
        except OSError as error:
            raise DataError(f"data_dir: {raw / file} cannot be read ({error.strerror})") from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise DataError(
                f"data_dir: {raw / file} is damaged: its SHA-256 is {found}, MNIST's is {expected}; "
                "delete the file, and the next run downloads it again"
            )
        # From the bytes that were checked: the file may change before a second read.
        header, shape = (16, (-1, 28, 28)) if "images" in file else (8, (-1,))
        tensors.append(torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape))
    train_images, train_labels, test_images, test_labels = tensors
    return Dataset(
        name="mnist",
        train_images=train_images,
        train_labels=train_labels.long(),
        test_images=test_images,
        test_labels=test_labels.long(),
        digest=hashlib.sha256("".join(MNIST_SHA256.values()).encode()).hexdigest()[:32],
        source=MNIST_SOURCE,
        target_accuracy=99.4,
    )


def _digits() -> Dataset:
    """Load scikit-learn's digits, scaled from 8×8 to MNIST's size: 20×20 pixels within 28×28."""
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.zeros((len(bunch.images), 28, 28), np.uint8)
    for image, digit in zip(images, bunch.images, strict=True):
        small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))  # from 0–16
        image[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BILINEAR))
    labels = bunch.target.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    if found != DIGITS_SHA256:
        raise DataError(f"scikit-learn's digits are not the known ones: SHA-256 {found}, expected {DIGITS_SHA256}")
    # A fixed fifth, stratified by class, is the test set.
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Dataset(
        name="digits",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        digest=found[:32],
        source=DIGITS_SOURCE,
        target_accuracy=97.0,
    )
