"""Chunks in memory, so that the next slice or figure of the same chunks makes no request.

A process has one cache for all arrays. It contains chunks of remote stores that were decoded without an error, never
missing chunks, which may be written later. The keys contain no secrets.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.fetch.validators import Validator

# Largest number of chunks in all boxes of the cache; each takes some 200 bytes in addition to its voxels.
_LISTED = 1 << 14


class Stored(NamedTuple):
    """The bytes of a stored object or of a range of one."""

    body: bytes | memoryview
    encoding: str = ""
    """Compression on top of the format's own, as in Content-Encoding."""
    stamp: str = ""
    """ETag and Last-Modified, which change when the object is written; empty if the store sends neither."""
    validator: Validator | None = None
    """ETag or Last-Modified of this version, to validate it; None if the object must not be stored on a disk."""


class _Entries:
    """Values by key, in the order of their last use, and the sum of their sizes in bytes."""

    def __init__(self, on_drop: Callable[[Hashable], None]) -> None:
        # For each key: the value, its size, and the value of `used` at its last use.
        self._values: OrderedDict[Hashable, list[Any]] = OrderedDict()
        self._on_drop = on_drop
        self.size = 0
        self.used = 0
        """Sum of the sizes of all uses so far, by which the age of entries is measured."""

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
        """Return a value without counting this as a use."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def size_of(self, key: Hashable) -> int:
        """Return the size of a value in bytes; 0 if there is none."""
        found = self._values.get(key)
        return 0 if found is None else int(found[1])

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Add or replace a value."""
        if key in self._values:
            self._drop(key)
        self.size += size
        self.used += size
        self._values[key] = [value, size, self.used]

    def drop_until(self, limit: int, *, age: int | None = None) -> None:
        """Drop the least recently used values until at most ``limit`` bytes remain.

        With ``age``, a value is kept if fewer bytes than ``age`` were used after its last use.
        """
        while self._values and self.size > limit:
            key = next(iter(self._values))
            if age is not None and self._values[key][2] > self.used - age:
                return
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self.size -= self._values.pop(key)[1]
        self._on_drop(key)


@dataclass(slots=True)
class _EncodedChunk:
    stored: Stored
    views: dict[Hashable, npt.NDArray[Any]] = field(default_factory=dict)
    """Decoded forms that are views of the bytes, such as those of raw chunks: they take no further memory."""


@dataclass(slots=True)
class CachedBox:
    """The decoded chunks of a box of a volume, in the order in which the reader listed them."""

    chunks: list[npt.NDArray[Any]]
    """The chunks, which are read-only."""
    keys: list[tuple[Hashable, Hashable]]
    """Key and form of each chunk that is in the cache."""
    size: int
    """Sum of the sizes of the encoded chunks in bytes."""
    table: Any = None
    """Table that the reader makes of the chunks to copy them quickly; the cache only stores it."""


