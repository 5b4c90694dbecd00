"""Counts of the requests, bytes and cached chunks of this process, for displays of progress."""

from __future__ import annotations

import threading
from typing import NamedTuple

from imageryxr.core.fork import run_after_fork


class Traffic(NamedTuple):
    """The reads of this process so far."""

    requests: int = 0
    """Requests to servers, including retries."""
    received: int = 0
    """Bytes of bodies."""
    in_memory: int = 0
    """Chunks from the memory cache."""
    on_disk: int = 0
    """Chunks and shard indexes from the disk cache."""

    def since(self, before: Traffic) -> Traffic:
        """Return what was read since an earlier count."""
        return Traffic(*(now - then for now, then in zip(self, before, strict=True)))


_total = Traffic()
_lock = threading.Lock()


def count(*, requests: int = 0, received: int = 0, in_memory: int = 0, on_disk: int = 0) -> None:
    """Add to the counts."""
    global _total
    with _lock:
        a, b, c, d = _total
        _total = Traffic(a + requests, b + received, c + in_memory, d + on_disk)


def traffic() -> Traffic:
    """Return the counts of this process."""
    return _total


@run_after_fork
def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may hold the lock
