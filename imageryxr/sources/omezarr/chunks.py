"""Reading of the chunks of remote Zarr arrays through the engine; zarr-python's codecs decode them.

zarr-python limits its concurrency for the whole process, and reads the chunks of a shard one after the other. So the
engine fetches the chunks, also those in shards, and each is decoded with the codecs of an array whose chunks are the
smallest chunks that can be read.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.fork import run_after_fork
from imageryxr.core.lazy_import import import_package
from imageryxr.sources.base import ALLOCATE
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.chunk_boxes import Axes, chunk_spans, copy_cached, remember_box
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore, read_parsed
from imageryxr.sources.fetch.engine import ObjectRequest, read_objects
from imageryxr.sources.fetch.index_cache import Index, Key, get_indexes
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import ForbiddenObjectError
from imageryxr.sources.fetch.sockets import Steps, run
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata, decompress_bounded
from imageryxr.sources.omezarr.codec_metadata import BOUNDED
from imageryxr.sources.omezarr.object_check import DamagedObjectError, ObjectFormat, check_object, object_format

Coords = tuple[int, ...]
StoredAxes = tuple[str | int, ...]
# Offset and size of a chunk that its shard does not contain.
_LEFT_OUT = (2**64 - 1, 2**64 - 1)


@dataclass(frozen=True)
class _Layout:
    """How the chunks of an array are stored."""

    array: Any
    """Array of zarr-python whose chunks are the smallest chunks that can be read, to decode them."""
    outer: Any
    """Metadata of the stored array, for the keys of its objects."""
    chunks: Coords
    """Shape of the smallest chunks."""
    per_object: Coords
    """Number of chunks along each axis of an object; 1 unless the objects are shards."""
    form: ObjectFormat
    plain: _PlainChunk | None
    """How the chunks are decoded without zarr-python."""
    index: Any = None
    """Array of zarr-python to decode the index of a shard; None for objects that are chunks."""

    @cached_property
    def chunk_bytes(self) -> int:
        """Size in bytes of a decoded chunk."""
        return math.prod(self.chunks) * int(self.array.dtype.itemsize)

    @cached_property
    def limit(self) -> int:
        """Largest size in bytes of a stored chunk."""
        return 4 * self.chunk_bytes + (1 << 20)


class _Part(NamedTuple):
    """A chunk of a box."""

    key: str
    """Key of its object."""
    row: int
    """Its row in the index of the object."""
    taken: tuple[slice, ...]
    """Its part in the box (z, y, x)."""
    place: tuple[slice, ...]
    """Where this part lies in the box."""


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
        For each axis of the array, its name (z, y or x), or the index that is read of another axis. If there is no z,
        the array is one slice.
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
    layout, absent = _layout(metadata), dict[str, bool]()
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
    parts, guarded = list(_parts(layout, path, axes, spans)), _Guarded(store, absent)
    if layout.index is None:
        found: list[ObjectRequest | None] = [_request(layout, part) for part in parts]
    else:
        found = list(_shard_requests(layout, guarded, parts))
    for part, request in zip(parts, found, strict=True):
        if request is None:
            out[part.place] = blank

    def decode(request: ObjectRequest, stored: Stored) -> npt.NDArray[Any]:
        body = decompress(stored.body, stored.encoding, request.limit) if stored.encoding else stored.body
        check_object(layout.form, request.key, body, request.span or (None, None))
        return _decode(layout.array, body, layout.plain).astype(dtype, copy=False)

    def use(request: ObjectRequest, voxels: npt.NDArray[Any] | None) -> None:
        part: _Part = request.tag
        out[part.place] = blank if voxels is None else view(voxels)[part.taken]

    read_objects(guarded, [one for one in found if one is not None], decode, use, connection)
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
    """A store that records missing objects, and those for which it answers 403."""

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
            # Buckets without list permission answer 403 for missing objects; `_check_absent` distinguishes.
            self.absent[key] = True
            return None
        if found is None:
            self.absent[key] = False
        return found


@lru_cache(maxsize=256)
def _layout(metadata: str) -> _Layout:
    from imageryxr.sources.omezarr.stores import parse_array_metadata

    document, form = json.loads(metadata), object_format(metadata)
    outer = parse_array_metadata(metadata)
    if document["zarr_format"] == 2:
        chunks = tuple(document["chunks"])
        return _Layout(_array(metadata), outer, chunks, (1,) * len(chunks), form, _plain_chunk(metadata))
    objects = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    shard = document["codecs"][0].get("configuration") or {}
    is_sharded = form.index_size and "sharding_indexed" not in [c["name"] for c in shard["codecs"]]
    if not is_sharded:  # also shards in shards and transposed shards, which are read whole
        return _Layout(_array(metadata), outer, objects, (1,) * len(objects), form, _plain_chunk(metadata))
    chunks = tuple(shard["chunk_shape"])
    per_object = tuple(n // m for n, m in zip(objects, chunks, strict=True))
    inner = _with_chunks(document, document["shape"], chunks, shard["codecs"])
    rows = [*per_object, 2]
    more = {"data_type": "uint64", "fill_value": 2**64 - 1}
    index = _with_chunks({**document, **more}, rows, tuple(rows), shard["index_codecs"])
    return _Layout(_array(inner), outer, chunks, per_object, form, _plain_chunk(inner), _array(index))


def _with_chunks(document: dict[str, Any], shape: list[int], chunks: Coords, codecs: list[Any]) -> str:
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}
    return json.dumps({**document, "shape": shape, "chunk_grid": grid, "codecs": codecs}, sort_keys=True)


def _array(metadata: str) -> Any:
    from zarr import AsyncArray
    from zarr.storage import MemoryStore, StorePath

    from imageryxr.sources.omezarr.stores import parse_array_metadata

    return AsyncArray(parse_array_metadata(metadata), StorePath(MemoryStore()))


def _parts(layout: _Layout, path: str, axes: StoredAxes, spans: Axes) -> Iterator[_Part]:
    """Yield the chunks that a box overlaps, in C order of z, y and x."""
    prefix, encode = f"{path}/" if path else "", layout.outer.encode_chunk_key
    for box in product(*spans):
        along = dict(zip(DIMS, box, strict=True))
        numbers = (a // n if isinstance(a, int) else along[a].number for a, n in zip(axes, layout.chunks, strict=True))
        places, row = [], 0
        for number, per_object in zip(numbers, layout.per_object, strict=True):
            places.append(number // per_object)
            row = row * per_object + number % per_object
        yield _Part(prefix + encode(tuple(places)), row, tuple(s.taken for s in box), tuple(s.place for s in box))


def _request(layout: _Layout, part: _Part, span: tuple[int, int] | None = None) -> ObjectRequest:
    return ObjectRequest(part.key, layout.limit, 2 * layout.chunk_bytes, span, part)


def _shard_requests(layout: _Layout, store: ObjectStore, parts: list[_Part]) -> Iterator[ObjectRequest | None]:
    """Yield the requests for chunks in shards; None for a chunk that its shard does not contain, the fill value."""
    size, form = layout.form.index_size, layout.form
    place = ByteRange(0, size) if form.index_first else ByteRange(suffix=size)

    def fetch(key: Key, stop: threading.Event) -> Index | None:
        def parse(body: bytes | memoryview) -> Index:
            check_object(form, key[0], body, (0, size) if form.index_first else (None, size))
            return _decode(layout.index, body).reshape(-1, 2)

        return read_parsed(store, key[0], place, size, stop, parse)

    indexes = get_indexes(store, {(part.key,) for part in parts}, fetch)
    for part in parts:
        index = indexes[(part.key,)]
        start, count = _LEFT_OUT if index is None else (index.item(part.row, 0), index.item(part.row, 1))
        if (start, count) == _LEFT_OUT:
            yield None
            continue
        if count > layout.limit or start > 1 << 62:
            raise DamagedObjectError(
                f"the index of {part.key} states a chunk of {count:,} bytes; the limit is {layout.limit:,}"
            )
        yield _request(layout, part, (start, start + count))


# ---------------------------------------------------------------------------------------------------------
# decoding


class _ReadySelector(selectors.DefaultSelector):
    """A selector that makes a system call only to wait, because the callbacks of decoding are always ready."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return events of files; none if the caller does not wait."""
        return [] if timeout is not None and timeout <= 0 else super().select(timeout)


