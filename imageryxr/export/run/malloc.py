"""What a worker keeps between regions: memory that goes to the next one, until none comes.

dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_`` set. By that glibc also stops learning which sizes come
again and again: each array from 128 KiB on is mapped anew, and the system clears it page by page, while what an export
takes and gives back all the time is of just such sizes. That can take a third of a worker's time. So while there are
regions to make, the thresholds are about those that glibc learns by itself in other processes; afterwards they are
dask's again. What a thread keeps at the end of its own heap, `TRIM_BYTES` at the most, goes when it frees something the
next time: glibc trims those of others only inside.

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

GIVEN = "MALLOC_TRIM_THRESHOLD_"
# Who sets one of these knows what malloc is to do.
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
DEFAULT_MMAP_BYTES = 128 << 10
# As glibc learns, it takes up to 32 MiB; what is larger than this, exports keep by themselves (`reading.BUFFERS`).
MMAP_BYTES = 23_900_000
TRIM_BYTES = 2 * MMAP_BYTES
# What fits the C integer that mallopt takes.
MOST = 2**31 - 1


class _Malloc(NamedTuple):
    libc: Any
    trim: int
    """Bytes that dask has set."""


@cache
def _malloc() -> _Malloc | None:
    """Return what there is to change where dask has set one of glibc's thresholds; else None."""
    given = started_with() if sys.platform.startswith("linux") else {}
    trim = given.get(GIVEN, "")
    if not (trim.isascii() and trim.isdigit() and int(trim) <= MOST) or set(CHOSEN) & set(given):
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return None  # another C library
    libc.mallopt.argtypes, libc.malloc_trim.argtypes = [ctypes.c_int, ctypes.c_int], [ctypes.c_size_t]
    return _Malloc(libc, int(trim))


def started_with() -> dict[str, str]:
    """Return the environment that this process started with, which is what its C library has read.

    dask leaves in ``os.environ`` of who starts a cluster what is meant for the workers.
    """
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (line.decode(errors="replace").partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def keep_freed() -> None:
    """Have malloc keep what is freed for what comes next."""
    malloc = _malloc()
    if malloc is not None and malloc.libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES):  # 32 bits allow no such size
        malloc.libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def give_back() -> None:
    """Have malloc do again as it was told when the process started, and return what it keeps."""
    malloc = _malloc()
    if malloc is not None:
        malloc.libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_MMAP_BYTES)
        malloc.libc.mallopt(M_TRIM_THRESHOLD, malloc.trim)
        malloc.libc.malloc_trim(0)


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
        self._timer = threading.Timer(self._seconds, self._rest)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no more threads: that does not undo what was made
            self._timer = None
            self._end()

    def _rest(self) -> None:
        with self._lock:
            if not self._users:  # one may have come while this waited for the lock
                self._end()
