"""Reading a region strip by strip: no more of a source is in memory than a strip needs, and each chunk is read once.

A region is as large as it takes to read little twice, which for ids is hundreds of megabytes. What is drawn at a time
needs a part of that. So the region is cut into strips; what two strips need in common stays, the rest makes room.

Only sources on a disk are read so: of a network, the more is asked for at a time the better, and they are read whole.
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

# A strip has at least so many voxels: what is moved from strip to strip is little against what is read then.
STRIP_VOXELS = 1 << 24
# While a part is read it is there twice, and malloc keeps the room of one for the next.
EXTRA_BYTES = 2 * KEPT_BYTES
# No region is cut into more strips, as each takes some time to plan.
MAX_STRIPS = 16


@dataclass(frozen=True)
class Window:
    """What of a leaf is in memory while each strip is drawn."""

    leaf: LevelLeaf
    axis: int
    held: tuple[IndexBox, ...]
    """For each strip what it needs, to where chunks end; empty where it needs nothing."""

    @property
    def shape(self) -> Index3:
        """The most voxels (z, y, x) that are in memory."""
        z, y, x = (max(box.shape[axis] for box in self.held) for axis in range(3))
        return z, y, x


@dataclass(frozen=True)
class Strips:
    """How a region is cut."""

    boxes: tuple[IndexBox, ...]
    rolls: dict[Leaf, Window] = field(default_factory=dict)
    """Leaves that are read strip by strip; all others are read once for the whole region."""
    spared: int = 0
    """Bytes of sources that the region needs and that are not in memory at the same time."""


Hulls = dict[LevelLeaf, IndexBox]


def choose_strips(expr: Expr, box: IndexBox, granule: Index3) -> Strips:
    """Return strips of a region such that the least is in memory at a time.

    Parameters
    ----------
    expr : Expr
        What is drawn.
    box : IndexBox
        The region.
    granule : tuple of 3 int
        Voxels (z, y, x) that stay together, counted from where the box begins.

    Returns
    -------
    Strips
        One, the region, where nothing is gained by more.
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
    """Return what is held for each strip; nothing where one strip does not simply follow the other."""
    chunk = leaf.source.levels[leaf.mip].chunks[axis]
    held = []
    for need in needs:
        low = hull.start[axis] if need is None else need.start[axis]
        high = low if need is None else min(hull.stop[axis], -(-need.stop[axis] // chunk) * chunk)
        held.append(_cut_axis(hull, axis, low, high))
        if need is not None and not held[-1].contains(need):
            return ()  # along the other axes it is not as wide as another strip's
    ends = [(box.start[axis], box.stop[axis]) for box in held if box.voxels]
    return tuple(held) if all(a <= c and b <= d for (a, b), (c, d) in pairwise(ends)) else ()


def _cut_axis(box: IndexBox, axis: int, low: int, high: int) -> IndexBox:
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = low, high
    return IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]


def read_strips(
    read: BoxReader, box: IndexBox, strips: Strips, given: Readings | None = None
) -> Iterator[tuple[IndexBox, Readings]]:
    """Give the strips of a region, each with what it needs of the sources: until the next one is asked for.

    Parameters
    ----------
    read : BoxReader
        Of what is exported.
    box : IndexBox
        The region.
    strips : Strips
        How it is cut.
    given : dict, optional
        What is in hand of foreign dask arrays.
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
    """A leaf that is read on, from strip to strip."""

    def __init__(self, roll: Window) -> None:
        self._roll = roll
        self._buffer: Array = BUFFERS.empty(roll.shape, roll.leaf.dtype)
        self._box: IndexBox | None = None

    def at(self, number: int) -> list[tuple[IndexBox, Array]]:
        """Return what a strip needs; those before it are gone."""
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
        """Bring what is kept to where the buffer begins."""
        if not distance:
            return
        # Between places that overlap numpy copies by way of a second array: layer by layer that is small.
        if self._roll.axis == 0:
            for number in range(count):
                self._buffer[number] = self._buffer[number + distance]
            return
        for layer, after in zip(self._part(0, count), self._part(distance, distance + count), strict=True):
            layer[...] = after

    def _part(self, low: int, high: int) -> Array:
        axis = self._roll.axis
        return self._buffer[(slice(None),) * axis + (slice(low, high),)]
