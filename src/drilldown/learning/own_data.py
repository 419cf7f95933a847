"""Data of the user's own: IDX files as MNIST's, or an .npz file as Keras writes it; checked, and read into memory."""

import gzip
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from drilldown.choices import DATASET_HINT, DATASETS, dataset_name
from drilldown.errors import DataError, ParameterError
from drilldown.learning import idx

MAX_IMAGES = 1_000_000  # 784 MB in memory
MIN_IMAGES = 2  # the exported model is traced with two
MAX_CLASSES = 10  # the networks have so many outputs
MAX_CLASS_NAME = 40  # characters
MAX_CLASSES_BYTES = 10_000  # of classes.txt, and of one name in an .npz file
CLASSES_FILE = "classes.txt"

PARTS = (("train", "images"), ("train", "labels"), ("t10k", "images"), ("t10k", "labels"))
# MNIST's names, also with a dot, a prefix or an ending as KMNIST, QMNIST and others have it.
FILE = re.compile(r"(?:[\w-]+-)?(train|t10k|test)-(images|labels)[-.]idx\d-(?:ubyte|int)(?:\.gz)?", re.I)
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")  # Keras'
QMNIST_COLUMNS = 8  # QMNIST's labels say where a digit comes from, too; the first column is the class


@dataclass(frozen=True)
class OwnData:
    """What a folder or a file holds."""

    name: str
    train_images: np.ndarray  # uint8 (N, 28, 28)
    train_labels: np.ndarray  # uint8 (N,)
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]  # the name of each label, from 0 on

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Images and labels, in the order of MNIST's files."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels


def read(path: Path) -> OwnData:
    """Read a folder with four IDX files, plain or .gz, or an .npz file.

    Raises: ParameterError when the path cannot be one of them, or gives the dataset no name; DataError when its content
    is not what it says.
    """
    name = dataset_name(path)
    if not name or name in DATASETS:
        what = f"the name {name!r} belongs to other data" if name else "its name has no letter or digit of ASCII"
        raise ParameterError(f"dataset is {str(path)!r}: {what}; rename the {'folder' if path.is_dir() else 'file'}")
    if path.is_dir():
        arrays, names = _read_folder(path)
    elif path.is_file() and path.suffix.lower() == ".npz":
        arrays, names = _read_npz(path)
    else:
        what = "is neither" if path.exists() else "does not exist"
        raise ParameterError(f"dataset is {str(path)!r}: it takes {DATASET_HINT}, and this path {what}")
    train_images, train_labels, test_images, test_labels = arrays
    with _explain(path):
        for part, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
            if len(images) != len(labels):
                raise DataError(f"has {len(images):,} {part} images and {len(labels):,} {part} labels")
            if labels.min() < 0 or labels.max() >= MAX_CLASSES:
                found = f"from {labels.min()} to {labels.max()}"
                raise DataError(f"has {part} labels {found}: they must be from 0 to {MAX_CLASSES - 1}")
            if images.max() == 1:
                raise DataError(f"has {part} images with pixels from 0 to 1: they must be from 0 to 255")
        if train_images.min() == train_images.max():
            raise DataError(f"has train images that are all of one color: every pixel is {train_images.min()}")
        highest = int(max(train_labels.max(), test_labels.max()))
        if names and len(names) <= highest:
            raise DataError(f"has {len(names)} class names, and labels up to {highest}")
    classes = tuple(names or map(str, range(highest + 1)))
    return OwnData(
        name, train_images, train_labels.astype(np.uint8), test_images, test_labels.astype(np.uint8), classes
    )


def _read_folder(folder: Path) -> tuple[list[np.ndarray], Sequence[str]]:
    arrays, files = [], _find_files(folder)
    for part, file in files.items():
        with _explain(file), gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            arrays.append(_read_idx(stream, part[1]))  # type: ignore[arg-type]  # a GzipFile is a BinaryIO in all but name
    classes = files["train", "images"].with_name(CLASSES_FILE)
    if not classes.is_file():
        return arrays, ()
    with _explain(classes), classes.open("rb") as stream:
        content = stream.read(MAX_CLASSES_BYTES).decode("utf-8-sig")
        return arrays, _check_names(content.rstrip().split("\n"))


