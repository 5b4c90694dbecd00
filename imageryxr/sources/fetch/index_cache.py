"""Cache of the indexes of shards in memory, so that each index is fetched once per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.disk_reads import Item, ObjectStore, disk_reader, read_parsed
from imageryxr.sources.fetch.sockets import StoppedError
from imageryxr.sources.fetch.threads import run_in_parallel

Index = npt.NDArray[Any]
# Path of the shard in its store, and further parts that identify an index in it.
Key = tuple[str, ...]

MOST_INDEXES, _MOST_BYTES = 4096, 64 << 20


class IndexPlace(NamedTuple):
    """Where an index is stored in its shard."""

    part: ByteRange
    size: int
    """Largest size in bytes."""
    parse: Callable[[bytes | memoryview], Index]
    """Returns the index, or raises an error if it is damaged."""


_indexes: OrderedDict[tuple[Hashable, Key], tuple[Index, Item | None]] = OrderedDict()
"""The cached indexes, and their items in the disk cache."""
_lock = threading.Lock()


def get_indexes(
    store: ObjectStore, keys: set[Key], locate: Callable[[Key], IndexPlace | None]
) -> dict[Key, Index | None]:
    """Return the indexes at keys, None for a missing shard; fetch those that are not cached.

    `locate` returns where an index is stored, or None if it is missing. That a shard is missing is not cached, because
    the shard may be written later. The indexes of local files are not cached, because the files may change and are
    fast to read.
    """
    found: dict[Key, Index | None] = {**cached_indexes(store, keys)}
    unknown = sorted(keys - found.keys())

    def fetch(key: Key, stop: threading.Event) -> Index | None:
        place = locate(key)
        if place is None:
            return None
        index = read_parsed(store, key[0], place.part, place.size, stop, place.parse)
        if index is not None:
            put_index(store, key, index, Item(key[0], place.part, place.size))
        return index

    with dropping_damaged(store, {key[0] for key in keys}):
        return found | dict(zip(unknown, run_in_parallel(fetch, unknown, store.width), strict=True))


@contextmanager
def dropping_damaged(store: ObjectStore, shards: set[str]) -> Iterator[None]:
    """Drop the indexes of shards from memory and from the disk if an error is raised in this context.

    Not every index has a checksum. A damaged one refers to other bytes than those of the chunks, which leads to an
    error when these are read.
    """
    try:
        yield
    except StoppedError:
        raise
    except Exception:
        with _lock:
            known = [entry for entry in _indexes if entry[0] == store.identity and entry[1][0] in shards]
            items = [_indexes.pop(entry)[1] for entry in known]
        disk = disk_reader(store)
        for item in items if disk is not None else ():
            if item is not None and disk is not None:
                disk.drop(item)
        raise


def cached_indexes(store: ObjectStore, keys: set[Key]) -> dict[Key, Index]:
    """Return those of the indexes at keys that are cached."""
    found, identity = dict[Key, Index](), store.identity
    with _lock:
        for key in keys if identity is not None else ():
            if (identity, key) in _indexes:
                _indexes.move_to_end((identity, key))
                found[key] = _indexes[identity, key][0]
    return found


def put_index(store: ObjectStore, key: Key, index: Index, item: Item | None = None) -> None:
    """Cache an index, whose item in the disk cache is given, unless the store is local."""
    if store.identity is None:
        return
    with _lock:
        _indexes[store.identity, key] = index, item
        size = sum(one.nbytes for one, _ in _indexes.values())
        while len(_indexes) > MOST_INDEXES or (size > _MOST_BYTES and len(_indexes) > 1):
            size -= _indexes.popitem(last=False)[1][0].nbytes


@run_after_fork
def clear() -> None:
    """Drop all indexes."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may hold the lock that a forked child inherits
    _indexes.clear()
