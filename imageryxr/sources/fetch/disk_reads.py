"""Reading of objects through the disk cache: use of valid entries, and validation of others at the server.

The indexes of shards are also kept in memory, so that each index is fetched once per process.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.base import stable_version
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.disk_cache import DiskCache, open_cache
from imageryxr.sources.fetch.disk_entry import entry_name
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.sockets import StoppedError
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.traffic import count
from imageryxr.sources.fetch.validators import Validator

Result = TypeVar("Result")


class DiskPlace(NamedTuple):
    """The place of the objects of a store in a disk cache."""

    folder: str
    limit: int
    """Size of the folder in bytes."""
    identity: tuple[object, ...]
    """Key of the store, convertible to JSON and without secrets."""


def disk_place(connection: Connection, version: str, *identity: object) -> DiskPlace | None:
    """Return where the objects of a store are cached on a disk, or None if they are not.

    `version` is the stamp and the metadata of the volume. `identity` identifies the store; it must be convertible to
    JSON and contain no secrets.
    """
    folder = connection.disk_folder
    identity = (*identity, stable_version(version))
    return None if folder is None else DiskPlace(folder, connection.disk_cache_bytes, identity)


class ObjectStore(Protocol):
    """A folder of objects on a disk, in a bucket or on a web server."""

    @property
    def identity(self) -> Hashable | None:
        """Key of the store in the memory cache, without secrets; None if its objects are not cached."""

    @property
    def disk_place(self) -> DiskPlace | None:
        """Where its objects are cached on a disk; None unless the store is a `ConditionalStore`."""

    @property
    def width(self) -> int:
        """Number of threads that read from it at once."""

    def get(self, key: str, part: ByteRange | None, limit: int, stop: threading.Event) -> Stored | None:
        """Return an object or a range of it, of at most ``limit`` bytes; None if the store does not have it.

        Raises
        ------
        PermissionError
            If access is denied.
        ServerError, OSError, ValueError
            If the request fails, or the object is damaged.
        """


class ConditionalStore(ObjectStore, Protocol):
    """A store that can confirm that an object did not change, without sending it again."""

    def get(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event, known: Stored | None = None
    ) -> Stored | None:
        """Return ``known``, the same object, if it did not change; otherwise as `ObjectStore.get`."""


@dataclass(frozen=True, slots=True)
class Item:
    """An object, or a range of one."""

    key: str
    part: ByteRange | None
    limit: int
    """Largest number of bytes."""
    tag: Any = None
    """A value of the caller, which is returned with the object."""


@dataclass(frozen=True)
class DiskReader:
    """The cached objects of one store."""

    store: ConditionalStore
    cache: DiskCache
    place: DiskPlace

    def has(self, item: Item) -> bool:
        """Return whether there is an entry, which may be damaged or out of date."""
        return self.cache.has(self._name(item))

    def read(self, items: Iterable[Item], stop: threading.Event) -> Iterator[tuple[Item, Stored | None, bool]]:
        """Yield each item that has an entry, its bytes, and whether these are from the cache and not from the server.

        The bytes are None if the object no longer exists. Items without a valid entry are left out. One request
        validates all ranges of an object that belong to the same version.
        """
        confirmed: dict[str, Validator] = {}
        outdated: dict[str, Validator] = {}
        for item in items:
            stored = self.cache.get(self._name(item), item.limit)
            if stored is None or stored.validator is None:
                continue
            version = stored.validator
            known = confirmed.get(item.key)
            if version.fresh_until > time.time() or (known is not None and known.is_same_version(version)):
                count(on_disk=1)
                yield item, stored, True
                continue
            if item.key in outdated and outdated[item.key].is_same_version(version):
                self.drop(item)
                continue
            current = self.store.get(item.key, item.part, item.limit, stop, stored)
            if current is stored:
                confirmed[item.key] = version
                count(on_disk=1)
            else:
                outdated[item.key] = version
                self.drop(item)
            yield item, current, current is stored

    def put(self, item: Item, stored: Stored) -> None:
        """Store an object that was decoded without an error."""
        self.cache.put(self._name(item), stored, self.place.limit)

    def drop(self, item: Item) -> None:
        """Remove the entry of an object."""
        self.cache.remove(self._name(item))

    def _name(self, item: Item) -> str:
        part = item.part
        return entry_name(self.place.identity, item.key, part and (part.start, part.stop, part.suffix))


def disk_reader(store: ObjectStore) -> DiskReader | None:
    """Return the disk cache of a store, or None if its objects are not cached on a disk."""
    place = store.disk_place
    return None if place is None else DiskReader(store, open_cache(place.folder), place)  # type: ignore[arg-type]


def read_parsed(
    store: ObjectStore,
    key: str,
    part: ByteRange,
    limit: int,
    stop: threading.Event,
    parse: Callable[[bytes | memoryview], Result],
) -> Result | None:
    """Return a parsed range of an object, from the disk cache or the store; None if the store does not have it.

    The bytes enter the cache only if ``parse`` raises no error.
    """
    item, disk = Item(key, part, limit), disk_reader(store)
    for _, stored, was_cached in disk.read([item], stop) if disk is not None else ():
        if stored is None:
            return None
        try:
            parsed = parse(stored.body)
        except StoppedError:
            raise
        except Exception:
            if not was_cached:
                raise
            continue  # the object is fetched again
        if not was_cached and disk is not None:
            disk.put(item, stored)
        return parsed
    stored = store.get(key, part, limit, stop)
    if stored is None:
        return None
    parsed = parse(stored.body)
    if disk is not None:
        disk.put(item, stored)
    return parsed


# ---------------------------------------------------------------------------------------------------------
# indexes of shards

Index = npt.NDArray[Any]
# Path of the shard in its store, and further parts that identify an index in it.
Key = tuple[str, ...]

MOST_INDEXES, _MOST_BYTES = 4096, 64 << 20


class IndexPlace(NamedTuple):
    """The place of an index in its shard."""

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