class _InlineLoop(asyncio.SelectorEventLoop):
    """An event loop whose executor is the calling thread: the engine decodes in threads already."""

    def __init__(self) -> None:
        super().__init__(_ReadySelector())

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Return a future with the result of a function."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


_loops: deque[_InlineLoop] = deque()


def _close_loops() -> None:
    while _loops:
        _loops.pop().close()


atexit.register(_close_loops)
run_after_fork(_loops.clear)  # the child must not change the parent's selectors


@dataclass(frozen=True)
class _PlainChunk:
    """A chunk whose voxels are stored in one order, with at most one compressor."""

    shape: Coords
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    compressor: dict[str, Any] | None
    limit: int
    """Largest size in bytes after decompression."""

    def decode(self, body: bytes | memoryview) -> npt.NDArray[Any] | None:
        """Return the voxels, or None if their size is wrong."""
        found = body if self.compressor is None else decompress_bounded(body, self.compressor, self.limit)
        voxels: npt.NDArray[Any] = np.frombuffer(found, np.uint8)
        if voxels.size != math.prod(self.shape) * self.dtype.itemsize:
            return None
        return voxels.view(self.dtype).reshape(self.shape, order=self.order)


@lru_cache(maxsize=256)
def _plain_chunk(metadata: str) -> _PlainChunk | None:
    """Return how chunks are decoded without zarr-python, or None if they have other codecs."""
    document = bounded_metadata(metadata)
    if document["zarr_format"] == 2:
        if document.get("filters") or np.dtype(document["dtype"]).kind not in "iuf":
            return None
        shape, dtype, order = document["chunks"], np.dtype(document["dtype"]), document.get("order", "C")
        rest = [] if document["compressor"] is None else [document["compressor"]]
    else:
        first, *rest = document["codecs"]
        endian = (first.get("configuration") or {}).get("endian", "little")
        if first["name"] != "bytes" or np.dtype(document["data_type"]).kind not in "iuf":
            return None
        shape, order = document["chunk_grid"]["configuration"]["chunk_shape"], "C"
        dtype = np.dtype(document["data_type"]).newbyteorder("<" if endian == "little" else ">")
        rest = [{"id": codec["name"], **(codec.get("configuration") or {})} for codec in rest]
    if len(rest) > 1 or any(codec["id"] != BOUNDED for codec in rest):
        return None
    compressor, limit = (rest[0]["codec"], rest[0]["limit"]) if rest else (None, 0)
    return _PlainChunk(tuple(shape), dtype, order, compressor, limit)


