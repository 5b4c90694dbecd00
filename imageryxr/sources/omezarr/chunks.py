"""Reading of the chunks of remote Zarr arrays through the engine; zarr-python's codecs decode them.

zarr-python limits its concurrency for the whole process, and reads the chunks of a shard one after the other. So the
engine fetches the chunks, including those in shards. Each chunk is decoded with the codecs of an array whose chunks are
the smallest chunks that can be read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, read_objects
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import ForbiddenObjectError
from imageryxr.sources.fetch.sockets import Steps, run
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.omezarr.chunk_decoder import Coords, decode_chunk
from imageryxr.sources.omezarr.chunk_layout import ChunkPart, StoredAxes, chunk_layout, chunk_parts
from imageryxr.sources.omezarr.object_check import check_object
from imageryxr.sources.omezarr.shards import chunk_requests, shard_request, whole_shards


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
