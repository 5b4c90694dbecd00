"""The engine that reads many objects of a store at once: every source of stored chunks reads through `read_objects`.

An object store answers a request after tens of milliseconds. Therefore many requests run at once. A few threads make
all requests to web servers (see `lanes`); each request to another store has a thread of its own. An object is decoded
as soon as it has arrived, while other requests run. Neighbouring ranges of one object are fetched with one request.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from imageryxr.core.fork import run_after_fork
from imageryxr.sources.fetch import lanes, memory_cache
from imageryxr.sources.fetch.budget import ByteBudget
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.disk_reads import DiskReader, Item, ObjectStore, disk_reader, dropping_damaged
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.sockets import Steps
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.traffic import count

LARGEST_RANGE, LARGEST_GAP = 2 << 20, 64 << 10
"""Largest range that is fetched with one request for several chunks, and largest gap between two of them, in bytes."""
# Cached ranges of one object that are validated with one request.
_VALIDATED = 16


class ObjectRequest(NamedTuple):
    """An object, or a range of one, that is to be read."""

    key: str
    """Path in the store."""
    limit: int
    """Largest number of bytes, before and after decompression."""
    memory: int
    """Approximate number of bytes that the object takes while it is fetched and decoded."""
    span: tuple[int, int] | None = None
    """First byte and end of a range."""
    tag: Any = None
    """A value of the caller, which is passed on with the object."""
    form: Hashable = None
    """Key that distinguishes arrays that are decoded from the same bytes, such as the channel."""
    unpack: Callable[[Stored | None], Iterator[tuple[ObjectRequest, Stored | None]]] | None = None
    """For a whole shard: function that yields the objects in it with their bytes, which are decoded instead of it."""


_READS_ONCE: ContextVar[bool] = ContextVar("imageryxr_reads_once", default=False)

Voxels = npt.NDArray[Any]
Decode = Callable[[ObjectRequest, Stored], Voxels]
Use = Callable[[ObjectRequest, Voxels | None], None]


class _ProcessState:
    def __init__(self) -> None:
        self.memory = ByteBudget()
        # More decoders than cores would only compete for the interpreter.
        self.decoders = threading.BoundedSemaphore(cpu_count())


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_state = _ProcessState()


@run_after_fork
def _reset_after_fork() -> None:
    global _state
    _state = _ProcessState()


def read_objects(
    store: ObjectStore, requests: Sequence[ObjectRequest], decode: Decode, use: Use, connection: Connection
) -> None:
    """Fetch objects, decode them and pass each to a function, in several threads; the first error is raised at once.

    Objects in the memory cache are not fetched. An object enters the cache after it was decoded, so that a damaged
    object is fetched again, and so is the index of a shard whose ranges could not be read.

    Parameters
    ----------
    store : ObjectStore
        Store that has the objects.
    requests : sequence of ObjectRequest
        Objects to read.
    decode : callable
        Returns the voxels of an object.
    use : callable
        Receives the voxels of an object, which it must not change, or None if the object is missing.
    connection : Connection
        Options of requests.
    """
    identity, waiting = store.identity if connection.cache_bytes else None, list(requests)
    if identity is not None:
        waiting = _use_decoded(identity, requests, use)
    reader = _Reader(store, decode, use, connection, identity, disk_reader(store), _READS_ONCE.get())
    bundles = list(_bundles(waiting, identity, reader.disk))
    with dropping_damaged(store, {request.key for request in waiting if request.span is not None}):
        if lanes.IS_SUPPORTED and reader.disk is None and getattr(store, "can_interleave", False):
            _read_in_lanes(reader, bundles)
        else:
            run_in_parallel(reader.work, bundles, store.width)


@contextmanager
def reading_once() -> Iterator[None]:
    """Cache no decoded chunks of the reads in this context, for callers such as exports that use each voxel once.

    Otherwise the system would clear new memory for each chunk until the cache is full.
    """
    before = _READS_ONCE.set(True)
    try:
        yield
    finally:
        _READS_ONCE.reset(before)


def _read_in_lanes(reader: _Reader, bundles: list[list[ObjectRequest]]) -> None:
    """Read bundles in few threads: one waits for the server while the others decode."""
    store: Any = reader.store
    memory = _state.memory

    def start(bundle: list[ObjectRequest], stop: threading.Event) -> Steps[tuple[Any, Stored | None]]:
        reserved = yield from memory.acquire(_bytes_in_memory(bundle), reader, stop)
        try:
            found = reader.find_in_memory(bundle)
            if found is None and not _is_empty(bundle):
                return reserved, (yield from store.steps(*_object_of(bundle), stop))
            return reserved, found or Stored(b"")
        except BaseException:
            memory.release(reserved)
            raise

    def finish(bundle: list[ObjectRequest], found: tuple[Any, Stored | None]) -> None:
        for request, stored in _split(bundle, found[1]):
            reader.pass_on(request, stored)

    threads = min(len(bundles), cpu_count() + 1)
    requests = lanes.Lanes(
        bundles, store.width, threads, start=start, finish=finish, discard=lambda found: memory.release(found[0])
    )
    run_in_parallel(requests.work, range(threads), threads)


def _use_decoded(identity: Hashable, requests: Sequence[ObjectRequest], use: Use) -> list[ObjectRequest]:
    """Pass on the objects whose voxels are in the memory cache; return the others."""
    found = memory_cache.cache.get_decoded([(cache_key(identity, one), one.form) for one in requests])
    missing = []
    for request, voxels in zip(requests, found, strict=True):
        if voxels is None:
            missing.append(request)
        else:
            use(request, voxels)
    count(in_memory=len(requests) - len(missing))
    return missing


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """One call of `read_objects`."""

    store: ObjectStore
    decode: Decode
    use: Use
    connection: Connection
    identity: Hashable | None
    disk: DiskReader | None
    reads_once: bool

    def work(self, bundle: list[ObjectRequest], stop: threading.Event) -> None:
        """Read the objects of a bundle: from memory, from the disk, and the others from the store."""
        with _state.memory.reserve(_bytes_in_memory(bundle), self, stop):
            found = self.find_in_memory(bundle)
            if found is not None:
                self.pass_on(bundle[0], found)
                return
            if self.disk is not None and self.disk.has(_item(bundle[0])):
                bundle = self._read_disk(self.disk, bundle, stop)
            for part in join_ranges(bundle):
                found = Stored(b"") if _is_empty(part) else self.store.get(*_object_of(part), stop)
                for request, stored in _split(part, found):
                    self.pass_on(request, stored, self.disk)

    def find_in_memory(self, bundle: list[ObjectRequest]) -> Stored | None:
        """Return the bytes of a bundle's only object from the memory cache, or None."""
        if self.identity is None or len(bundle) > 1:
            return None
        found = memory_cache.cache.get(cache_key(self.identity, bundle[0]))
        if found is not None:
            count(in_memory=1)
        return found

    def _read_disk(self, disk: DiskReader, bundle: list[ObjectRequest], stop: threading.Event) -> list[ObjectRequest]:
        """Pass on the objects of a bundle that the disk cache has; return the others."""
        left = {id(request): request for request in bundle}
        for item, stored, was_cached in disk.read(map(_item, bundle), stop):
            try:
                self.pass_on(item.tag, stored, None if was_cached else disk)
            except Exception:
                if not was_cached:
                    raise
                disk.drop(item)  # the caller fetches the object again
            else:
                del left[id(item.tag)]
        return list(left.values())

    def pass_on(self, request: ObjectRequest, stored: Stored | None, new_for: DiskReader | None = None) -> None:
        """Decode an object, None if it is missing, and store its bytes in the caches."""
        if stored is None:
            self.use(request, None)
            return
        if self.identity is not None:  # a view of the response would keep the bytes of all its chunks in the cache
            stored = stored._replace(body=bytes(stored.body))
        with _state.decoders:
            voxels = self.decode(request, stored)
            self.use(request, voxels)
        if new_for is not None:
            new_for.put(_item(request), stored)
        if self.identity is not None:
            key, cache = cache_key(self.identity, request), memory_cache.cache
            cache.put(key, stored, self.connection.cache_bytes)
            if not self.reads_once:
                cache.put_decoded(key, request.form, voxels)


