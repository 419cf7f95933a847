"""Arrays that the layers of a plan compute in, pass after pass."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

Shape = tuple[int, ...]  # CHWN: channels, height, width, batch
Allocator = Callable[[], np.ndarray]


class Workspace:
    """Reused arrays: new ones would be in no processor cache, and the system would have to provide their memory."""

    def __init__(self, dtype: np.dtype[Any], requires_grad: bool):
        self.dtype, self.requires_grad = dtype, requires_grad
        self._buffers, self._current = [np.empty(0, dtype), np.empty(0, dtype)], 0

    def saved(self, shape: Shape) -> Allocator:
        """Return an allocator: of one persistent array if backward needs the result, else of scratch arrays."""
        return cache(partial(np.empty, shape, self.dtype)) if self.requires_grad else partial(self.scratch, shape)

    def scratch(self, shape: Shape) -> np.ndarray:
        """Return an array that stays valid until the second next call: two buffers take turns."""
        self._current, size = 1 - self._current, math.prod(shape)
        if self._buffers[self._current].size < size:
            self._buffers[self._current] = np.empty(size, self.dtype)
        return self._buffers[self._current][:size].reshape(shape)
