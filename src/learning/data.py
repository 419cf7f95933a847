"""MNIST, or scikit-learn's digits where MNIST is out of reach, as tensors in memory, checked at every load."""

import errno
import gzip
import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from platformdirs import user_cache_path
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

from src.learning.files import write_whole
from src.learning.recipe import ParameterError

DATASETS = ("auto", "mnist", "digits")
FOLDER_VARIABLE = "DRILLDOWN_DATA"
MIRROR_VARIABLE = "MNIST_MIRROR"
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)  # the path is not one; all else is the disk's fault
MIRROR_PATIENCE = 10  # seconds without an answer

MNIST_SOURCE = "http://yann.lecun.com/exdb/mnist/"
DIGITS_SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"

# The SHA-256 of each of MNIST's four files, unpacked.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Of the 1,797 images in MNIST's frame, then their labels.
DIGITS_SHA256 = "9279aabcbd19c67e87615d9aaacb5fbbfce68e7c62c01abb7e7fa4efbcb99704"


class DataError(Exception):
    """The data cannot be had, or is not what it should be."""


class OutOfReachError(DataError):
    """No mirror gave the data: the one reason for which `auto` takes other data."""


@dataclass(frozen=True)
class Dataset:
    """Images to learn from and images to measure on.

    Images are uint8 (N, 28, 28), white on black; labels are int64 (N,).
    """

    name: str  # "mnist" or "digits"
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str  # the first 32 hexadecimal digits of a SHA-256 over the whole dataset
    source: str  # the address of those who made it
    target_accuracy: float  # percent of the test images
    split: str = "test"  # what test_images are: "test", or "validation" after hold_out()

    def hold_out(self, count: int) -> "Dataset":
        """Put the last `count` training images in the place of the test images, which go out of sight.

        Recipes are chosen on that slice, so that no choice is made on the test set.
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
        """The mean and standard deviation of the training pixels, on a scale from 0 to 1."""
        pixels = self.train_images.numpy()
        return float(pixels.mean() / 255), float(pixels.std() / 255)


def load(name: str = "auto", folder: str | Path | None = None) -> Dataset:
    """Load a dataset whole.

    Args:
        name: "mnist" (on disk, or else downloaded), "digits" (bundled with scikit-learn), or "auto": MNIST where it
            can be had, otherwise digits, with a warning.
        folder: where MNIST is kept; by default the variable DRILLDOWN_DATA, or else the user's cache folder.

    Raises: ParameterError for another name or what cannot be a folder, DataError when the data is out of reach or fails
    its SHA-256.
    """
    if name not in DATASETS:
        raise ParameterError(f"dataset is {name!r}: it takes one of {', '.join(DATASETS)}")
    if name == "digits":
        return _digits()
    try:
        root = Path(folder or os.environ.get(FOLDER_VARIABLE) or user_cache_path("drilldown")).expanduser().absolute()
    except RuntimeError as error:  # ~ of a user that there is not
        raise ParameterError(f"data_dir is {str(folder)!r}: it takes a folder ({error})") from None
    try:
        _download(root)
    except OutOfReachError as error:
        if name == "mnist":
            raise
        warnings.warn(
            f"\n{'!' * 100}\nTraining on DIGITS (scikit-learn's 1,797 small images), NOT on MNIST: {error}\n"
            f"{'!' * 100}",
            stacklevel=2,
        )
        return _digits()
    return _mnist(root / "MNIST" / "raw")


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
        # The very bytes that were checked: read once more, the file could be another one.
        header, shape = (16, (-1, 28, 28)) if "images" in file else (8, (-1,))
        tensors.append(torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape))
    train_images, train_labels, test_images, test_labels = tensors
    digest = hashlib.sha256("".join(MNIST_SHA256.values()).encode()).hexdigest()[:32]
    return Dataset(
        "mnist",
        train_images,
        train_labels.long(),
        test_images,
        test_labels.long(),
        digest,
        MNIST_SOURCE,
        target_accuracy=99.4,
    )


def _download(root: Path) -> None:
    """Bring MNIST into `root` where it is not complete: each file whole or not at all, one process at a time."""
    raw = root / "MNIST" / "raw"  # torchvision's own layout
    try:
        if _is_complete(raw):
            return  # nothing is written: the folder may be read-only
        from torchvision.datasets import MNIST  # here, as that takes seconds which only a download is worth

        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "download.lock"):
            if _is_complete(raw):
                return  # another process was faster
            fetched = {Path(archive).stem: _fetch(archive, md5, MNIST.mirrors) for archive, md5 in MNIST.resources}
            for file, content in fetched.items():
                (raw / file).unlink(missing_ok=True)  # whole or not, it must not take its room twice
                write_whole(raw / file, gzip.decompress(content))
    except OutOfReachError as error:
        raise OutOfReachError(
            f"dataset: MNIST is not in {root}, and no mirror gave it ({error}); set {MIRROR_VARIABLE} to a URL that "
            f"has its four .gz files, or use dataset=digits"
        ) from None
    except OSError as error:
        kind = ParameterError if error.errno in NO_FOLDER else DataError
        raise kind(f"data_dir is {root}: it takes a folder that can be written ({error})") from error


def _is_complete(raw: Path) -> bool:
    return all((raw / file).exists() for file in MNIST_SHA256)


def _fetch(archive: str, md5: str, mirrors: Sequence[str]) -> bytes:
    """One of MNIST's archives, from the first mirror that has it as it should be; MNIST_MIRROR comes first."""
    reasons = []
    for mirror in filter(None, [os.environ.get(MIRROR_VARIABLE), *mirrors]):
        url = f"{mirror.rstrip('/')}/{archive}"
        try:
            content = _read(url)
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(" ".join(f"{url}: {error}".split()))
        else:
            if hashlib.md5(content).hexdigest() == md5:
                return content
            reasons.append(f"{url} has a wrong checksum")
    raise OutOfReachError("; ".join(reasons))


def _read(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": "drilldown"})  # some mirrors turn Python's own name away
    with urlopen(request, timeout=MIRROR_PATIENCE) as response:
        size = int(response.headers.get("Content-Length", 0))
        with tqdm.wrapattr(response, "read", size, desc=Path(url).name, leave=False, disable=None) as watched:
            return b"".join(iter(lambda: watched.read(2**16), b""))


def _digits() -> Dataset:
    """scikit-learn's digits, brought from 8×8 into MNIST's frame: 20×20 within 28×28."""
    bunch = load_digits()
    images = np.zeros((len(bunch.images), 28, 28), np.uint8)
    for image, digit in zip(images, bunch.images, strict=True):
        small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))  # from 0–16
        image[4:24, 4:24] = small.resize((20, 20), Image.Resampling.BILINEAR)
    labels = bunch.target.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    if found != DIGITS_SHA256:
        raise DataError(f"scikit-learn's digits are not the known ones: SHA-256 {found}, expected {DIGITS_SHA256}")
    # A fixed fifth, the classes in proportion, is the test set.
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Dataset(
        "digits", train_images, train_labels, test_images, test_labels, found[:32], DIGITS_SOURCE, target_accuracy=97.0
    )
