"""Draw a region in bricks, so that intermediate results of the whole region are never in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.export.read.buffers import BUFFERS
from imageryxr.graph.evaluate import Readings, evaluate
from imageryxr.graph.expr import Array, Expr, Leaf, Mapped
from imageryxr.graph.labelled import BoxReader

# Voxels of a region that are drawn at a time, which limits the memory of intermediate results.
BRICK_VOXELS = 1 << 22


def to_native_order(read: BoxReader) -> BoxReader:
    """Return a reader whose values have native byte order, which formats and encoders require.

    Parameters
    ----------
    read : BoxReader
        A reader of any array.
    """
    expr = read.volume.expr
    if expr.dtype.isnative:
        return read
    native = Mapped(expr, _to_native, expr.dtype.newbyteorder("=").str, expr.lead, expr.tail)
    return replace(read, volume=replace(read.volume, expr=native))


def _to_native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def draw(
    expr: Expr,
    box: IndexBox,
    readings: Callable[[IndexBox], Readings],
    granule: Index3 = (1, 1, 1),
    voxels: int | None = None,
) -> Array:
    """Return the values of a box; a large box is drawn brick by brick.

    Parameters
    ----------
    expr : Expr
        The exported expression.
    box : IndexBox
        Any box.
    readings : callable
        Returns the source voxels of a brick.
    granule, voxels
        The size of a brick, as in `bricks`.
    """
    if isinstance(expr, Leaf) or box.voxels <= (BRICK_VOXELS if voxels is None else voxels):
        return evaluate(expr, box, readings(box))
    out = BUFFERS.empty((*box.shape, *expr.tail), expr.dtype)
    for brick in bricks(box, granule, voxels):
        out[brick.slices(box)] = evaluate(expr, brick, readings(brick))
    return out


def bricks(box: IndexBox, granule: Index3 = (1, 1, 1), voxels: int | None = None) -> Iterator[IndexBox]:
    """Yield pieces of a box: slabs of the box, rows of a slab, or parts of a row, in C order.

    Parameters
    ----------
    box : IndexBox
        The box to cut.
    granule : tuple of 3 int
        Voxels (z, y, x) that stay together, counted from the start of the box. The granules of a piece are consecutive
        in the C order of the granules of the box.
    voxels : int, optional
        Maximum voxels of a piece, unless a granule is larger; default: `BRICK_VOXELS`.
    """
    voxels = BRICK_VOXELS if voxels is None else voxels
    size = list(granule)
    for axis in (2, 1, 0):
        whole = -(-box.shape[axis] // granule[axis])
        size[axis] = min(whole, max(1, voxels // math.prod(size))) * granule[axis]
        if size[axis] < box.shape[axis]:
            break
    ranges = (range(a, b, s) for a, b, s in zip(box.start, box.stop, size, strict=True))
    for z, y, x in product(*ranges):
        yield IndexBox((z, y, x), (z + size[0], y + size[1], x + size[2])).clip(box)
