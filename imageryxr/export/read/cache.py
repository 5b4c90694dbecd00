"""Where what a region reads waits for its slices: in memory, or in scratch files.

A source is read in parts that are whole chunks, each of them once; a shelf gives any box of what is there.
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
    """A box of a source that a region needs, and in which parts it is read."""

    leaf: LevelLeaf
    box: IndexBox
    part: Index3

    @property
    def bytes(self) -> int:
        """Bytes of the whole box."""
        return self.box.voxels * self.leaf.dtype.itemsize

    def layer(self, axis: int, number: int) -> IndexBox:
        """Return all parts that lie side by side, the so many-th from index 0."""
        start, stop = list(self.box.start), list(self.box.stop)
        start[axis], stop[axis] = number * self.part[axis], (number + 1) * self.part[axis]
        return IndexBox(tuple(start), tuple(stop)).clip(self.box)  # type: ignore[arg-type]


def source_boxes(expr: Expr, box: IndexBox, tile: int) -> list[SourceBox]:
    """Return what a region needs of sources that are read; arrays in memory wait where they are."""
    return [
        SourceBox(leaf, b, whole_chunks(b, leaf.source.levels[leaf.mip].chunks, tile // leaf.dtype.itemsize))
        for leaf, boxes in required_boxes(expr, box).items()
        if isinstance(leaf, LevelLeaf) and not isinstance(getattr(leaf.source, "array", None), np.ndarray)
        for b in boxes
    ]


BoxRead = tuple[SourceBox, IndexBox]


class ReadCache(Protocol):
    """Boxes of sources that were read."""

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Make room for what is needed and not there; return the parts to read."""

    def put(self, wish: SourceBox, tile: IndexBox, values: Array) -> None:
        """Keep a part."""

    def get(self, wish: SourceBox, box: IndexBox) -> Array | None:
        """Return what was read of a box; None if not all of it is there."""

    def forget(self, wish: SourceBox, low: int) -> None:
        """Let go of what lies before an index along the axis of the slices."""


class MemoryCache:
    """Readings in memory that is used again: all of a region's."""

    def __init__(self, asked: list[SourceBox]) -> None:
        self._asked = asked
        self._held: dict[SourceBox, Array] = {}

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Return all at the first time."""
        if self._held:
            return []
        self._held = {wish: BUFFERS.empty(wish.box.shape, wish.leaf.dtype) for wish in self._asked}
        return [(wish, tile) for wish in self._asked for tile in tiles(wish.box, wish.part)]

    def put(self, wish: SourceBox, tile: IndexBox, values: Array) -> None:
        """Copy a part to its place."""
        self._held[wish][tile.slices(wish.box)] = values

    def get(self, wish: SourceBox, box: IndexBox) -> Array:
        """Return a view."""
        return self._held[wish][box.slices(wish.box)]

    def forget(self, wish: SourceBox, low: int) -> None:
        """Keep it: it is one array."""


@dataclass
class ChunkLayer:
    """A layer of parts of a box, as thick as one: part after part, and of each, slice after slice."""

    file: ScratchFile
    begins: dict[Index3, int] = field(default_factory=dict)


class DiskCache:
    """Readings in scratch files, which are made when slices come to a layer of parts, and given back behind it."""

    def __init__(self, folder: str, axis: int) -> None:
        self._folder, self._axis = folder, axis
        self._layers: dict[tuple[SourceBox, int], ChunkLayer] = {}

    def missing(self, needs: list[BoxRead]) -> list[BoxRead]:
        """Begin layers; return all of their parts."""
        parts: list[BoxRead] = []
        for wish, box in needs:
            for number in self._numbers(wish, box):
                if (wish, number) not in self._layers:
                    layer = wish.layer(self._axis, number)
                    file = ScratchFile(self._folder, layer.voxels * wish.leaf.dtype.itemsize)
                    self._layers[wish, number] = ChunkLayer(file)
                    parts += [(wish, tile) for tile in tiles(layer, wish.part)]
        return parts

    def _numbers(self, wish: SourceBox, box: IndexBox) -> range:
        size = wish.part[self._axis]
        return range(box.start[self._axis] // size, -(-box.stop[self._axis] // size))

    def put(self, wish: SourceBox, tile: IndexBox, values: Array) -> None:
        """Write a part."""
        (number,) = self._numbers(wish, tile)
        layer = self._layers[wish, number]
        layer.begins[tile.start] = layer.file.put(np.ascontiguousarray(np.moveaxis(values, self._axis, 0)))

    def get(self, wish: SourceBox, box: IndexBox) -> Array | None:
        """Read a part of a box, wherever the parts that were written end."""
        if any((wish, number) not in self._layers for number in self._numbers(wish, box)):
            return None
        out = BUFFERS.empty(box.shape, wish.leaf.dtype)
        planes = np.moveaxis(out, self._axis, 0)
        for piece in tiles(box, wish.part):
            start: Any = tuple(a - a % s for a, s in zip(piece.start, wish.part, strict=True))
            stop: Any = tuple(a + s for a, s in zip(start, wish.part, strict=True))
            tile = IndexBox(start, stop).clip(wish.box)
            self._fill(planes[self._ordered(piece.slices(box))], wish, tile, piece)
        return out

    def forget(self, wish: SourceBox, low: int) -> None:
        """Give files back."""
        size = wish.part[self._axis]
        for key in [key for key in self._layers if key[0] is wish and (key[1] + 1) * size <= low]:
            self._layers.pop(key).file.close()

    def close(self) -> None:
        """Give all files back; nobody may be reading or writing."""
        while self._layers:
            self._layers.popitem()[1].file.close()

    def _ordered(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        first, second, third = values[self._axis], *(v for a, v in enumerate(values) if a != self._axis)
        return first, second, third

    def _fill(self, planes: Array, wish: SourceBox, tile: IndexBox, piece: IndexBox) -> None:
        _, rows, columns = self._ordered(tile.shape)
        slices, kept, across = self._ordered(piece.slices(tile))
        (number,), size = self._numbers(wish, tile), wish.leaf.dtype.itemsize
        layer = self._layers[wish, number]
        room = np.empty((kept.stop - kept.start, columns), wish.leaf.dtype)
        for plane, i in zip(planes, range(slices.start, slices.stop), strict=True):
            at = layer.begins[tile.start] + (i * rows + kept.start) * columns * size
            if plane.flags.c_contiguous and plane.shape == room.shape:
                layer.file.get(plane, at)
            else:
                layer.file.get(room, at)
                plane[...] = room[:, across]
