"""Reading of the chunks of remote Zarr arrays through the engine; zarr-python's codecs decode them.

zarr-python limits its concurrency for the whole process, and reads the chunks of a shard one after the other. So the
engine fetches the chunks, including those in shards. Each chunk is decoded with the codecs of an array whose chunks are
the smallest chunks that can be read.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.sources.base import ALLOCATE
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.chunk_boxes import chunk_spans, copy_cached, remember_box
from imageryxr.sources.fetch.client import LargeBodyError
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import TooLargeError, decompress
from imageryxr.sources.fetch.disk_reads import (
    Index,
    IndexPlace,
    Key,
    ObjectStore,
    cached_indexes,
    dropping_damaged,
    get_indexes,
    put_index,
)
from imageryxr.sources.fetch.engine import ObjectRequest, read_objects
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import ForbiddenObjectError
from imageryxr.sources.fetch.sockets import Steps, run
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.omezarr.chunk_layout import (
    ChunkLayout,
    ChunkPart,
    Coords,
    StoredAxes,
    chunk_layout,
    chunk_parts,
    decode_chunk,
)
from imageryxr.sources.omezarr.object_check import DamagedObjectError, check_object

LARGEST_SHARD = 16 << 20
"""Largest size in bytes of the voxels of a shard that is fetched with one request."""
# Offset and size in the index for a chunk that the shard does not contain.
_LEFT_OUT = (2**64 - 1, 2**64 - 1)


def chunk_request(layout: ChunkLayout, part: ChunkPart, span: tuple[int, int] | None = None) -> ObjectRequest:
    """Return the request for a chunk: an object, or a range of a shard."""
    return ObjectRequest(part.key, layout.limit, 2 * layout.chunk_bytes, span, part)


def whole_shards(layout: ChunkLayout, store: ObjectStore, parts: Sequence[ChunkPart]) -> list[list[ChunkPart]]:
    """Return the chunks of each shard that is fetched whole: of small shards all of whose chunks are needed.

    Fetching a whole shard saves the round trip for its index. With a disk cache no shard is fetched whole, because the
    cache stores single chunks, whose keys require the index.
    """
    if layout.index is None or layout.shard_bytes > LARGEST_SHARD or store.disk_place is not None:
        return []
    found = defaultdict[str, list[ChunkPart]](list)
    for part in parts:
        found[part.key].append(part)
    known = cached_indexes(store, {(key,) for key in found})
    return [
        inside
        for key, inside in found.items()
        if (key,) not in known and len(inside) == layout.count_chunks(inside[0].place_of_object)
    ]


def shard_request(
    layout: ChunkLayout, store: ObjectStore, parts: Sequence[ChunkPart], found: list[ObjectRequest | None]
) -> ObjectRequest:
    """Return the request for a whole shard, which sets the requests for its chunks in ``found`` when it arrives."""
    form, key, size = layout.form, parts[0].key, layout.form.index_size
    limit = 4 * layout.shard_bytes + (1 << 20) + size

    def unpack(stored: Stored | None) -> Iterator[tuple[ObjectRequest, Stored | None]]:
        if stored is None:
            yield from ((chunk_request(layout, part), None) for part in parts)
            return
        body = memoryview(decompress(stored.body, stored.encoding, limit) if stored.encoding else stored.body)
        index = _parse_index(layout, key, body[:size] if form.index_first else body[-size:])
        for part in parts:
            request = found[part.number] = _request_in_shard(layout, part, index)
            if request is None or request.span is None:
                yield chunk_request(layout, part), None
                continue
            start, stop = request.span
            if stop > len(body):
                raise DamagedObjectError(f"{key} has {len(body)} bytes, but its index refers to byte {stop}")
            yield request, stored._replace(body=body[start:stop], encoding="")
        # All chunks have been decoded, so the index is valid; a damaged index must be fetched again.
        put_index(store, (key,), index)

    return ObjectRequest(key, limit, layout.shard_bytes + 2 * layout.chunk_bytes, unpack=unpack)


def chunk_requests(
    layout: ChunkLayout, store: ObjectStore, parts: Sequence[ChunkPart]
) -> Iterator[ObjectRequest | None]:
    """Yield the requests for chunks; None for a chunk that its shard does not contain, which is the fill value."""
    if layout.index is None:
        yield from (chunk_request(layout, part) for part in parts)
        return
    size = layout.form.index_size
    place = ByteRange(0, size) if layout.form.index_first else ByteRange(suffix=size)

    def locate(key: Key) -> IndexPlace:
        return IndexPlace(place, size, lambda body: _parse_index(layout, key[0], body))

    indexes = get_indexes(store, {(part.key,) for part in parts}, locate)
    with dropping_damaged(store, {part.key for part in parts}):
        yield from (_request_in_shard(layout, part, indexes[(part.key,)]) for part in parts)


def _parse_index(layout: ChunkLayout, key: str, body: bytes | memoryview) -> Index:
    size = layout.form.index_size
    check_object(layout.form, key, body, (0, size) if layout.form.index_first else (None, size))
    return decode_chunk(layout.index, body).reshape(-1, 2)


def _request_in_shard(layout: ChunkLayout, part: ChunkPart, index: Index | None) -> ObjectRequest | None:
    start, count = _LEFT_OUT if index is None else (index.item(part.row, 0), index.item(part.row, 1))
    if (start, count) == _LEFT_OUT:
        return None
    if count > layout.limit or start > 1 << 62:
        raise DamagedObjectError(
            f"the index of {part.key} states a chunk of {count:,} bytes; the limit is {layout.limit:,}"
        )
    return chunk_request(layout, part, (start, start + count))


def read_box(
    store: ObjectStore, path: str, metadata: str, axes: StoredAxes, box: IndexBox, connection: Connection
) -> tuple[npt.NDArray[Any], dict[str, bool]]:
    """Return a box (z, y, x) of an array, and the keys of missing objects, whose voxels are the fill value.

    Parameters
    ----------
    store : ObjectStore
        Store of the group.
    path : str
        Path of the array in the store.
    metadata : str
        Metadata of the array, as in `ZarrLevel`.
    axes : tuple of str and int
        For each axis of the array, its name (z, y or x), or the index to read along a non-spatial axis. Without z the
        array is one slice.
    box : IndexBox
        Box inside the array.
    connection : Connection
        Options of requests.

    Returns
    -------
    values : ndarray
    absent : dict
        The value of a key is True if the store denied access (403).
    """
    layout, absent = chunk_layout(metadata), dict[str, bool]()
    ranges = dict(zip(DIMS, zip(*box, strict=True), strict=True))
    sizes = {"z": 1} | {a: n for a, n in zip(axes, layout.chunks, strict=True) if isinstance(a, str)}
    spans = [chunk_spans(sizes[d], *ranges[d]) for d in DIMS]
    name = (path, axes, *((along[0].low, along[-1].high) for along in spans))
    view = _view(axes, layout.chunks)
    cached = copy_cached(store, connection, name, spans, box, view)
    if cached is not None:
        return cached, absent
    dtype = layout.array.dtype
    blank, out = np.asarray(layout.array.metadata.fill_value, dtype), ALLOCATE.get()(box.shape, dtype)
    parts, guarded = list(chunk_parts(layout, path, axes, spans)), _Guarded(store, absent)
    found: list[ObjectRequest | None] = [None] * len(parts)

    def decode(request: ObjectRequest, stored: Stored) -> npt.NDArray[Any]:
        body = decompress(stored.body, stored.encoding, request.limit) if stored.encoding else stored.body
        check_object(layout.form, request.key, body, request.span or (None, None))
        return decode_chunk(layout.array, body, layout.plain).astype(dtype, copy=False)

    def use(request: ObjectRequest, voxels: npt.NDArray[Any] | None) -> None:
        part: ChunkPart = request.tag
        out[part.place] = blank if voxels is None else view(voxels)[part.taken]

    whole = whole_shards(layout, guarded, parts)
    in_whole = {inside[0].key for inside in whole}
    others = [part for part in parts if part.key not in in_whole]

    def read_whole() -> None:
        requests = [shard_request(layout, guarded, inside, found) for inside in whole]
        try:
            read_objects(guarded, requests, decode, use, connection)
        except (TooLargeError, LargeBodyError):  # a shard may have unused bytes between its chunks
            read_ranges([part for inside in whole for part in inside])

    def read_ranges(some: list[ChunkPart]) -> None:
        for part, request in zip(some, chunk_requests(layout, guarded, some), strict=True):
            found[part.number] = request
            if request is None:
                out[part.place] = blank
        requests = [request for part in some if (request := found[part.number]) is not None]
        read_objects(guarded, requests, decode, use, connection)

    read_others: Callable[[], None] = partial(read_ranges, others)
    if whole and others:
        run_in_parallel(lambda job, stop: job(), [read_whole, read_others], 2)
    else:
        (read_whole if whole else read_others)()
    if not absent:
        remember_box(store, connection, name, found, np.broadcast_to(blank, layout.chunks))
    return out, absent


def _view(axes: StoredAxes, chunks: Coords) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return a function that returns a view of a chunk with the axes z, y and x."""
    index: tuple[Any, ...] = tuple(
        a % n if isinstance(a, int) else slice(None) for a, n in zip(axes, chunks, strict=True)
    )
    kept = [a for a in axes if isinstance(a, str)]
    if "z" not in kept:
        index, kept = (np.newaxis, *index), ["z", *kept]
    order = [kept.index(d) for d in DIMS]
    return lambda chunk: chunk[index].transpose(order)


class _Guarded:
    """A store that records the keys of missing objects, and whether it answered 403 for them."""

    def __init__(self, store: ObjectStore, absent: dict[str, bool]) -> None:
        self.store, self.absent = store, absent
        self.identity, self.disk_place, self.width = store.identity, store.disk_place, store.width
        self.can_interleave = bool(getattr(store, "can_interleave", False))

    def get(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event, known: Stored | None = None
    ) -> Stored | None:
        """Return an object or a range of it, or None if it does not exist; see `ConditionalStore`."""
        return run(self.steps(key, part, limit, stop, known))

    def steps(
        self, key: str, part: ByteRange | None, limit: int, stop: threading.Event, known: Stored | None = None
    ) -> Steps[Stored | None]:
        """Return the steps of `get`, which may wait."""
        store: Any = self.store
        more = [] if known is None else [known]
        try:
            if self.can_interleave:
                found: Stored | None = yield from store.steps(key, part, limit, stop, *more)
            else:
                found = store.get(key, part, limit, stop, *more)
        except ForbiddenObjectError:
            # Buckets without list permission answer 403 for missing objects; `OmeZarrSource._check_absent` finds out
            # whether access was denied.
            self.absent[key] = True
            return None
        if found is None:
            self.absent[key] = False
        return found