def _decode(array: Any, body: bytes | memoryview, plain: _PlainChunk | None = None) -> npt.NDArray[Any]:
    """Return the voxels of a chunk of an array.

    zarr-python takes a millisecond per chunk in several tasks, so the most frequent codecs are called directly.
    """
    voxels = None if plain is None else plain.decode(body)
    return _decode_with_zarr(array, body) if voxels is None else voxels


def _decode_with_zarr(array: Any, body: bytes | memoryview) -> npt.NDArray[Any]:
    import_package("zarr")
    from zarr.core.array_spec import parse_array_config
    from zarr.core.buffer import default_buffer_prototype

    prototype = default_buffer_prototype()
    # In Zarr 2 the order of the voxels in a chunk belongs to the array, not to a codec.
    config = parse_array_config({"order": array.metadata.order if array.metadata.zarr_format == 2 else "C"})
    spec = array.metadata.get_chunk_spec((0,) * len(array.shape), config, prototype)
    stored = prototype.buffer.from_bytes(bytes(body))
    try:
        loop = _loops.pop()
    except IndexError:
        loop = _InlineLoop()
    try:
        decoded = list(loop.run_until_complete(array.codec_pipeline.decode([(stored, spec)])))
    finally:
        _loops.append(loop)
    found = decoded[0].as_numpy_array()
    if found.shape != spec.shape:
        raise DamagedObjectError(f"a chunk decodes to {found.shape} voxels instead of {spec.shape}")
    return cast(npt.NDArray[Any], found)
