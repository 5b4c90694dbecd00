"""Cache of the indexes of shards in memory, so that each index is fetched once per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.threads import run_in_parallel

Index = npt.NDArray[Any]
# Path of the shard in its store, and further parts that identify an index in it.
Key = tuple[str, ...]

MOST_INDEXES, _MOST_BYTES = 4096, 64 << 20

_indexes: OrderedDict[tuple[Hashable, Key], Index] = OrderedDict()
_lock = threading.Lock()


def get_indexes(
    store: ObjectStore, keys: set[Key], fetch: Callable[[Key, threading.Event], Index | None]
) -> dict[Key, Index | None]:
    """Return the indexes at keys, None for a missing shard; fetch those that are not cached.

    That a shard is missing is not cached, because the shard may be written later. The indexes of local files are not
    cached, because the files may change and are fast to read.
    """
    found: dict[Key, Index | None] = {**cached_indexes(store, keys)}
    unknown = sorted(keys - found.keys())
    for key, index in zip(unknown, run_in_parallel(fetch, unknown, store.width), strict=True):
        found[key] = index
        if index is not None:
            put_index(store, key, index)
    return found


def cached_indexes(store: ObjectStore, keys: set[Key]) -> dict[Key, Index]:
    """Return those of the indexes at keys that are cached."""
    found, identity = dict[Key, Index](), store.identity
    with _lock:
        for key in keys if identity is not None else ():
            if (identity, key) in _indexes:
                _indexes.move_to_end((identity, key))
                found[key] = _indexes[identity, key]
    return found


def put_index(store: ObjectStore, key: Key, index: Index) -> None:
    """Cache an index, unless the store is local."""
    if store.identity is None:
        return
    with _lock:
        _indexes[store.identity, key] = index
        size = sum(one.nbytes for one in _indexes.values())
        while len(_indexes) > MOST_INDEXES or (size > _MOST_BYTES and len(_indexes) > 1):
            size -= _indexes.popitem(last=False)[1].nbytes


@run_after_fork
def clear() -> None:
    """Drop all indexes."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may hold the lock that a forked child inherits
    _indexes.clear()
