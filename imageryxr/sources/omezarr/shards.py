"""Requests for the chunks in the shards of Zarr arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest
from imageryxr.sources.fetch.index_cache import (
    Index,
    IndexPlace,
    Key,
    cached_indexes,
    dropping_damaged,
    get_indexes,
    put_index,
)
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.omezarr.chunk_decoder import decode_chunk
from imageryxr.sources.omezarr.chunk_layout import ChunkLayout, ChunkPart
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