def _item(request: ObjectRequest) -> Item:
    span = request.span
    return Item(request.key, None if span is None else ByteRange(*span), request.limit, request)


def cache_key(identity: Hashable, request: ObjectRequest) -> tuple[Hashable, ...]:
    """Return the key of an object of a store in the memory cache."""
    return (identity, request.key, request.span)


def _bytes_in_memory(bundle: list[ObjectRequest]) -> int:
    # Neighbouring ranges are fetched together, and decoded one after the other. The disk cache reads one at a time.
    spans = [request.span for request in bundle if request.span is not None]
    fetched = max(stop for _, stop in spans) - min(start for start, _ in spans) if spans else 0
    parts = sum(stop - start + LARGEST_GAP for start, stop in spans)
    return min(fetched, parts) + max(request.memory for request in bundle)


def _object_of(bundle: list[ObjectRequest]) -> tuple[str, ByteRange | None, int]:
    """Return the key, the range and the largest size of what one request fetches for a bundle."""
    first = bundle[0]
    if first.span is None:
        return first.key, None, first.limit
    start, end = first.span[0], max(request.span[1] for request in bundle if request.span)
    return first.key, ByteRange(start, end), end - start


def _is_empty(bundle: list[ObjectRequest]) -> bool:
    return all(request.span is not None and request.span[0] == request.span[1] for request in bundle)


