"""Thresholds of glibc's malloc, raised on dask workers so that regions reuse freed memory.

dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_`` set, which also turns off the dynamic mmap threshold of
glibc. Each array of 128 KiB or more is then mapped anew and cleared page by page by the system. An export allocates and
frees such arrays constantly, and this can take a third of a worker's time. While regions are made, the thresholds are
therefore set to about the values that glibc reaches by itself in other processes; afterwards dask's values are
restored. A thread may keep up to `TRIM_BYTES` at the end of its own heap until it next frees memory, because
``malloc_trim`` does not trim the ends of the heaps of other threads.

mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"
# If the user has set one of these, malloc is left alone.
USER_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
DEFAULT_MMAP_BYTES = 128 << 10
# glibc's dynamic threshold is at most 32 MiB. `reader.BUFFERS` reuses arrays larger than this value.
MMAP_BYTES = 23_900_000
TRIM_BYTES = 2 * MMAP_BYTES
# The largest C integer, the type of mallopt's arguments.
MAX_C_INT = 2**31 - 1


class _Malloc(NamedTuple):
    libc: Any
    trim: int
    """The trim threshold in bytes that dask has set."""


@cache
def _load_malloc() -> _Malloc | None:
    """Return glibc and its trim threshold if dask has set it; None otherwise."""
    given = initial_environment() if sys.platform.startswith("linux") else {}
    trim = given.get(TRIM_VARIABLE, "")
    if not (trim.isascii() and trim.isdigit() and int(trim) <= MAX_C_INT) or set(USER_VARIABLES) & set(given):
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return None  # another C library
    libc.mallopt.argtypes, libc.malloc_trim.argtypes = [ctypes.c_int, ctypes.c_int], [ctypes.c_size_t]
    return _Malloc(libc, int(trim))


def initial_environment() -> dict[str, str]:
    """Return the environment that this process started with, which its C library has read.

    ``os.environ`` may differ: in a process that starts a cluster, dask adds variables for the workers to it.
    """
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (line.decode(errors="replace").partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def raise_thresholds() -> None:
    """Raise malloc's thresholds so that freed memory is reused."""
    malloc = _load_malloc()
    if malloc is not None and malloc.libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES):  # fails on 32-bit systems
        malloc.libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def restore_thresholds() -> None:
    """Restore malloc's initial thresholds and return unused memory to the system."""
    malloc = _load_malloc()
    if malloc is not None:
        malloc.libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_MMAP_BYTES)
        malloc.libc.mallopt(M_TRIM_THRESHOLD, malloc.trim)
        malloc.libc.malloc_trim(0)


class DelayedCleanup:
    """A resource that is released some seconds after its last use, because a worker cannot detect its last region.

    Thread-safe.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
        self._begin, self._end, self._seconds = begin, end, seconds
        self.reset()

    def reset(self) -> None:
        """Begin without users and with a new lock: a thread that a forked child lacks may hold the old lock."""
        self._lock = threading.Lock()
        self._users = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the resource during the block."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._users:
                self._begin()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._end_later()

    def _end_later(self) -> None:
        self._timer = threading.Timer(self._seconds, self._end_if_idle)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no thread can be started; the region itself has succeeded
            self._timer = None
            self._end()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._users:  # a user may have started while this thread waited for the lock
                self._end()
