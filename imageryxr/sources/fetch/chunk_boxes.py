"""Boxes of chunks: which chunks a box overlaps, and boxes whose chunks are in the memory cache.

A box that was read before is copied from the memory cache without looking up each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.sources.fetch import memory_cache
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.engine import ObjectRequest, cache_key
from imageryxr.sources.fetch.traffic import count

Array = npt.NDArray[Any]


class ChunkSpan(NamedTuple):
    """A chunk along one axis."""

    number: int
    """Index in the grid of chunks."""
    start: int
    stop: int
    low: int
    """First voxel that is decoded."""
    high: int
    """Voxel after the last one that is decoded."""
    taken: slice
    """The part of the decoded voxels that lies in the box."""
    place: slice
    """Where this part lies in the box."""


@lru_cache(maxsize=1024)
def chunk_spans(size: int, start: int, stop: int, *, end: int | None = None, depth: int = 0) -> tuple[ChunkSpan, ...]:
    """Return the chunks along an axis that a box overlaps.

    Parameters
    ----------
    size : int
        Number of voxels of a chunk; the first chunk starts at 0.
    start, stop : int
        First voxel and end of the box.
    end : int, optional
        End of the volume, which cuts off the last chunk. Default: the last chunk is as large as the others.
    depth : int, optional
        Number of voxels that are decoded together. Default: the size of a chunk.
    """
    depth, found = depth or size, []
    for number in range(start // size, -(-stop // size)):
        first = number * size
        last = first + size if end is None else min(first + size, end)
        from_, to = max(start, first), min(stop, last)
        low = from_ - (from_ - first) % depth
        high = min(last, to + (first - to) % depth)
        taken, place = slice(from_ - low, to - low), slice(from_ - start, to - start)
        found.append(ChunkSpan(number, first, last, low, high, taken, place))
    return tuple(found)


Axes = Sequence[Sequence[ChunkSpan]]


def copy_cached(
    store: ObjectStore,
    connection: Connection,
    name: Hashable,
    axes: Axes,
    box: IndexBox,
    view: Callable[[Array], Array] | None = None,
) -> Array | None:
    """Return the voxels of a box whose chunks are all in the memory cache, decoded; None if one is not.

    Parameters
    ----------
    store, connection
        As in `engine.read_objects`.
    name : Hashable
        Key that identifies the chunks of the box, and how they are decoded, among those of the store.
    axes : sequence of sequence of ChunkSpan
        The chunks along z, y and x.
    box : IndexBox
        The box.
    view : callable, optional
        Returns a decoded chunk with the axes z, y and x. Default: it has these axes.
    """
    if not connection.cache_bytes or store.identity is None:
        return None
    found = memory_cache.cache.get_box((store.identity, name))
    if found is None:
        return None
    from imageryxr.kernels.gather import chunk_table, gather

    if found.table is None:
        chunks = found.chunks if view is None else [view(chunk) for chunk in found.chunks]
        found.table = chunk_table(chunks, [[*(s.low for s in spans), spans[-1].high] for spans in axes])
    count(in_memory=len(found.keys))
    return gather(found.table, *box)


def remember_box(
    store: ObjectStore,
    connection: Connection,
    name: Hashable,
    requests: Iterable[ObjectRequest | None],
    blank: Array | None = None,
) -> None:
    """Register a box that was read for `copy_cached`, if its chunks are in the memory cache.

    `requests` are those of the chunks of the box in C order; None stands for a chunk that equals `blank`.
    """
    identity = store.identity if connection.cache_bytes else None
    if identity is not None:
        keys = [None if one is None else (cache_key(identity, one), one.form) for one in requests]
        memory_cache.cache.put_box((identity, name), keys, blank)
