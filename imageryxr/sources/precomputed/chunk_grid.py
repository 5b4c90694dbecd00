"""Positions of the stored chunks of a precomputed level that a box needs."""

from __future__ import annotations

from collections.abc import Iterator
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


class _Span(NamedTuple):
    """A chunk along one axis."""

    name: str
    start: int
    stop: int
    decoded: tuple[int, int]
    taken: slice
    place: slice


def stored_chunks(level: Level, box: IndexBox, depth: int | None = None) -> list[StoredChunk]:
    """Return the chunks of a level that overlap a box inside the level.

    Parameters
    ----------
    level : Level
    box : IndexBox
        Box of the level (z, y, x).
    depth : int, optional
        Number of slices that are decoded together. Default: those of a chunk.
    """
    # A slice overlaps hundreds of chunks, so everything that depends on one axis is computed per axis.
    depths = (depth or level.chunks[0], level.chunks[1], level.chunks[2])
    spans_z, spans_y, spans_x = (list(_spans(level, box, axis, depths[axis])) for axis in range(3))
    return [
        StoredChunk(
            f"{x.name}_{y.name}_{z.name}",
            IndexBox((z.start, y.start, x.start), (z.stop, y.stop, x.stop)),
            (z.stop - z.start, y.stop - y.start, x.stop - x.start),
            z.decoded,
            (z.taken, y.taken, x.taken),
            (z.place, y.place, x.place),
        )
        for z in spans_z
        for y in spans_y
        for x in spans_x
    ]


def _spans(level: Level, box: IndexBox, axis: int, depth: int) -> Iterator[_Span]:
    """Yield the chunks along an axis, of which whole multiples of a number of voxels are decoded."""
    size, end, offset = level.chunks[axis], level.grid.shape[axis], int(level.grid.voxel_offset[2 - axis])
    low, high = box.start[axis], box.stop[axis]
    for start in range(low // size * size, high, size):
        stop = min(start + size, end)
        first, last = max(low, start), min(high, stop)
        begin = (first - start) // depth * depth
        decoded = (begin, min(stop - start, -((start - last) // depth) * depth))
        taken = slice(first - start - begin, last - start - begin)
        name = f"{offset + start}-{offset + stop}"
        yield _Span(name, start, stop, decoded, taken, slice(first - low, last - low))
