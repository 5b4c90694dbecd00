"""Caches of the source voxels of a region of slices: in memory, or in scratch files.

A source is read in tiles of whole chunks, each once. A cache returns any box of the tiles that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.export.plan.regions import tiles, whole_chunks
from imageryxr.export.read.buffers import BUFFERS
from imageryxr.export.read.spill import ScratchFile
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import Array, Expr, LevelLeaf


@dataclass(frozen=True, eq=False)
class SourceBox:
    """A box of a source that a region needs, and the size of the tiles in which it is read."""

    leaf: LevelLeaf
    box: IndexBox
    part: Index3

    @property
    def bytes(self) -> int:
        """Bytes of the whole box."""
        return self.box.voxels * self.leaf.dtype.itemsize

    def layer(self, axis: int, number: int) -> IndexBox:
        """Return the layer of tiles with a number along an axis, counted from index 0."""
        start, stop = list(self.box.start), list(self.box.stop)
        start[axis], stop[axis] = number * self.part[axis], (number + 1) * self.part[axis]
        return IndexBox(tuple(start), tuple(stop)).clip(self.box)  # type: ignore[arg-type]


def source_boxes(expr: Expr, box: IndexBox, tile: int) -> list[SourceBox]:
    """Return the boxes of sources that a region reads; arrays in memory are left out."""
    return [
        SourceBox(leaf, b, whole_chunks(b, leaf.source.levels[leaf.mip].chunks, tile // leaf.dtype.itemsize))
        for leaf, boxes in required_boxes(expr, box).items()
        if isinstance(leaf, LevelLeaf) and not isinstance(getattr(leaf.source, "array", None), np.ndarray)
        for b in boxes
    ]


BoxRead = tuple[SourceBox, IndexBox]


class ReadCache(Protocol):
    """A cache of source voxels."""

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Make room for boxes that are not cached; return the tiles to read."""

    def put(self, source: SourceBox, tile: IndexBox, values: Array) -> None:
        """Store a tile."""

    def get(self, source: SourceBox, box: IndexBox) -> Array | None:
        """Return the voxels of a box; None if not all of them are cached."""

    def discard(self, source: SourceBox, low: int) -> None:
        """Discard the voxels before an index along the axis of the slices, if that frees space."""


class MemoryCache:
    """A cache in reused memory that holds all source voxels of a region."""

    def __init__(self, sources: list[SourceBox]) -> None:
        self._sources = sources
        self._arrays: dict[SourceBox, Array] = {}

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Return all tiles on the first call, none later."""
        if self._arrays:
            return []
        self._arrays = {source: BUFFERS.empty(source.box.shape, source.leaf.dtype) for source in self._sources}
        return [(source, tile) for source in self._sources for tile in tiles(source.box, source.part)]

    def put(self, source: SourceBox, tile: IndexBox, values: Array) -> None:
        """Copy a tile into the array of its box."""
        self._arrays[source][tile.slices(source.box)] = values

    def get(self, source: SourceBox, box: IndexBox) -> Array:
        """Return a view."""
        return self._arrays[source][box.slices(source.box)]

    def discard(self, source: SourceBox, low: int) -> None:
        """Do nothing: a box is one array."""


@dataclass
class ChunkLayer:
    """A layer of tiles in a scratch file: tile after tile, each slice after slice."""

    file: ScratchFile
    begins: dict[Index3, int] = field(default_factory=dict)


class DiskCache:
    """A cache in scratch files, one per layer of tiles: created when slices reach it, deleted when they have passed."""

    def __init__(self, folder: str, axis: int) -> None:
        self._folder, self._axis = folder, axis
        self._layers: dict[tuple[SourceBox, int], ChunkLayer] = {}

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Create the files of new layers; return all tiles of these layers."""
        parts: list[BoxRead] = []
        for source, box in needs:
            for number in self._numbers(source, box):
                if (source, number) not in self._layers:
                    layer = source.layer(self._axis, number)
                    file = ScratchFile(self._folder, layer.voxels * source.leaf.dtype.itemsize)
                    self._layers[source, number] = ChunkLayer(file)
                    parts += [(source, tile) for tile in tiles(layer, source.part)]
        return parts

    def _numbers(self, source: SourceBox, box: IndexBox) -> range:
        size = source.part[self._axis]
        return range(box.start[self._axis] // size, -(-box.stop[self._axis] // size))

    def put(self, source: SourceBox, tile: IndexBox, values: Array) -> None:
        """Write a tile."""
        (number,) = self._numbers(source, tile)
        layer = self._layers[source, number]
        layer.begins[tile.start] = layer.file.put(np.ascontiguousarray(np.moveaxis(values, self._axis, 0)))

    def get(self, source: SourceBox, box: IndexBox) -> Array | None:
        """Read a box, which may span several tiles."""
        if any((source, number) not in self._layers for number in self._numbers(source, box)):
            return None
        out = BUFFERS.empty(box.shape, source.leaf.dtype)
        planes = np.moveaxis(out, self._axis, 0)
        for piece in tiles(box, source.part):
            start: Any = tuple(a - a % s for a, s in zip(piece.start, source.part, strict=True))
            stop: Any = tuple(a + s for a, s in zip(start, source.part, strict=True))
            tile = IndexBox(start, stop).clip(source.box)
            self._fill(planes[self._ordered(piece.slices(box))], source, tile, piece)
        return out

    def discard(self, source: SourceBox, low: int) -> None:
        """Delete the files of layers before an index."""
        size = source.part[self._axis]
        for key in [key for key in self._layers if key[0] is source and (key[1] + 1) * size <= low]:
            self._layers.pop(key).file.close()

    def close(self) -> None:
        """Delete all files; no thread may read or write them any more."""
        while self._layers:
            self._layers.popitem()[1].file.close()

    def _ordered(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        first, second, third = values[self._axis], *(v for a, v in enumerate(values) if a != self._axis)
        return first, second, third

    def _fill(self, planes: Array, source: SourceBox, tile: IndexBox, piece: IndexBox) -> None:
        _, rows, columns = self._ordered(tile.shape)
        slices, kept, across = self._ordered(piece.slices(tile))
        (number,), size = self._numbers(source, tile), source.leaf.dtype.itemsize
        layer = self._layers[source, number]
        room = np.empty((kept.stop - kept.start, columns), source.leaf.dtype)
        for plane, i in zip(planes, range(slices.start, slices.stop), strict=True):
            at = layer.begins[tile.start] + (i * rows + kept.start) * columns * size
            if plane.flags.c_contiguous and plane.shape == room.shape:
                layer.file.get(plane, at)
            else:
                layer.file.get(room, at)
                plane[...] = room[:, across]
