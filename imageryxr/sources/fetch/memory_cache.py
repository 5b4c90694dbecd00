"""Chunks in memory, so that the next slice or figure of the same chunks makes no request.

A process has one cache for all arrays. It contains chunks of remote stores that were decoded without an error, never
missing chunks, which may be written later. The keys contain no secrets.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy.typing as npt

from imageryxr.sources.fetch.validators import Validator


class Stored(NamedTuple):
    """The bytes of a stored object or of a range of one."""

    body: bytes | memoryview
    encoding: str = ""
    """Compression on top of the format's own, as in Content-Encoding."""
    stamp: str = ""
    """ETag and Last-Modified, which change when the object is written; empty if the store sends neither."""
    validator: Validator | None = None
    """What the server stated about this version; None if the object must not be stored on a disk."""


class _Entries:
    """Values by key, in the order of their last use, and the sum of their sizes in bytes."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.size = 0

    def get(self, key: Hashable) -> Any:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        self.size += size - self._values.pop(key, (None, 0))[1]
        self._values[key] = (value, size)

    def drop_until(self, limit: int) -> None:
        while self._values and self.size > limit:
            self.size -= self._values.popitem(last=False)[1][1]


class MemoryCache:
    """Chunks by key, up to a number of bytes; the least recently used are dropped first.

    Encoded chunks come first, because they save a request. Decoded chunks use the room that these leave.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoded, self._decoded = _Entries(), _Entries()
        self.limit = 0

    @property
    def size(self) -> int:
        """Number of bytes in the cache."""
        return self._encoded.size + self._decoded.size

    def get(self, key: Hashable) -> Stored | None:
        """Return an encoded chunk, or None."""
        with self._lock:
            found: Stored | None = self._encoded.get(key)
            return found

    def get_decoded(self, key: Hashable) -> npt.NDArray[Any] | None:
        """Return a decoded chunk, or None; it is read-only."""
        with self._lock:
            found: npt.NDArray[Any] | None = self._decoded.get(key)
            return found

    def put(self, key: Hashable, value: Stored, limit: int) -> None:
        """Store an encoded chunk; the largest ``limit`` in bytes that was given so far applies."""
        body = value.body
        if isinstance(body, memoryview):  # a part of a larger response would keep all of it in memory
            body = bytes(body)
        with self._lock:
            self.limit = max(self.limit, limit)
            if len(body) <= self.limit:
                self._encoded.put(key, value._replace(body=body), len(body))
                self._encoded.drop_until(self.limit)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def put_decoded(self, key: Hashable, values: npt.NDArray[Any]) -> None:
        """Store a decoded chunk, if there is room for it beside the encoded ones."""
        size = values.nbytes if values.base is None else max(values.nbytes, getattr(values.base, "nbytes", 0))
        values.flags.writeable = False
        with self._lock:
            if size <= self.limit - self._encoded.size:
                self._decoded.put(key, values, size)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._encoded, self._decoded = _Entries(), _Entries()


cache = MemoryCache()


def _reset_after_fork() -> None:
    global cache
    cache = MemoryCache()  # the lock may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
