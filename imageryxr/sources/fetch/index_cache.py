"""Indexes of shards in memory, so that each is fetched once per process."""

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
    """Return the indexes at some keys, None for those that are missing; fetch those that are not cached.

    A missing shard may be written later, so it is not cached. Neither are the indexes of local files, which may change
    and are fast to read.
    """
    found: dict[Key, Index | None] = {}
    identity = store.identity
    with _lock:
        for key in keys if identity is not None else ():
            if (identity, key) in _indexes:
                _indexes.move_to_end((identity, key))
                found[key] = _indexes[identity, key]
    unknown = sorted(keys - found.keys())
    for key, index in zip(unknown, run_in_parallel(fetch, unknown, store.width), strict=True):
        found[key] = index
        if index is not None and identity is not None:
            _store((identity, key), index)
    return found


def _store(key: tuple[Hashable, Key], index: Index) -> None:
    with _lock:
        _indexes[key] = index
        size = sum(one.nbytes for one in _indexes.values())
        while len(_indexes) > MOST_INDEXES or (size > _MOST_BYTES and len(_indexes) > 1):
            size -= _indexes.popitem(last=False)[1].nbytes


@run_after_fork
def clear() -> None:
    """Drop all indexes."""
    global _lock
    _lock = threading.Lock()  # in a forked child, a missing thread may hold it
    _indexes.clear()
