"""Pyramids: which levels there are, and how a voxel follows from those below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from imageryxr.core.axis_mapping import AxisMap
from imageryxr.core.bbox import Index3, IndexBox, tidy
from imageryxr.core.grid import Axis, Grid
from imageryxr.export.plan.regions import Regions, tiles
from imageryxr.export.targets.base import REGION_VOXELS, Target
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import Array, ArrayLeaf, Expr, Resampled

# Voxels of a coarser level that are made at a time; below them lie up to eight times as many.
PART_VOXELS = 1 << 18


def pyramid(grid: Grid, levels: int | None, largest: int, *, whole_offsets: bool = False) -> list[Grid]:
    """Return the grids of a pyramid: each level halves the axes with the smallest voxels, so voxels grow isotropic.

    The lower corner stays in its place and odd sizes round up; with ``whole_offsets`` voxel edges lie at whole voxels
    from 0 nm instead, and a level covers what the one below does and up to a voxel more on both sides.
    """
    grids = [grid]
    while levels is None or len(grids) < levels:
        last = grids[-1]
        finest = min(last.resolution)
        halve = [a.resolution < 2 * finest and a.size > 1 for a in last.axes]
        if not any(halve) or (levels is None and max(last.shape) <= largest):
            break
        axes = [_halved(a, whole_offsets) if h else a for a, h in zip(last.axes, halve, strict=True)]
        grids.append(Grid.from_axes(axes))
    return grids


def _halved(axis: Axis, whole: bool) -> Axis:
    if not whole:
        return Axis(-(-axis.size // 2), axis.resolution * 2, tidy(axis.offset / 2))
    low, high = math.floor(axis.offset / 2), math.ceil((axis.offset + axis.size) / 2)
    return Axis(high - low, axis.resolution * 2, low)


@dataclass(frozen=True)
class Pyramid(Target):
    """A target of several levels, each made from the one below."""

    coarse: int = field(default=REGION_VOXELS, kw_only=True)

    def in_coarse(self, voxels: int) -> Pyramid:
        """Return the same target with coarser levels in regions of so many voxels, about."""
        return replace(self, coarse=voxels)


def level_regions(shape: Index3, granule: Index3, voxels: int = REGION_VOXELS) -> Regions:
    """Return the regions of a coarser level: whole chunks, of some number of voxels or of one chunk."""
    step = list(granule)
    while True:
        axis = min((a for a in range(3) if step[a] < shape[a]), key=lambda a: step[a], default=None)
        if axis is None or math.prod(step) * 2 > voxels:
            return Regions.uniform(shape, (step[0], step[1], step[2]))
        step[axis] *= 2


@dataclass(frozen=True)
class Below:
    """The level that a coarser one is made from: where it lies, and in what pieces it is stored."""

    grid: Grid
    stored: Index3
    """Voxels of a stored object."""
    chunk: Index3
    """Voxels that are decoded at a time, of which an object holds whole numbers."""


def derived(
    below: Below,
    grid: Grid,
    box: IndexBox,
    load: Callable[[IndexBox], Array],
    *,
    layer_type: str,
    channels: int,
    dtype: np.dtype[Any],
) -> Array:
    """Return a box of a level part by part, so that little of the level below is in memory at a time.

    Parameters
    ----------
    below, grid, box, load, layer_type, channels
        As `shrink` takes them. ``load`` is asked for one stored object after the other, and for few of its chunks at a
        time.
    dtype : dtype
        Of the voxels.
    """
    if box.voxels <= PART_VOXELS:
        return shrink(below.grid, grid, box, load, layer_type=layer_type, channels=channels)
    out = np.empty(box.shape, dtype)
    if channels:  # in planes, as they are stored
        out = np.moveaxis(np.empty((channels, *box.shape), dtype), 0, -1)
    for part in _parts(below, grid, box):
        out[part.slices(box)] = shrink(below.grid, grid, part, load, layer_type=layer_type, channels=channels)
    return out


def derived_bytes(below: Below, grid: Grid, box: IndexBox, voxel_bytes: int) -> int:
    """Return the bytes that `derived` takes at the most for a box, its result included."""
    part = max(math.prod(_part(below, grid, box)), min(box.voxels, PART_VOXELS))
    # Above a part lie up to eight voxels for each: as they are loaded, and as they are weighted.
    return voxel_bytes * (box.voxels + 8 * 3 * part) + voxel_bytes * math.prod(below.stored)


def _part(below: Below, grid: Grid, box: IndexBox) -> Index3:
    """Return how much of a level is made at a time: what lies over whole chunks of the level below."""
    factors = [round(t.resolution / s.resolution) for t, s in zip(grid.axes, below.grid.axes, strict=True)]
    most = [max(1, min(n, s // f)) for n, s, f in zip(box.shape, below.stored, factors, strict=True)]
    size = [min(m, max(1, c // f)) for m, c, f in zip(most, below.chunk, factors, strict=True)]
    while True:
        axis = min((a for a in range(3) if 2 * size[a] <= most[a]), key=lambda a: size[a], default=None)
        if axis is None or math.prod(size) * 2 > PART_VOXELS:
            return size[0], size[1], size[2]
        size[axis] *= 2


def _parts(below: Below, grid: Grid, box: IndexBox) -> Iterator[IndexBox]:
    factors = [round(t.resolution / s.resolution) for t, s in zip(grid.axes, below.grid.axes, strict=True)]
    cell = [max(1, s // f) for s, f in zip(below.stored, factors, strict=True)]
    for outer in tiles(box, (cell[0], cell[1], cell[2])):
        yield from tiles(outer, _part(below, grid, box))


def shrink(
    below: Grid, grid: Grid, box: IndexBox, load: Callable[[IndexBox], Array], *, layer_type: str, channels: int
) -> Array:
    """Return a box of a level, from the voxels of the level below.

    Images are averaged, NaN counting as what is not known: a voxel is NaN where all of it is. Ids take the most
    frequent one, colours are weighted by their alpha. A voxel that the level below covers in part follows from that
    part.

    Parameters
    ----------
    below, grid : Grid
        Of the level below and this one.
    box : IndexBox
        What to make, in indexes of this level.
    load : callable
        Gives a box of the level below, (z, y, x) or (z, y, x, rgba).
    layer_type : {"image", "segmentation"}
    channels : int
        Size of the last axis, 4 for RGBA; 0 if there is none. What is no RGBA of 8 bits is averaged channel by channel.
    """
    maps = tuple(AxisMap.from_axes(t, s) for t, s in zip(grid.axes, below.axes, strict=True))
    reach = [m.source_range(a, b, "mean") for m, a, b in zip(maps, box.start, box.stop, strict=True)]
    need = IndexBox(tuple(a for a, _ in reach), tuple(b for _, b in reach))  # type: ignore[arg-type]
    held = need.clip(below.box)
    # The voxels at the edge stand for those beyond it, so that half a voxel counts as a whole one of the same value.
    missing = [(h - n, m - g) for n, h, g, m in zip(need.start, held.start, held.stop, need.stop, strict=True)]
    values = load(held)
    if any(map(any, missing)):
        values = np.pad(values, [*missing, *([(0, 0)] if channels else [])], mode="edge")
    moved = tuple(AxisMap(m.a, m.b - o * m.c, m.c) for m, o in zip(maps, need.start, strict=True))
    if channels == 4 and values.dtype == np.uint8:
        return _shrunk_rgba(values, moved, box)
    if channels:
        return np.stack([_shrunk(values[..., i], moved, box, "mean") for i in range(channels)], axis=-1)
    return _shrunk(values, moved, box, "mode" if layer_type == "segmentation" else "mean")


def _shrunk(values: Array, maps: tuple[AxisMap, ...], box: IndexBox, method: str) -> Array:
    if method == "mean" and values.dtype.kind == "f":
        unknown = np.isnan(values)
        if unknown.any():
            known = _shrunk((~unknown).astype(np.float64), maps, box, method)
            total = _shrunk(np.where(unknown, 0, values).astype(np.float64), maps, box, method)
            mean: Array = np.where(known > 0, total / np.where(known > 0, known, 1), np.nan).astype(values.dtype)
            return mean
    leaf: Expr = ArrayLeaf(np.ascontiguousarray(values))
    return evaluate(Resampled(leaf, maps, method), box)  # type: ignore[arg-type]


def _shrunk_rgba(values: Array, maps: tuple[AxisMap, ...], box: IndexBox) -> Array:
    from imageryxr.kernels.downsample_rgba import mean_rgba

    axes = zip(maps, box.start, box.stop, values.shape[:3], strict=True)
    z, y, x = (m.overlap(a, b, (0, n)).relative_to(0) for m, a, b, n in axes)
    return mean_rgba(values, (z, y, x))
