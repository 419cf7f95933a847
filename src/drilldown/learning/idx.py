"""IDX, the format of MNIST's files: a magic number, the shape, and the values (http://yann.lecun.com/exdb/mnist/)."""

import math
import struct
from typing import BinaryIO

import numpy as np

from drilldown.errors import DataError

# The type of the values, by the first three bytes of the magic number; the fourth is the number of dimensions.
TYPES: dict[bytes, np.dtype] = {b"\0\0\x08": np.dtype(np.uint8), b"\0\0\x0c": np.dtype(">i4")}
Shape = tuple[int, ...]


def read_header(stream: BinaryIO) -> tuple[Shape, np.dtype]:
    """Read the shape and the type of the values that follow. Raises DataError when this is not IDX."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError("is empty" if not magic else "is cut off within its header")
    dtype, dimensions = TYPES.get(magic[:3]), magic[3]
    if dtype is None:
        raise DataError(f"has the magic number 0x{magic.hex()}: IDX images have 0x00000803, labels 0x00000801")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError("is cut off within its header")
    return struct.unpack(f">{dimensions}I", sizes), dtype


def read_values(stream: BinaryIO, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Read the values that follow the header. Raises DataError when there are more or fewer."""
    size = math.prod(shape) * dtype.itemsize
    content = bytearray(stream.read(size + 1))
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise DataError(f"has the shape {shape} by its header, so {size:,} bytes of values follow: it has {found}")
    return np.frombuffer(content, dtype).reshape(shape)


def encode(array: np.ndarray) -> bytes:
    """Return the content of the IDX file that holds the array, uint8 of any shape."""
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
