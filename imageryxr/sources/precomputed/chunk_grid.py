"""Positions of the stored chunks of a precomputed level that a box needs."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.sources.base import Level
from imageryxr.sources.fetch.chunk_boxes import Axes, chunk_spans

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


def level_spans(level: Level, box: IndexBox, depth: int = 0) -> Axes:
    """Return the chunks that a box inside a level overlaps along z, y and x.

    ``depth`` is the number of slices that are decoded together; 0 stands for those of a chunk.
    """
    depths = (depth, 0, 0)
    axes = zip(level.chunks, box.start, box.stop, level.grid.shape, depths, strict=True)
    return [chunk_spans(size, start, stop, end=end, depth=n) for size, start, stop, end, n in axes]


def stored_chunks(level: Level, axes: Axes) -> list[StoredChunk]:
    """Return the chunks of a box in C order, from the result of `level_spans`."""
    # A slice overlaps hundreds of chunks, so everything that depends on one axis is computed per axis.
    lows = [int(n) for n in level.grid.voxel_offset[::-1]]
    named = [[(s, f"{n + s.start}-{n + s.stop}") for s in spans] for spans, n in zip(axes, lows, strict=True)]
    return [
        StoredChunk(
            f"{name_x}_{name_y}_{name_z}",
            IndexBox((z.start, y.start, x.start), (z.stop, y.stop, x.stop)),
            (z.stop - z.start, y.stop - y.start, x.stop - x.start),
            (z.low - z.start, z.high - z.start),
            (z.taken, y.taken, x.taken),
            (z.place, y.place, x.place),
        )
        for (z, name_z), (y, name_y), (x, name_x) in product(*named)
    ]
