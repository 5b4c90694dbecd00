"""Caches of the roots of supervoxels at an instant: in memory, and on a disk that processes share.

Roots at a past instant do not change, so entries never expire and are never validated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.cave.timestamp import Instant
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.disk_cache import DiskCache, open_cache
from imageryxr.sources.fetch.disk_entry import entry_name
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.traffic import count
from imageryxr.sources.fetch.validators import Validator

Ids = npt.NDArray[np.uint64]

# Number of roots in the cache of a table at an instant, and number of such caches in a process.
REMEMBERED, STATES = 2_000_000, 8
# Supervoxels whose ids differ only in this number of low bits share an entry on the disk. They lie in one chunk of the
# graph or in neighbouring ones, because the high bits of an id are the position of its chunk.
_GROUP_BITS = 24
# Ids that are spread over more entries do not belong to a box and are not stored.
_MOST_GROUPS, _MOST_BYTES = 512, 64 << 20


class RootMemory:
    """Cache of the roots of supervoxels at one instant, with about `REMEMBERED` entries.

    The cache has two generations of sorted arrays. When the younger one reaches half of the limit, it replaces the
    older one. Entries never expire, because roots at a past instant do not change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        empty = np.empty(0, np.uint64)
        self._young = self._old = (empty, empty)

    def look_up(self, ids: Ids) -> tuple[npt.NDArray[np.bool_], Ids]:
        """Return which of ascending ids are cached, and their roots (0 for others)."""
        known, roots = np.zeros(len(ids), bool), np.zeros(len(ids), np.uint64)
        for keys, values in (self._old, self._young):
            if not len(keys):
                continue
            at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            here = keys[at] == ids
            roots[here] = values[at[here]]
            known |= here
        return known, roots

    def remember(self, ids: Ids, roots: Ids) -> None:
        """Store the roots of ascending, distinct ids."""
        with self._lock:
            keys, values = self._young
            at = np.searchsorted(keys, ids)
            new = np.ones(len(ids), bool)
            new[at < len(keys)] = keys[at[at < len(keys)]] != ids[at < len(keys)]  # others may be cached meanwhile
            merged = np.insert(keys, at[new], ids[new]), np.insert(values, at[new], roots[new])
            if len(merged[0]) > REMEMBERED // 2:
                self._old, merged = merged, (np.empty(0, np.uint64), np.empty(0, np.uint64))
            self._young = merged

    def __len__(self) -> int:
        return len(self._young[0]) + len(self._old[0])


@lru_cache(maxsize=STATES)
def memory_of(table: tuple[str, ...], instant: Instant) -> RootMemory:
    """Return the memory cache of the roots of a table at an instant."""
    return RootMemory()


clear_roots = run_after_fork(memory_of.cache_clear)  # other threads of the parent may hold the locks of caches


@dataclass(frozen=True)
class RootDisk:
    """Roots of one table at one instant on a disk."""

    cache: DiskCache
    limit: int
    """Size of the folder in bytes."""
    key: tuple[object, ...]
    """Table and instant."""

    def load(self, ids: Ids, memory: RootMemory) -> None:
        """Add the entries of ascending ids to a memory cache."""
        for group, _ in _groups(ids):
            keys, values = self._read(group)
            if len(keys):
                count(on_disk=1)
                memory.remember(keys, values)

    def store(self, ids: Ids, roots: Ids) -> None:
        """Add the roots of ascending, distinct ids.

        If two processes add to an entry at the same time, the entry contains the roots of one of them.
        """
        for group, part in _groups(ids):
            keys, values = self._read(group)
            keys, first = np.unique(np.concatenate([ids[part], keys]), return_index=True)
            values = np.concatenate([roots[part], values])[first]
            body = np.stack([keys, values]).astype("<u8").tobytes()
            if len(body) <= _MOST_BYTES:
                self.cache.put(self._name(group), Stored(body, validator=Validator("roots")), self.limit)

    def _read(self, group: int) -> tuple[Ids, Ids]:
        found = self.cache.get(self._name(group), _MOST_BYTES)
        pairs = np.frombuffer(b"" if found is None else found.body, "<u8").astype(np.uint64).reshape(2, -1)
        return pairs[0], pairs[1]

    def _name(self, group: int) -> str:
        return entry_name("roots", self.key, group)


def disk_of(table: Sequence[str], instant: Instant, connection: Connection) -> RootDisk | None:
    """Return the disk cache of the roots of a table at an instant, or None if there is no disk cache."""
    folder = connection.disk_folder
    if folder is None:
        return None
    return RootDisk(open_cache(folder), connection.disk_cache_bytes, (*table, instant.micros))


def _groups(ids: Ids) -> Iterator[tuple[int, slice]]:
    """Yield the groups of ascending ids that share an entry, and the slice of the ids that belong to each."""
    groups, starts = np.unique(ids >> np.uint64(_GROUP_BITS), return_index=True)
    if 0 < len(groups) <= _MOST_GROUPS:
        ends = [*starts[1:], len(ids)]
        yield from ((int(group), slice(int(a), int(b))) for group, a, b in zip(groups, starts, ends, strict=True))
