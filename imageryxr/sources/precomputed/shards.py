"""Locations of chunks in sharded precomputed layers that are read over http.

The format is that of Neuroglancer's ``precomputed/sharded.md``. A shard starts with an index of its minishards; the
index of a minishard contains the offsets of chunks. Indexes are cached, so that most blocks request only chunks.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3
from imageryxr.sources.fetch.client import METADATA_BYTES, Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.threads import run_in_parallel

Index = npt.NDArray[np.uint64]
# Returns bytes [start, stop) of a file in the folder of the level; None if there is no such file.
GetBytes = Callable[[str, int, int, threading.Event], bytes | None]

REMEMBERED = 512
# Largest request in bytes for adjacent chunks.
LARGEST = 8 << 20

# Address of the level, name of the shard, and for the index of a minishard its number.
Key = tuple[str, ...]

_indexes: OrderedDict[Key, Index] = OrderedDict()
_lock = threading.Lock()


def chunk_ids(points: Sequence[Index3], shape: Index3, chunks: Index3) -> list[int]:
    """Return the ids of chunks: compressed Morton codes of their positions (z, y, x) in the grid of chunks."""
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    grid = [-(-n // c) for n, c in zip(shape[::-1], chunks[::-1], strict=True)]
    codes = compressed_morton_code(np.array([p[::-1] for p in points], np.uint32), grid)
    return [int(code) for code in codes]


def fetch_shards(
    folder: str, sharding: dict[str, Any], ids: Sequence[int], get: GetBytes, connection: Connection
) -> Callable[[int], tuple[str, int, int] | None]:
    """Fetch the indexes of chunks, and return a function from a chunk id to (file, start, stop), or None if missing.

    Parameters
    ----------
    folder : str
        Address of the level, the key of its cached indexes.
    sharding : dict
        Member ``sharding`` of the ``info``.
    ids : sequence of int
        Ids of the chunks.
    get : callable
        Fetches bytes.
    connection : Connection
        Options of requests.
    """
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    spec = ShardingSpecification.from_dict(sharding)
    places = {i: _shard_location(spec, i) for i in ids}
    length = 16 << int(sharding["minishard_bits"])
    if length > METADATA_BYTES:
        raise ValueError(f"the index of a shard would take {length:,} bytes; the limit is {METADATA_BYTES:,}")

    def shard(key: Key, stop: threading.Event) -> Index | None:
        body = get(key[1], 0, length, stop)
        if body is not None and len(body) != length:
            raise ValueError(f"the index of {key[1]} has {len(body)} bytes, not {length}")
        return None if body is None else np.frombuffer(body, "<u8").reshape(-1, 2) + np.uint64(length)

    def minishard(key: Key, stop: threading.Event) -> Index | None:
        index = outer[key[:2]]
        start, end = (0, 0) if index is None else (int(b) for b in index[int(key[2])])
        if end - start > METADATA_BYTES:
            raise ValueError(f"{key[1]} is damaged: it states a minishard index of {end - start:,} bytes")
        body = get(key[1], start, end, stop) if end > start else None
        return (
            None if body is None else _parse(_decompress(body, spec.minishard_index_encoding, METADATA_BYTES), length)
        )

    outer = _get_indexes({(folder, name) for name, _ in places.values()}, shard, connection)
    inner = _get_indexes({(folder, n, str(m)) for n, m in places.values()}, minishard, connection)

    def where(chunk: int) -> tuple[str, int, int] | None:
        name, number = places[chunk]
        index = inner[(folder, name, str(number))]
        if index is None:
            return None
        rows = index[index[:, 0] == np.uint64(chunk)]
        return (name, int(rows[0, 1]), int(rows[0, 1]) + int(rows[0, 2])) if len(rows) else None

    return where


def group_ranges(
    places: dict[int, tuple[str, int, int] | None],
) -> list[tuple[str, int, int, list[tuple[int, int, int]]]]:
    """Return the ranges of files to fetch, each with its chunks as (id, start, stop)."""
    by_file: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for chunk, place in places.items():
        if place is not None:
            by_file[place[0]].append((place[1], place[2], chunk))
    found: list[tuple[str, int, int, list[tuple[int, int, int]]]] = []
    for name, spans in sorted(by_file.items()):
        for start, stop, chunk in sorted(spans):
            last = found[-1] if found else ("", 0, 0, [])
            if last[0] == name and last[2] == start and stop - last[1] <= LARGEST:
                found[-1] = (name, last[1], stop, [*last[3], (chunk, start, stop)])
            else:
                found.append((name, start, stop, [(chunk, start, stop)]))
    return found


def decompress_chunk(sharding: dict[str, Any], body: bytes, limit: int) -> bytes:
    """Return a chunk of at most ``limit`` bytes, without the compression of its shard."""
    return _decompress(body, str(sharding.get("data_encoding", "raw")), limit)


def _shard_location(spec: Any, chunk: int) -> tuple[str, int]:
    found = spec.compute_shard_location(chunk)
    return f"{found.shard_number}.shard", int(found.minishard_number)


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "raw":
        return body
    if encoding != "gzip":
        raise ValueError(f"its shard is stored as {encoding!r}; the format defines raw and gzip")
    return decompress(body, "gzip", limit)


def _parse(body: bytes, length: int) -> Index:
    # Three rows: differences of ids, gaps between the end of a chunk and the start of the next, and sizes.
    if len(body) % 24:
        raise ValueError(f"the index of a minishard has {len(body)} bytes, which is not a multiple of 24")
    rows = np.frombuffer(body, "<u8").reshape(3, -1).astype(np.uint64)
    ids, sizes = np.cumsum(rows[0]), rows[2]
    starts = np.cumsum(rows[1]) + np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.uint64) + np.uint64(length)
    return np.stack([ids, starts, sizes], axis=1)


def _get_indexes(
    keys: set[Key], fetch: Callable[[Key, threading.Event], Index | None], connection: Connection
) -> dict[Key, Index | None]:
    found: dict[Key, Index | None] = {}
    with _lock:
        for key in keys & _indexes.keys():
            _indexes.move_to_end(key)
            found[key] = _indexes[key]
    unknown = sorted(keys - found.keys())
    for key, index in zip(unknown, run_in_parallel(fetch, unknown, connection.concurrency), strict=True):
        found[key] = index
        if index is not None:  # a missing shard may be written later, so it is not cached
            with _lock:
                _indexes[key] = index
                while len(_indexes) > REMEMBERED:
                    _indexes.popitem(last=False)
    return found


def clear_indexes() -> None:
    """Clear the cache of indexes."""
    global _lock
    _lock = threading.Lock()
    _indexes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=clear_indexes)  # in a forked child, the lock may be held by a missing thread
