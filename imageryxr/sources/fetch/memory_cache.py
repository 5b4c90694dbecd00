"""Chunks in memory, so that the next slice or figure of the same chunks makes no request.

A process has one cache for all arrays. It contains chunks of remote stores that were decoded without an error, never
missing chunks, which may be written later. The keys contain no secrets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
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
        # The value, its size, and `used` at its last use.
        self._values: OrderedDict[Hashable, list[Any]] = OrderedDict()
        self.size = 0
        self.used = 0
        """Number of bytes that were used so far: the clock that measures the age of entries."""

    def get(self, key: Hashable) -> Any:
        """Return a value, and make it the most recently used."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        self.used += found[1]
        found[2] = self.used
        return found[0]

    def peek(self, key: Hashable) -> Any:
        """Return a value without a change of its last use."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Add or replace a value."""
        self.size += size - self._values.pop(key, (None, 0, 0))[1]
        self.used += size
        self._values[key] = [value, size, self.used]

    def drop_until(self, limit: int, *, age: int | None = None) -> None:
        """Drop the least recently used values until at most ``limit`` bytes remain.

        With ``age``, keep values after whose last use fewer than that many bytes were used.
        """
        while self._values and self.size > limit:
            key = next(iter(self._values))
            if age is not None and self._values[key][2] > self.used - age:
                return
            self.size -= self._values.pop(key)[1]


@dataclass(slots=True)
class _EncodedChunk:
    stored: Stored
    views: dict[Hashable, npt.NDArray[Any]] = field(default_factory=dict)
    """Decoded forms that are views of the bytes, as those of raw chunks: they take no memory of their own."""


class MemoryCache:
    """Chunks by key, up to a number of bytes; the least recently used are dropped first.

    Encoded chunks come first, because they save a request. Decoded chunks use the room that these leave. An encoded
    chunk makes room for decoded ones after as many bytes of others were used as the cache holds: it was not in the
    volume that is being scrolled through.
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
            found: _EncodedChunk | None = self._encoded.get(key)
            return None if found is None else found.stored

    def get_decoded(self, keys: Sequence[tuple[Hashable, Hashable]]) -> list[npt.NDArray[Any] | None]:
        """Return the decoded forms of chunks by key and form, None for those that it has not; they are read-only."""
        with self._lock:
            found = []
            for key, form in keys:
                chunk = self._encoded.peek(key)
                values = None if chunk is None else chunk.views.get(form)
                if values is None:
                    values = self._decoded.get((key, form))
                if values is not None and chunk is not None:
                    self._encoded.get(key)  # the encoded chunk was used as well
                found.append(values)
            return found

    def put(self, key: Hashable, value: Stored, limit: int) -> None:
        """Store an encoded chunk; the largest ``limit`` in bytes that was given so far applies."""
        body = value.body
        if isinstance(body, memoryview):  # a part of a larger response would keep all of it in memory
            body = bytes(body)
        with self._lock:
            self.limit = max(self.limit, limit)
            if len(body) <= self.limit:
                self._encoded.put(key, _EncodedChunk(value._replace(body=body)), len(body))
                self._encoded.drop_until(self.limit)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def put_decoded(self, key: Hashable, form: Hashable, values: npt.NDArray[Any]) -> None:
        """Store the decoded form of a chunk, if there is room for it beside the encoded ones."""
        size = values.nbytes if values.base is None else max(values.nbytes, getattr(values.base, "nbytes", 0))
        values.flags.writeable = False
        with self._lock:
            chunk = self._encoded.peek(key)
            if chunk is not None and _buffer_of(values) is chunk.stored.body:
                chunk.views[form] = values
                return
            self._encoded.drop_until(self.limit - self._decoded.size - size, age=self.limit)
            if size <= self.limit - self._encoded.size:
                self._decoded.put((key, form), values, size)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._encoded, self._decoded = _Entries(), _Entries()


def _buffer_of(values: Any) -> object:
    """Return the object whose memory an array uses."""
    while isinstance(values, np.ndarray):
        values = values.base
    return values


cache = MemoryCache()


@run_after_fork
def _reset_after_fork() -> None:
    global cache
    cache = MemoryCache()  # the lock may be held by a thread that the child does not have
