"""Locations of chunks in sharded precomputed layers.

The format is that of Neuroglancer's ``precomputed/sharded.md``. A shard starts with the offsets of the indexes of its
minishards; the index of a minishard contains the offsets of chunks. Indexes are cached, so that most blocks request
only chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3
from imageryxr.core.lazy_import import import_package
from imageryxr.sources.base import is_html_page
from imageryxr.sources.fetch.byte_ranges import ByteRange
from imageryxr.sources.fetch.client import METADATA_BYTES
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import Index, IndexPlace, Key, ObjectStore, dropping_damaged, get_indexes


def chunk_ids(points: Sequence[Index3], shape: Index3, chunks: Index3) -> list[int]:
    """Return the ids of chunks: compressed Morton codes of their positions (z, y, x) in the grid of chunks."""
    import_package("cloudvolume")
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    grid = [-(-n // c) for n, c in zip(shape[::-1], chunks[::-1], strict=True)]
    codes = compressed_morton_code(np.array([p[::-1] for p in points], np.uint32), grid)
    return [int(code) for code in codes]


def fetch_shards(
    store: ObjectStore, folder: str, sharding: dict[str, Any], ids: Sequence[int]
) -> Callable[[int, int], tuple[str, int, int] | None]:
    """Fetch the indexes for chunks, and return a function from a chunk's id and largest size to its place in the store.

    The place is the key of a shard and a range of its bytes, (key, start, stop), or None for a missing chunk. `folder`
    is the path of the level in the store, and `sharding` the sharding specification in the ``info``.
    """
    import_package("cloudvolume")
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    spec = ShardingSpecification.from_dict(sharding)
    places = {i: _shard_location(spec, folder, i) for i in ids}
    length = 16 << int(sharding["minishard_bits"])
    if length > METADATA_BYTES:
        raise ValueError(f"the index of a shard would take {length:,} bytes; the limit is {METADATA_BYTES:,}")

    def shard(key: Key) -> IndexPlace:
        return IndexPlace(ByteRange(0, length), length, partial(_parse_shard_index, key[0], length))

    def minishard(key: Key) -> IndexPlace | None:
        index = outer[key[:1]]
        start, end = (0, 0) if index is None else (int(b) for b in index[int(key[1])])
        if end - start > METADATA_BYTES:
            raise ValueError(f"{key[0]} is damaged: it states a minishard index of {end - start:,} bytes")
        if end <= start:
            return None

        def parse(body: bytes | memoryview) -> Index:
            if len(body) != end - start:
                raise ValueError(f"{key[0]} ends before its index at byte {end}: it was truncated or overwritten")
            return _parse(_decompress(bytes(body), spec.minishard_index_encoding, METADATA_BYTES), length)

        return IndexPlace(ByteRange(start, end), end - start, parse)

    outer = get_indexes(store, {(name,) for name, _ in places.values()}, shard)
    inner = get_indexes(store, {(n, str(m)) for n, m in places.values()}, minishard)

    def where(chunk: int, limit: int) -> tuple[str, int, int] | None:
        name, number = places[chunk]
        index = inner[(name, str(number))]
        rows = [] if index is None else index[index[:, 0] == np.uint64(chunk)].tolist()
        if not rows:
            return None
        _, start, size = rows[0]
        if size > limit:
            with dropping_damaged(store, {name}):
                raise ValueError(f"the index of {name} states a chunk of {size:,} bytes; the limit is {limit:,}")
        return name, start, start + size

    return where


def _parse_shard_index(name: str, length: int, body: bytes | memoryview) -> Index:
    """Return the start and end in the file of each minishard index of a shard."""
    if is_html_page(body):
        raise ValueError(f"the shard {name} is HTML, such as a login page")
    if len(body) != length:
        raise ValueError(f"the index of {name} has {len(body)} bytes, not {length}: it was truncated or overwritten")
    return np.frombuffer(body, "<u8").reshape(-1, 2) + np.uint64(length)


def decompress_chunk(sharding: dict[str, Any], body: bytes, limit: int) -> bytes:
    """Return a chunk of at most ``limit`` bytes, without the compression of its shard."""
    return _decompress(body, str(sharding.get("data_encoding", "raw")), limit)


def _shard_location(spec: Any, folder: str, chunk: int) -> tuple[str, int]:
    found = spec.compute_shard_location(chunk)
    name = f"{found.shard_number}.shard"
    return f"{folder}/{name}" if folder else name, int(found.minishard_number)


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "raw":
        return body
    if encoding != "gzip":
        raise ValueError(f"its shard is encoded as {encoding!r}; supported are raw and gzip")
    return decompress(body, "gzip", limit)


def _parse(body: bytes, length: int) -> Index:
    # Three rows: differences of successive ids, gaps between successive chunks, and sizes of chunks.
    if len(body) % 24:
        raise ValueError(f"the index of a minishard has {len(body)} bytes, which is not a multiple of 24")
    rows = np.frombuffer(body, "<u8").reshape(3, -1).astype(np.uint64)
    ids, sizes = np.cumsum(rows[0]), rows[2]
    starts = np.cumsum(rows[1]) + np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.uint64) + np.uint64(length)
    return np.stack([ids, starts, sizes], axis=1)
