"""The words that some parameters take. A module of its own, so that the command line knows them without PyTorch."""

import os
import re
import unicodedata
from pathlib import Path

DATASETS = ("auto", "mnist", "digits")
DEVICES = ("auto", "cpu", "cuda")
PRUNERS = ("none", "hyperband", "median")
FIRST_CONFIRMED_SEED = 1000  # added to the user's seed: no trial of a search is trained with it
ENGINES = ("auto", "numba", "torch")
DEFAULT_MODEL = "mnist-cnn"  # the registered model that a command takes unless it is told another
DATASET_HINT = f"{', '.join(DATASETS)}, or the path of a folder with IDX files or of an .npz file"
MAX_NAME = 60  # characters of a dataset's name


def dataset_path(text: str) -> Path:
    """Return the absolute path of data of the user's own; a link keeps its name, which the dataset takes."""
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 (of an unknown user, ~ stays)


def dataset_name(path: str | Path) -> str:
    """Return the name of the dataset at a path: that of its folder or .npz file, in a to z, 0 to 9, "-", "_" and ".".

    Names of runs and registered models are made of it. A name without any of these characters becomes ""; a name that
    this function returned stays as it is.
    """
    plain = unicodedata.normalize("NFKD", Path(path).name).encode("ascii", "ignore").decode().lower()  # é becomes e
    name = re.sub(r"[^a-z0-9_.]+", "-", plain)[:MAX_NAME]
    return re.sub(r"^[-_.]+|([-_.]|\.npz)+$", "", name)
