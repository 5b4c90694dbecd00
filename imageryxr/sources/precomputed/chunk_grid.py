"""Positions of the stored chunks of a precomputed level that a box needs."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.sources.base import Level

Slices = tuple[slice, slice, slice]


class StoredChunk(NamedTuple):
    """A chunk of a level, cut off at the end of the level."""

    name: str
    """File name, which contains its position in absolute voxels."""
    box: IndexBox
    shape: Index3
    slices: tuple[int, int]
    """Index in the chunk of the first slice that is decoded, and of the one after the last."""
    taken: Slices
    """The part of the decoded slices that lies in the requested box."""
    place: Slices
    """Where this part lies in the requested box."""


class ChunkSpan(NamedTuple):
    """A chunk along one axis."""

    name: str
    start: int
    stop: int
    decoded: tuple[int, int]
    """Index in the chunk of the first voxel that is decoded, and of the one after the last."""
    taken: slice
    place: slice


def chunk_spans(level: Level, box: IndexBox, depth: int | None = None) -> tuple[tuple[ChunkSpan, ...], ...]:
    """Return the chunks that a box inside a level overlaps along z, y and x.

    Parameters
    ----------
    level : Level
    box : IndexBox
        Box of the level (z, y, x).
    depth : int, optional
        Number of slices that are decoded together. Default: those of a chunk.
    """
    depths = (depth or level.chunks[0], level.chunks[1], level.chunks[2])
    lows = level.grid.voxel_offset[::-1]
    axes = zip(level.chunks, level.grid.shape, map(int, lows), box.start, box.stop, depths, strict=True)
    return tuple(_spans(*axis) for axis in axes)


def stored_chunks(axes: tuple[tuple[ChunkSpan, ...], ...]) -> list[StoredChunk]:
    """Return the chunks of a box in C order, from the result of `chunk_spans`."""
    # A slice overlaps hundreds of chunks, so everything that depends on one axis is computed per axis.
    return [
        StoredChunk(
            f"{x.name}_{y.name}_{z.name}",
            IndexBox((z.start, y.start, x.start), (z.stop, y.stop, x.stop)),
            (z.stop - z.start, y.stop - y.start, x.stop - x.start),
            z.decoded,
            (z.taken, y.taken, x.taken),
            (z.place, y.place, x.place),
        )
        for z, y, x in product(*axes)
    ]


@lru_cache(maxsize=1024)
def _spans(size: int, end: int, offset: int, low: int, high: int, depth: int) -> tuple[ChunkSpan, ...]:
    """Return the chunks along an axis, of which whole multiples of a number of voxels are decoded."""
    found = []
    for start in range(low // size * size, high, size):
        stop = min(start + size, end)
        first, last = max(low, start), min(high, stop)
        begin = (first - start) // depth * depth
        decoded = (begin, min(stop - start, -((start - last) // depth) * depth))
        taken = slice(first - start - begin, last - start - begin)
        name = f"{offset + start}-{offset + stop}"
        found.append(ChunkSpan(name, start, stop, decoded, taken, slice(first - low, last - low)))
    return tuple(found)
