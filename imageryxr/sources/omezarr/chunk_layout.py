"""Layout of the chunks of a Zarr array in stored objects: one chunk per object, or shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

from imageryxr.core.bbox import DIMS
from imageryxr.sources.fetch.chunk_boxes import Axes
from imageryxr.sources.omezarr.chunk_decoder import Coords, PlainChunk, plain_chunk
from imageryxr.sources.omezarr.object_check import ObjectFormat, object_format

StoredAxes = tuple[str | int, ...]


@dataclass(frozen=True)
class ChunkLayout:
    """How the chunks of an array are stored."""

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