def _find_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Find the four files in the folder, or in the folder `raw` in it, where torchvision puts them."""
    with _explain(folder):
        files = [file for file in sorted(folder.iterdir()) if FILE.fullmatch(file.name) and file.is_file()]
    if not files and (folder / "raw").is_dir():
        return _find_files(folder / "raw")
    found: dict[tuple[str, str], Path] = {}
    for file in files:  # an unpacked file comes before its archive
        match = FILE.fullmatch(file.name)
        assert match
        part = (match[1].lower().replace("test", "t10k"), match[2].lower())
        first = found.setdefault(part, file)
        if first.name.removesuffix(".gz") != file.name.removesuffix(".gz"):
            raise DataError(f"dataset: {folder} has both {first.name} and {file.name}: it takes four files of one set")
    for split, kind in PARTS:
        if (split, kind) not in found:
            name = f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
            raise DataError(f"dataset: {folder} has no {name}, nor {name}.gz")
    return {part: found[part] for part in PARTS}


def _read_idx(stream: BinaryIO, kind: str) -> np.ndarray:
    shape, dtype = idx.read_header(stream)
    is_qmnist = kind == "labels" and shape[1:] == (QMNIST_COLUMNS,)
    _check_form(kind, shape[:1] if is_qmnist else shape, dtype)
    values = idx.read_values(stream, shape, dtype)
    return values[:, 0] if is_qmnist else values


def _read_npz(file: Path) -> tuple[list[np.ndarray], Sequence[str]]:
    with _explain(file):
        archive = zipfile.ZipFile(file)
    with archive:
        members = set(archive.namelist())
        for key in NPZ_KEYS:
            if f"{key}.npy" not in members:
                raise DataError(f"dataset: {file} has no array {key}: it takes {', '.join(NPZ_KEYS)}")
        arrays = []
        for key in NPZ_KEYS:
            kind = "images" if key.startswith("x") else "labels"
            with _explain(f"{file}: {key}"), archive.open(f"{key}.npy") as stream:
                arrays.append(_read_npy(stream, partial(_check_form, kind)))
        if "classes.npy" not in members:
            return arrays, ()
        with _explain(f"{file}: classes"), archive.open("classes.npy") as stream:
            return arrays, _check_names(_read_npy(stream, _check_names_form).tolist())


def _read_npy(stream: IO[bytes], check: Callable[[idx.Shape, np.dtype], None]) -> np.ndarray:
    """Read an array once its shape and type are checked: nothing is unpickled, and no absurd size is allocated."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"has version {version} of NumPy's format: 1.0 and 2.0 are read")
    shape, in_columns, dtype = readers[version](stream)
    check(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytearray(stream.read(size + 1))
    if len(content) != size:
        raise DataError(f"has the shape {shape} by its header, and not the {size:,} bytes of that")
    return np.ascontiguousarray(np.frombuffer(content, dtype).reshape(shape, order="F" if in_columns else "C"))


def _check_form(kind: str, shape: idx.Shape, dtype: np.dtype) -> None:
    """Raise DataError unless this can be images, uint8 (N, 28, 28), or labels, whole numbers (N,)."""
    if kind == "images" and dtype != np.uint8:
        raise DataError(f"has values of type {dtype}: images are uint8, from 0 to 255")
    if kind == "labels" and dtype.kind not in "iu":
        raise DataError(f"has values of type {dtype}: labels are whole numbers")
    if shape[1:] != ((28, 28) if kind == "images" else ()) or not shape:
        raise DataError(f"has the shape {shape}: {kind} have {'(N, 28, 28)' if kind == 'images' else '(N,)'}")
    if not MIN_IMAGES <= shape[0] <= MAX_IMAGES:
        raise DataError(f"has {shape[0]:,} {kind}: it takes from {MIN_IMAGES} to {MAX_IMAGES:,}")


def _check_names_form(shape: idx.Shape, dtype: np.dtype) -> None:
    if dtype.kind != "U" or len(shape) != 1 or shape[0] > MAX_CLASSES or dtype.itemsize > MAX_CLASSES_BYTES:
        raise DataError(f"has the type {dtype} and the shape {shape}: class names are at most {MAX_CLASSES} strings")


def _check_names(lines: Sequence[str]) -> list[str]:
    names = [line.strip() for line in lines]
    if len(names) > MAX_CLASSES:
        raise DataError(f"has {len(names)} class names: it takes at most {MAX_CLASSES}")
    for name in names:
        if not name or len(name) > MAX_CLASS_NAME or not name.isprintable():
            raise DataError(f"has the class name {name!r}: it takes 1 to {MAX_CLASS_NAME} printable characters")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"has the class name {twice[0]!r} twice")
    return names


@contextmanager
def _explain(source: object) -> Iterator[None]:
    """Turn whatever a damaged or hostile file raises into a DataError that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"dataset: {source} {error}") from None
    except Exception as error:
        raise DataError(f"dataset: {source} cannot be read ({error or type(error).__name__})") from error
