"""Read the sources of a region in one sweep.

A region is made slab by slab along one axis. The source voxels that a slab needs, and those that later slabs still
need, are kept in memory or in scratch files. So each chunk is read once, and no other voxels take memory.

For a region of a volume, sources are read slab by slab, each slab while the one before is drawn. For a region of
slices, the sources are read at once if their voxels fit into memory; otherwise they are read slab by slab and spilled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import Expr, Leaf, LevelLeaf

# Voxels of a region that are drawn at a time, which limits the memory of intermediate results.
BRICK_VOXELS = 1 << 22
# Buffers of at least this size are kept; malloc itself reuses smaller ones (up to 32 MB each).
KEPT_BYTES = 24_000_000
# Bytes of a source of slices that are read at a time: enough chunks to keep a network busy.
TILE_BYTES = 1 << 27
MIN_TILE_BYTES = 1 << 22
# Minimum voxels of a slab of a volume, so that few voxels are copied between slabs compared to those that are read.
SLAB_VOXELS = 1 << 23
# Maximum number of slabs of a region of a volume, because planning a slab takes time.
MAX_SLABS = 16
# Minimum voxels of a strip, the part of a slab of slices that is drawn at a time.
MIN_STRIP_VOXELS = 1 << 18

Needs = dict[Leaf, list[IndexBox]]


def is_array_in_memory(leaf: Leaf) -> bool:
    """Return whether a leaf is an array in memory, which has no chunks to read."""
    return isinstance(leaf, LevelLeaf) and isinstance(getattr(leaf.source, "array", None), np.ndarray)


def box_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of a box of an expression."""
    return box.voxels * expr.dtype.itemsize * math.prod((*expr.lead, *expr.tail))


