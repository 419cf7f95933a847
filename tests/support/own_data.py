"""Sets of data as users bring them, made from scikit-learn's digits."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drilldown.learning import idx
from drilldown.learning.data import Dataset

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NAMES = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")


def mirrored(digits: Dataset, classes: int = 10) -> dict[str, np.ndarray]:
    """The digits in mirror writing, by the keys of an .npz file: a set as good as the digits, and another one."""
    arrays = (digits.train_images.flip(2), digits.train_labels, digits.test_images.flip(2), digits.test_labels)
    kept = [digits.train_labels < classes] * 2 + [digits.test_labels < classes] * 2
    return {key: array[keep].numpy().astype(np.uint8) for key, array, keep in zip(NPZ_KEYS, arrays, kept, strict=True)}


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], packed: bool = False) -> Path:
    """Write the four IDX files, plain or .gz."""
    folder.mkdir(parents=True)
    for file, key in zip(FILES, NPZ_KEYS, strict=True):
        content = idx.encode(arrays[key])
        if packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


def write_npz(file: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write an .npz file."""
    np.savez_compressed(file, **arrays)
    return file
