"""Read a region strip by strip: only the voxels that a strip needs are in memory, and each chunk is read once.

Regions are large, so that little is read twice; for ids, that is hundreds of megabytes. Only a part of a region is
drawn at a time. The region is therefore cut into strips: voxels that two consecutive strips share stay in memory, the
others are replaced.

Only sources on disk are read in strips. Over a network, large requests are faster, so these sources are read whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.export.read.buffers import (
    BUFFERS,
    KEPT_BYTES,
    is_read_in_parts,
    read_into,
    read_sources,
    wrap_source_errors,
)
from imageryxr.graph.evaluate import Readings, required_boxes
from imageryxr.graph.expr import Array, Expr, Leaf, LevelLeaf
from imageryxr.graph.labelled import BoxReader

# Minimum voxels of a strip, so that few voxels are moved between strips compared to those that are read.
STRIP_VOXELS = 1 << 24
# While a part is read, there are two copies of it, and malloc keeps the memory of one for the next part.
EXTRA_BYTES = 2 * KEPT_BYTES
# Maximum number of strips of a region, because planning a strip takes time.
MAX_STRIPS = 16


@dataclass(frozen=True)
class Window:
    """The boxes of a leaf that are in memory while each strip is drawn."""

    leaf: LevelLeaf
    axis: int
    held: tuple[IndexBox, ...]
    """For each strip the box that it needs, rounded up to whole chunks; empty if it needs nothing."""

    @property
    def shape(self) -> Index3:
        """Voxels (z, y, x) of the buffer that holds any of the boxes."""
        z, y, x = (max(box.shape[axis] for box in self.held) for axis in range(3))
        return z, y, x


@dataclass(frozen=True)
class Strips:
    """The strips of a region."""

    boxes: tuple[IndexBox, ...]
    rolls: dict[Leaf, Window] = field(default_factory=dict)
    """Leaves that are read strip by strip; all others are read once for the whole region."""
    spared: int = 0
    """Bytes of source voxels that the region needs but that are not in memory at the same time."""


Hulls = dict[LevelLeaf, IndexBox]


def choose_strips(expr: Expr, box: IndexBox, granule: Index3) -> Strips:
    """Return the strips of a region that need the least memory.

    Parameters
    ----------
    expr : Expr
        The expression to draw.
    box : IndexBox
        The region.
    granule : tuple of 3 int
        Voxels (z, y, x) that stay together, counted from the start of the box.

    Returns
    -------
    Strips
        A single strip, the region, if more strips save no memory.
    """
    best = Strips((box,))
    count = min(MAX_STRIPS, box.voxels // STRIP_VOXELS)
    if count < 2:
        return best
    whole: Hulls = {
        leaf: boxes[0]
        for leaf, boxes in required_boxes(expr, box).items()
        if len(boxes) == 1 and is_read_in_parts(leaf, boxes[0])
    }
    taken = sum(_shape_bytes(leaf, hull.shape) for leaf, hull in whole.items())
    for axis in range(3):
        step = -(-box.shape[axis] // (granule[axis] * count)) * granule[axis]
        found = _strips_along(expr, box, axis, step, whole)
        if found.spared > best.spared + taken // 10:
            best = found
    return best


def _shape_bytes(leaf: Leaf, shape: Index3) -> int:
    return math.prod(shape) * leaf.dtype.itemsize


def _strips_along(expr: Expr, box: IndexBox, axis: int, step: int, whole: Hulls) -> Strips:
    boxes = []
    for low in range(box.start[axis], box.stop[axis], step):
        start, stop = list(box.start), list(box.stop)
        start[axis], stop[axis] = low, min(low + step, box.stop[axis])
        boxes.append(IndexBox(tuple(start), tuple(stop)))  # type: ignore[arg-type]
    needs = [required_boxes(expr, strip) for strip in boxes]
    rolls, spared = dict[Leaf, Window](), 0
    for leaf, hull in whole.items():
        parts = [need.get(leaf, []) for need in needs]
        if all(len(part) <= 1 for part in parts):
            held = _window_boxes(leaf, hull, axis, [part[0] if part else None for part in parts])
            if held:
                rolls[leaf] = Window(leaf, axis, held)
                spared += _shape_bytes(leaf, hull.shape) - _shape_bytes(leaf, rolls[leaf].shape)
    return Strips(tuple(boxes), rolls, max(0, spared - EXTRA_BYTES))


def _window_boxes(leaf: LevelLeaf, hull: IndexBox, axis: int, needs: list[IndexBox | None]) -> tuple[IndexBox, ...]:
    """Return the box in memory for each strip; an empty tuple if the boxes do not advance from strip to strip."""
    chunk = leaf.source.levels[leaf.mip].chunks[axis]
    held = []
    for need in needs:
        low = hull.start[axis] if need is None else need.start[axis]
        high = low if need is None else min(hull.stop[axis], -(-need.stop[axis] // chunk) * chunk)
        held.append(_cut_axis(hull, axis, low, high))
        if need is not None and not held[-1].contains(need):
            return ()  # it differs from the other strips along another axis
    ends = [(box.start[axis], box.stop[axis]) for box in held if box.voxels]
    return tuple(held) if all(a <= c and b <= d for (a, b), (c, d) in pairwise(ends)) else ()


def _cut_axis(box: IndexBox, axis: int, low: int, high: int) -> IndexBox:
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = low, high
    return IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]


def read_strips(
    read: BoxReader, box: IndexBox, strips: Strips, given: Readings | None = None
) -> Iterator[tuple[IndexBox, Readings]]:
    """Yield the strips of a region with their source voxels, which are valid until the next strip is requested.

    Parameters
    ----------
    read : BoxReader
        The reader of the exported array.
    box : IndexBox
        The region.
    strips : Strips
        The strips of the region.
    given : dict, optional
        Computed values of foreign dask arrays.
    """
    # the largest first, for the same reason as in `read_sources`
    rolls = sorted(strips.rolls.values(), key=lambda roll: -_shape_bytes(roll.leaf, roll.shape))
    rolling = {roll.leaf: _WindowReader(roll) for roll in rolls}
    with wrap_source_errors():
        still = read_sources(read, box, given, without=strips.rolls)
    for number, strip in enumerate(strips.boxes):
        with wrap_source_errors():
            held: Readings = {leaf: part.at(number) for leaf, part in rolling.items()}
        yield strip, {**still, **held}


class _WindowReader:
    """Reads a leaf into a buffer, strip after strip."""

    def __init__(self, roll: Window) -> None:
        self._roll = roll
        self._buffer: Array = BUFFERS.empty(roll.shape, roll.leaf.dtype)
        self._box: IndexBox | None = None

    def at(self, number: int) -> list[tuple[IndexBox, Array]]:
        """Return the source voxels of a strip; those of earlier strips become invalid."""
        need, axis = self._roll.held[number], self._roll.axis
        if not need.voxels:
            return []
        low, high = need.start[axis], need.stop[axis]
        there = low
        if self._box is not None and self._box.stop[axis] > low:
            there = self._box.stop[axis]
            self._move(low - self._box.start[axis], there - low)
        if there < high:
            read_into(self._part(there - low, high - low), self._roll.leaf, _cut_axis(need, axis, there, high))
        self._box = need
        return [(need, self._part(0, high - low))]

    def _move(self, distance: int, count: int) -> None:
        """Move the voxels that stay in memory to the start of the buffer."""
        if not distance:
            return
        # numpy copies between overlapping views through a temporary array, which is small for a single layer.
        if self._roll.axis == 0:
            for number in range(count):
                self._buffer[number] = self._buffer[number + distance]
            return
        for layer, after in zip(self._part(0, count), self._part(distance, distance + count), strict=True):
            layer[...] = after

    def _part(self, low: int, high: int) -> Array:
        axis = self._roll.axis
        return self._buffer[(slice(None),) * axis + (slice(low, high),)]