def _split(bundle: list[ObjectRequest], found: Stored | None) -> Iterator[tuple[ObjectRequest, Stored | None]]:
    """Yield the objects of a bundle, which are one object or neighbouring ranges of one, from what was fetched."""
    first = bundle[0]
    if first.unpack is not None:
        yield from first.unpack(found)
        return
    if first.span is None or found is None:
        yield from ((request, found) for request in bundle)
        return
    start, end = first.span[0], max(request.span[1] for request in bundle if request.span)
    if len(found.body) != end - start:
        raise ValueError(f"{first.key} ends before byte {end}, although its index lists chunks up to there")
    for request in bundle:
        low, high = request.span or (0, 0)
        yield request, found._replace(body=memoryview(found.body)[low - start : high - start])


def _bundles(
    requests: Sequence[ObjectRequest], identity: Hashable | None, disk: DiskReader | None
) -> Iterator[list[ObjectRequest]]:
    """Yield the requests, joined where they are neighbouring ranges of one object that the caches do not have.

    Ranges of one object that are in the disk cache are joined as well, so that one request validates all of them.
    """
    ranges: defaultdict[str, list[ObjectRequest]] = defaultdict(list)
    on_disk: defaultdict[str, list[ObjectRequest]] = defaultdict(list)
    for request in requests:
        is_cached = identity is not None and (memory_cache.cache.get(cache_key(identity, request)) is not None)
        if request.span is None or is_cached:
            yield [request]
        else:
            is_on_disk = disk is not None and disk.has(_item(request))
            (on_disk if is_on_disk else ranges)[request.key].append(request)
    for found in on_disk.values():
        yield from (found[i : i + _VALIDATED] for i in range(0, len(found), _VALIDATED))
    for found in ranges.values():
        yield from join_ranges(found)


def join_ranges(requests: Sequence[ObjectRequest]) -> Iterator[list[ObjectRequest]]:
    """Yield ranges of one object in groups that are fetched with one request each."""
    group: list[ObjectRequest] = []
    start = end = 0
    for request in sorted(requests, key=lambda request: request.span or (0, 0)):
        low, high = request.span or (0, 0)
        if group and (low - end > LARGEST_GAP or max(high, end) - start > LARGEST_RANGE):
            yield group
            group = []
        start, end = (start, max(high, end)) if group else (low, high)
        group.append(request)
    if group:
        yield group
