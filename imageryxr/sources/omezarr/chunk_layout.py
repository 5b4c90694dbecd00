"""Layout of the chunks of a Zarr array in stored objects: one chunk per object or in shards, and their decoding.

The most frequent codecs are decoded directly, all others with zarr-python.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import DIMS
from imageryxr.core.fork import cached_property, run_after_fork
from imageryxr.core.lazy_import import import_package
from imageryxr.sources.fetch.chunk_boxes import Axes
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata, decompress_bounded
from imageryxr.sources.omezarr.codec_metadata import BOUNDED
from imageryxr.sources.omezarr.object_check import DamagedObjectError, ObjectFormat, object_format

Coords = tuple[int, ...]


class _ReadySelector(selectors.DefaultSelector):
    """A selector that skips the system call unless it waits: decoding needs no files, so its callbacks are ready."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the events of files; none if the caller does not wait."""
        return [] if timeout is not None and timeout <= 0 else super().select(timeout)


class _InlineLoop(asyncio.SelectorEventLoop):
    """An event loop that runs functions in the calling thread, because the engine already decodes in threads."""

    def __init__(self) -> None:
        super().__init__(_ReadySelector())

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run a function and return a future with its result."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


_loops: deque[_InlineLoop] = deque()


def close_loops() -> None:
    """Close the event loops that no thread uses."""
    while _loops:
        _loops.pop().close()


atexit.register(close_loops)
run_after_fork(_loops.clear)  # the child must not change the parent's selectors


@dataclass(frozen=True)
class PlainChunk:
    """A chunk whose voxels are stored in one order, with at most one compressor."""

    shape: Coords
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    compressor: dict[str, Any] | None
    limit: int
    """Largest size in bytes after decompression."""

    def decode(self, body: bytes | memoryview) -> npt.NDArray[Any] | None:
        """Return the voxels, or None if their number is not that of the shape."""
        found = body if self.compressor is None else decompress_bounded(body, self.compressor, self.limit)
        voxels: npt.NDArray[Any] = np.frombuffer(found, np.uint8)
        if voxels.size != math.prod(self.shape) * self.dtype.itemsize:
            return None
        return voxels.view(self.dtype).reshape(self.shape, order=self.order)


@lru_cache(maxsize=256)
def plain_chunk(metadata: str) -> PlainChunk | None:
    """Return how chunks are decoded without zarr-python, or None if their codecs require zarr-python."""
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
    return PlainChunk(tuple(shape), dtype, order, compressor, limit)


def decode_chunk(array: Any, body: bytes | memoryview, plain: PlainChunk | None = None) -> npt.NDArray[Any]:
    """Return the voxels of a chunk of an array.

    The most frequent codecs are called directly, because zarr-python takes a millisecond per chunk for its tasks.
    """
    voxels = None if plain is None else plain.decode(body)
    return decode_with_zarr(array, body) if voxels is None else voxels