@dataclass(frozen=True)
class SlabSettings:
    """Settings for the export of a region of whole slices."""

    axis: int
    """The axis (0, 1, 2 for z, y, x) that the slices are perpendicular to."""
    slices: int = 1
    """Slices that are drawn at a time."""
    at_once: int = 1
    """Regions that a worker processes at a time."""
    threads: int = 1
    """Threads per region: more than one if a worker has more threads than regions."""
    tile: int = TILE_BYTES
    """Bytes of a source that are read at a time."""
    strip: int = BRICK_VOXELS
    """Voxels that are drawn at a time; larger slices are drawn in strips."""
    spilled: bool = False
    """Whether source voxels are kept in scratch files instead of memory."""
    folder: str | None = None
    """The folder of the scratch files; None for the default of the worker."""

    def smaller(self) -> SlabSettings:
        """Return settings with half the size of each part, but at least its minimum."""
        return replace(
            self,
            slices=max(1, self.slices // 2),
            tile=max(MIN_TILE_BYTES, self.tile // 2),
            strip=max(MIN_STRIP_VOXELS, self.strip // 2),
        )

    def strips(self, expr: Expr, slab: IndexBox) -> tuple[Index3, int]:
        """Return the granule of the strips that a slab is drawn in, whole rows of all slices, and their voxels."""
        z, y, x = (n if axis == self.axis else 1 for axis, n in enumerate(slab.shape))
        return (z, y, x), max(MIN_STRIP_VOXELS, int(self.strip / expr.density))


@dataclass(frozen=True, eq=False)
class Window:
    """A box of a source that a region needs, and the part of it that is kept for each slab."""

    leaf: Leaf
    box: IndexBox
    tile: Index3 | None = None
    """Voxels (z, y, x) that are read at a time, whole chunks; None reads those of a slab at once."""
    axis: int = 0
    ends: tuple[tuple[int, int], ...] = ()
    """For each slab, the interval along the axis that is kept. Both ends ascend, and the second is the end of a chunk.
    Empty if the whole box is kept."""

    @property
    def bytes(self) -> int:
        """Bytes of the whole box."""
        return box_bytes(self.leaf, self.box)

    @property
    def chunk(self) -> int:
        """Length of the source's chunks along the axis."""
        assert isinstance(self.leaf, LevelLeaf)
        return self.leaf.source.levels[self.leaf.mip].chunks[self.axis]

    @property
    def length(self) -> int:
        """The longest interval that is kept."""
        return max((high - low for low, high in self.ends), default=self.box.shape[self.axis])

    @property
    def length_in_memory(self) -> int:
        """The length that is in memory at a time: that of a slab, and of the next one, which is read ahead."""
        is_read_again = any(before[1] < after[1] for before, after in pairwise(self.ends))
        return self.length * (1 + is_read_again)

    def kept_box(self, slab: int) -> IndexBox:
        """Return the part that is kept for a slab."""
        return self.box.with_axis(self.axis, *self.ends[slab]) if self.ends else self.box


@dataclass(frozen=True)
class Sweep:
    """The slabs of a region in order, and what is kept of each source."""

    slabs: tuple[IndexBox, ...]
    windows: tuple[Window, ...]

    @property
    def spared_bytes(self) -> int:
        """Bytes of source voxels that the region needs but that are not in memory at the same time."""
        saved = sum(w.bytes - w.bytes // max(1, w.box.shape[w.axis]) * w.length_in_memory for w in self.windows)
        return max(0, saved)


def whole_sweep(expr: Expr, box: IndexBox) -> Sweep:
    """Return a sweep of one slab, the region."""
    return Sweep((box,), tuple(_volume_windows(required_boxes(expr, box))))


def volume_sweep(expr: Expr, box: IndexBox, granule: Index3) -> Sweep:
    """Return the sweep of a region of a volume that needs the least memory.

    `granule` are voxels (z, y, x) that stay together, counted from the start of the box.
    """
    windows = tuple(_volume_windows(required_boxes(expr, box)))
    best = Sweep((box,), windows)
    count = min(MAX_SLABS, box.voxels // SLAB_VOXELS)
    rolling = sum(window.bytes for window in windows if _is_large(window))
    for axis in range(3) if count > 1 and rolling else ():
        step = -(-box.shape[axis] // (granule[axis] * count)) * granule[axis]
        slabs = tuple(_cut_slabs(box, axis, step))
        found = Sweep(slabs, _with_intervals(expr, slabs, axis, windows))
        if found.spared_bytes > best.spared_bytes + rolling // 10:
            best = found
    return best


def slice_sweep(settings: SlabSettings, expr: Expr, box: IndexBox) -> Sweep:
    """Return the sweep of a region of slices: one slab if its sources are kept in memory, thin ones if spilled."""
    windows = slice_windows(settings, expr, box)
    if not settings.spilled:
        return Sweep((box,), windows)
    slabs = tuple(_cut_slabs(box, settings.axis, settings.threads * settings.slices))
    return Sweep(slabs, _with_intervals(expr, slabs, settings.axis, windows))


def slice_windows(settings: SlabSettings, expr: Expr, box: IndexBox) -> tuple[Window, ...]:
    """Return the boxes of sources that a region of slices needs; arrays in memory are left out."""
    return tuple(
        Window(leaf, need, _tile(leaf, need, settings.tile), settings.axis)
        for leaf, needs in required_boxes(expr, box).items()
        if isinstance(leaf, LevelLeaf) and not is_array_in_memory(leaf)
        for need in needs
    )


def _volume_windows(needs: Needs) -> Iterator[Window]:
    return (Window(leaf, box) for leaf, boxes in needs.items() for box in boxes)


def _is_large(window: Window) -> bool:
    """Return whether a window is so large that it is cached slab by slab; other windows are cached whole."""
    return isinstance(window.leaf, LevelLeaf) and window.bytes >= 2 * KEPT_BYTES


def _tile(leaf: Any, box: IndexBox, most: int) -> Index3:
    """Return the size of the parts of a box that are read at a time: whole chunks, long along x.

    A part has at most ``most`` bytes, unless a chunk is larger.
    """
    chunk, shape = leaf.source.levels[leaf.mip].chunks, box.shape
    size = list(chunk)
    for axis in (2, 1, 0):
        count = max(1, most // leaf.dtype.itemsize // math.prod(size))
        size[axis] *= min(count, -(-shape[axis] // chunk[axis]) + 1)
    return size[0], size[1], size[2]


def _cut_slabs(box: IndexBox, axis: int, step: int) -> Iterator[IndexBox]:
    for low in range(box.start[axis], box.stop[axis], step):
        yield box.with_axis(axis, low, min(low + step, box.stop[axis]))


def _with_intervals(
    expr: Expr, slabs: tuple[IndexBox, ...], axis: int, windows: tuple[Window, ...]
) -> tuple[Window, ...]:
    """Return the windows with the intervals that the slabs need; those that are read at once stay whole."""
    needs = [required_boxes(expr, slab) for slab in slabs]
    found = []
    for window in windows:
        if window.tile is not None or _is_large(window):
            boxes = [other.box for other in windows if other.leaf == window.leaf]
            window = replace(window, axis=axis)
            window = replace(window, ends=_intervals(window, boxes, needs))
        found.append(window)
    return tuple(found)


def _intervals(window: Window, boxes: list[IndexBox], needs: list[Needs]) -> tuple[tuple[int, int], ...]:
    """Return the interval of a window that is kept for each slab."""
    axis, chunk, whole = window.axis, window.chunk, (window.box.start[window.axis], window.box.stop[window.axis])
    own = [[need for need in slab.get(window.leaf, []) if window.box.contains(need)] for slab in needs]
    if any(not any(box.contains(need) for box in boxes) for slab in needs for need in slab.get(window.leaf, [])):
        return (whole,) * len(needs)  # a slab needs voxels of two boxes
    lows = [min((need.start[axis] for need in slab), default=whole[1]) for slab in own]
    highs = [max((-(-need.stop[axis] // chunk) * chunk for need in slab), default=whole[0]) for slab in own]
    # kept until no later slab needs it
    lows = list(accumulate(reversed(lows), min))[::-1]
    highs = [min(high, whole[1]) for high in accumulate(highs, max)]
    return tuple((min(low, high), high) for low, high in zip(lows, highs, strict=True))


def bricks(box: IndexBox, granule: Index3 = (1, 1, 1), voxels: int | None = None) -> Iterator[IndexBox]:
    """Yield pieces of a box: slabs of the box, rows of a slab, or parts of a row, in C order.

    `granule` are voxels (z, y, x) that stay together, counted from the start of the box; those of a piece are
    consecutive in the C order of the granules of the box. A piece has at most `voxels` (default: `BRICK_VOXELS`),
    unless a granule is larger.
    """
    voxels = BRICK_VOXELS if voxels is None else voxels
    size, shape = list(granule), box.shape
    for axis in (2, 1, 0):
        whole = -(-shape[axis] // granule[axis])
        size[axis] = min(whole, max(1, voxels // math.prod(size))) * granule[axis]
        if size[axis] < shape[axis]:
            break
    ranges = (range(a, b, s) for a, b, s in zip(box.start, box.stop, size, strict=True))
    for z, y, x in product(*ranges):
        yield IndexBox((z, y, x), (z + size[0], y + size[1], x + size[2])).clip(box)
