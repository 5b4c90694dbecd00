"""What a worker keeps between regions: memory that goes to the next one, until none comes.

dask starts its workers with ``MALLOC_TRIM_THRESHOLD_`` set. By that glibc also stops learning which sizes come again
and again: each array from 128 KiB on is mapped anew, and the system clears it page by page, while what an export takes
and gives back all the time is of just such sizes. That can take a third of a worker's time. So while there are regions
to make, the thresholds are those that glibc learns by itself in other processes; afterwards they are dask's again.

mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

GIVEN = "MALLOC_TRIM_THRESHOLD_"
# Who sets one of these knows what malloc is to do.
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
DEFAULT_MMAP_BYTES = 128 << 10
# The most that glibc learns, and twice as much before it gives back what lies at the end.
MMAP_BYTES = 32 << 20
TRIM_BYTES = 2 * MMAP_BYTES


@cache
def _libc() -> Any:
    """Return the C library where dask has set one of its thresholds and there are such; else None."""
    if not sys.platform.startswith("linux") or not os.environ.get(GIVEN, "").isdigit() or set(CHOSEN) & set(os.environ):
        return None
    import ctypes

    found = ctypes.CDLL(None)
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def keep_freed() -> None:
    """Have malloc keep what is freed for what comes next."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def give_back() -> None:
    """Have malloc do again as it was told when the process started, and return what it keeps."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, int(os.environ[GIVEN]))
        libc.malloc_trim(0)


class Lingering:
    """Something that is there while it is used and some seconds longer: nobody tells a worker that no more will come.

    Safe to use from many threads.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
        self._begin, self._end, self._seconds = begin, end, seconds
        self._lock = threading.Lock()
        self._users = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have it there inside the block."""
        with self._lock:
            self._users += 1
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._users == 1:
                self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._timer = threading.Timer(self._seconds, self._rest)
                    self._timer.daemon = True
                    self._timer.start()

    def _rest(self) -> None:
        with self._lock:
            if not self._users:  # one may have come while this waited for the lock
                self._end()