def decode_with_zarr(array: Any, body: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the voxels of a chunk of an array, decoded by zarr-python."""
    import_package("zarr")
    from zarr.core.array_spec import ArraySpec, parse_array_config
    from zarr.core.buffer import default_buffer_prototype

    prototype, metadata = default_buffer_prototype(), array.metadata
    is_old = metadata.zarr_format == 2
    # In Zarr 2 the order of the voxels in a chunk belongs to the array, not to a codec.
    config = parse_array_config({"order": metadata.order if is_old else "C"})
    shape = metadata.chunks if is_old else metadata.chunk_grid.chunk_shape
    spec = ArraySpec(shape, metadata.dtype, metadata.fill_value, config, prototype)
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


StoredAxes = tuple[str | int, ...]


@dataclass(frozen=True)
class ChunkLayout:
    """The storage layout of the chunks of an array."""

    array: Any
    """Array of zarr-python whose chunks are the smallest chunks that can be read; it decodes them."""
    outer: Any
    """Metadata of the stored array, for the keys of its objects."""
    chunks: Coords
    """Shape of the smallest chunks."""
    per_object: Coords
    """Number of chunks along each axis of an object; 1 unless the objects are shards."""
    form: ObjectFormat
    plain: PlainChunk | None
    """How the chunks are decoded without zarr-python; None if they require it."""
    index: Any = None
    """Array of zarr-python that decodes the index of a shard; None if the objects are chunks."""

    @cached_property
    def chunk_bytes(self) -> int:
        """Size in bytes of a decoded chunk."""
        return math.prod(self.chunks) * int(self.array.dtype.itemsize)

    @cached_property
    def shard_bytes(self) -> int:
        """Size in bytes of the decoded chunks of a shard."""
        return math.prod(self.per_object) * self.chunk_bytes

    def count_chunks(self, place: Coords) -> int:
        """Return the number of chunks inside the array of the shard at a position in the grid of shards."""
        sizes = zip(self.outer.shape, self.chunks, self.per_object, place, strict=True)
        return math.prod(min(per, -(-length // size) - per * number) for length, size, per, number in sizes)

    @cached_property
    def limit(self) -> int:
        """Largest size in bytes of a stored chunk."""
        return 4 * self.chunk_bytes + (1 << 20)


class ChunkPart(NamedTuple):
    """A chunk of a box."""

    number: int
    """Its index among the chunks of the box, in C order of z, y and x."""
    key: str
    """Key of its object."""
    place_of_object: Coords
    """Position of its object in the grid of objects."""
    row: int
    """Its row in the index of the object."""
    taken: tuple[slice, ...]
    """Part of the chunk that lies in the box (z, y, x)."""
    place: tuple[slice, ...]
    """Where this part lies in the box."""


@lru_cache(maxsize=256)
def chunk_layout(metadata: str) -> ChunkLayout:
    """Return how the chunks of an array are stored, from its metadata."""
    from imageryxr.sources.omezarr.stores import parse_array_metadata

    document, form = json.loads(metadata), object_format(metadata)
    outer = parse_array_metadata(metadata)
    if document["zarr_format"] == 2:
        chunks = tuple(document["chunks"])
        return ChunkLayout(_array(metadata), outer, chunks, (1,) * len(chunks), form, plain_chunk(metadata))
    objects = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    shard = document["codecs"][0].get("configuration") or {}
    is_sharded = form.index_size and "sharding_indexed" not in [c["name"] for c in shard["codecs"]]
    if not is_sharded:  # shards in shards and transposed shards are read whole, like chunks
        return ChunkLayout(_array(metadata), outer, objects, (1,) * len(objects), form, plain_chunk(metadata))
    chunks = tuple(shard["chunk_shape"])
    per_object = tuple(n // m for n, m in zip(objects, chunks, strict=True))
    inner = _with_chunks(document, document["shape"], chunks, shard["codecs"])
    rows = [*per_object, 2]
    more = {"data_type": "uint64", "fill_value": 2**64 - 1}
    index = _with_chunks({**document, **more}, rows, tuple(rows), shard["index_codecs"])
    return ChunkLayout(_array(inner), outer, chunks, per_object, form, plain_chunk(inner), _array(index))


def _with_chunks(document: dict[str, Any], shape: list[int], chunks: Coords, codecs: list[Any]) -> str:
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunks)}}
    return json.dumps({**document, "shape": shape, "chunk_grid": grid, "codecs": codecs}, sort_keys=True)


def _array(metadata: str) -> Any:
    from zarr import AsyncArray
    from zarr.storage import MemoryStore, StorePath

    from imageryxr.sources.omezarr.stores import parse_array_metadata

    return AsyncArray(parse_array_metadata(metadata), StorePath(MemoryStore()))


def chunk_parts(layout: ChunkLayout, path: str, axes: StoredAxes, spans: Axes) -> Iterator[ChunkPart]:
    """Yield the chunks that a box overlaps, in C order of z, y and x."""
    prefix, encode = f"{path}/" if path else "", layout.outer.encode_chunk_key
    for position, box in enumerate(product(*spans)):
        along = dict(zip(DIMS, box, strict=True))
        numbers = (a // n if isinstance(a, int) else along[a].number for a, n in zip(axes, layout.chunks, strict=True))
        places, row = [], 0
        for number, per_object in zip(numbers, layout.per_object, strict=True):
            places.append(number // per_object)
            row = row * per_object + number % per_object
        taken, place = tuple(s.taken for s in box), tuple(s.place for s in box)
        yield ChunkPart(position, prefix + encode(tuple(places)), tuple(places), row, taken, place)
