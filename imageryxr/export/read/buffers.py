"""Buffers for source voxels and pictures, which are reused from region to region.

A region needs hundreds of megabytes. Memory of that size is returned to the system when it is freed, and cleared page
by page when it is allocated again, which can take as long as reading.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from imageryxr.graph.expr import Array

# Buffers of at least this size are kept; malloc itself reuses smaller ones (up to 32 MB each).
KEPT_BYTES = 24_000_000


def _count_references(held: list[Array], index: int) -> int:
    return sys.getrefcount(held[index])


_IDLE = _count_references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Large arrays whose memory is reused as soon as there is no reference to them or to a view of them.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of undefined values."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < KEPT_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            idle = [i for i in range(len(self._held)) if _count_references(self._held, i) <= _IDLE]
            fits = [i for i in idle if self._held[i].nbytes >= size]
            if fits:
                chosen = self._held[min(fits, key=lambda i: self._held[i].nbytes)]
            else:
                # drop idle buffers that are too small, which would add to the memory
                self._held = [a for i, a in enumerate(self._held) if i not in idle]
                chosen = np.empty(size, np.uint8)
                self._held.append(chosen)
            return chosen[:size].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Drop all buffers; those that are still referenced stay valid."""
        with self._lock:
            self._held = []


BUFFERS = Buffers()
"""The buffers of this process."""