class MemoryCache:
    """Chunks by key, up to a number of bytes; the least recently used are dropped first.

    Encoded chunks have priority, because each saves a request. Decoded chunks use the remaining room. They displace an
    encoded chunk only if, after its last use, as many bytes were used as the cache holds: then the chunk does not
    belong to the volume through which the user scrolls.

    The chunks of a box that was read are also found under the name of the box, with one look-up. A box is dropped with
    the first of its chunks, so that it does not keep the memory of dropped chunks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.limit = 0
        self._reset()

    def _reset(self) -> None:
        self._encoded = _Entries(self._drop_boxes)
        self._decoded = _Entries(lambda pair: self._drop_boxes(pair[0]))  # type: ignore[index]
        self._boxes: OrderedDict[Hashable, CachedBox] = OrderedDict()
        self._boxes_of: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
        self._listed = 0
        # Boxes that were used, but whose chunks are not yet marked as used; see `_apply_uses`.
        self._used: dict[Hashable, None] = {}

    @property
    def size(self) -> int:
        """Number of bytes in the cache."""
        return self._encoded.size + self._decoded.size

    def get(self, key: Hashable) -> Stored | None:
        """Return an encoded chunk, or None."""
        with self._lock:
            self._apply_uses()
            found: _EncodedChunk | None = self._encoded.get(key)
            return None if found is None else found.stored

    def get_decoded(self, keys: Sequence[tuple[Hashable, Hashable]]) -> list[npt.NDArray[Any] | None]:
        """Return the decoded forms of chunks by key and form, read-only; None for those that are not cached."""
        with self._lock:
            self._apply_uses()
            return [self._use(key, form) for key, form in keys]

    def _use(self, key: Hashable, form: Hashable) -> npt.NDArray[Any] | None:
        values = self._peek(key, form)
        if values is not None:
            self._decoded.get((key, form))
            self._encoded.get(key)  # the encoded chunk was used as well
        return values

    def _peek(self, key: Hashable, form: Hashable) -> npt.NDArray[Any] | None:
        chunk: _EncodedChunk | None = self._encoded.peek(key)
        view = None if chunk is None else chunk.views.get(form)
        return self._decoded.peek((key, form)) if view is None else view

    def put(self, key: Hashable, value: Stored, limit: int) -> None:
        """Store an encoded chunk; the largest ``limit`` in bytes that was given so far applies."""
        size = len(value.body)
        with self._lock:
            self._apply_uses()
            self.limit = max(self.limit, limit)
            if size <= self.limit:
                self._encoded.put(key, _EncodedChunk(value), size)
                self._encoded.drop_until(self.limit)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def put_decoded(self, key: Hashable, form: Hashable, values: npt.NDArray[Any]) -> None:
        """Store the decoded form of a chunk, if the encoded chunks leave room for it."""
        size = values.nbytes if values.base is None else max(values.nbytes, getattr(values.base, "nbytes", 0))
        values.flags.writeable = False
        with self._lock:
            self._apply_uses()
            chunk = self._encoded.peek(key)
            if chunk is not None and _buffer_of(values) is chunk.stored.body:
                chunk.views[form] = values
                return
            self._encoded.drop_until(self.limit - self._decoded.size - size, age=self.limit)
            if size <= self.limit - self._encoded.size:
                self._decoded.put((key, form), values, size)
                self._decoded.drop_until(self.limit - self._encoded.size)

    def get_box(self, name: Hashable) -> CachedBox | None:
        """Return the decoded chunks of a box, or None if one of them was dropped."""
        with self._lock:
            box = self._boxes.get(name)
            if box is None:
                return None
            self._boxes.move_to_end(name)
            self._used.pop(name, None)
            self._used[name] = None
            self._encoded.used += box.size
            return box

    def put_box(
        self, name: Hashable, keys: Sequence[tuple[Hashable, Hashable] | None], blank: npt.NDArray[Any] | None = None
    ) -> None:
        """Register the chunks of a box, by key and form, for `get_box` if all of them are in the cache.

        None instead of a key stands for the chunk ``blank``, which takes no memory.
        """
        with self._lock:
            self._drop_box(name)
            if len(keys) > _LISTED:
                return
            chunks = []
            for pair in keys:
                chunk = blank if pair is None else self._peek(*pair)
                if chunk is None:
                    return
                chunks.append(chunk)
            kept = [pair for pair in keys if pair is not None]
            box = CachedBox(chunks, kept, sum(self._encoded.size_of(key) for key, _ in kept))
            self._boxes[name] = box
            self._listed += len(box.chunks)
            for key, _ in box.keys:
                self._boxes_of[key].add(name)
            while self._listed > _LISTED:
                self._drop_box(next(iter(self._boxes)))

    def _apply_uses(self) -> None:
        """Mark the chunks of used boxes as used; `get_box` leaves this to the next call, to take constant time."""
        used, self._used = self._used, {}
        for name in used:
            for pair in self._boxes[name].keys:
                self._use(*pair)

    def _drop_boxes(self, key: Hashable) -> None:
        """Drop the boxes that contain a chunk."""
        for name in tuple(self._boxes_of.get(key, ())):
            self._drop_box(name)

    def _drop_box(self, name: Hashable) -> None:
        box = self._boxes.pop(name, None)
        if box is None:
            return
        self._used.pop(name, None)
        self._listed -= len(box.chunks)
        for key, _ in box.keys:
            names = self._boxes_of[key]
            names.discard(name)
            if not names:
                del self._boxes_of[key]

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._reset()


def _buffer_of(values: Any) -> object:
    """Return the object whose memory an array uses."""
    while isinstance(values, np.ndarray):
        values = values.base
    return values


cache = MemoryCache()


@run_after_fork
def _reset_after_fork() -> None:
    global cache
    cache = MemoryCache()  # another thread of the parent may hold the lock
