"""A dataset in a file that several processes map into their memory, so that they share its pages."""

from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import torch

from drilldown.learning.data import Dataset


def write(dataset: Dataset, file: BinaryIO) -> None:
    """Write the whole dataset to the file."""
    torch.save({field.name: getattr(dataset, field.name) for field in fields(dataset)}, file)
    file.flush()


def read(file: str | Path) -> Dataset:
    """Map the file into memory as a dataset. What this process changes in it stays in this process."""
    return Dataset(**torch.load(file, mmap=True, weights_only=True))
