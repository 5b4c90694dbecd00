"""Read and draw a region, in buffers that are reused from region to region.

A region is drawn and encoded piece by piece, so its whole picture is never in memory. Its source voxels need hundreds
of megabytes, or less if it is read in strips (`rolling_window`). Memory of that size is returned to the system when it
is freed, and cleared page by page when it is allocated again, which can take as long as reading. The buffers of a
region are therefore kept for the next one.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, TypeGuard

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.errors import ImageryError
from imageryxr.export.plan.regions import tiles, whole_chunks
from imageryxr.graph.dask_inputs import input_boxes
from imageryxr.graph.evaluate import Readings, evaluate, required_boxes
from imageryxr.graph.expr import Array, Expr, Leaf, LevelLeaf, Mapped
from imageryxr.graph.labelled import BoxReader
from imageryxr.ops.labels import suspend_id_recording

# Voxels of a region that are drawn at a time, which limits the memory of intermediate results.
BRICK_VOXELS = 1 << 22
# Buffers of at least this size are kept; malloc itself reuses smaller ones (up to 32 MB each).
KEPT_BYTES = 24_000_000
# Bytes of a large box that are read at a time: few enough to be in the CPU cache when they are copied.
PART_BYTES = 8_000_000


def _count_references(held: list[Array], index: int) -> int:
    return sys.getrefcount(held[index])


_IDLE = _count_references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Large arrays whose memory is reused as soon as there is no reference to them or to a view of them.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of undefined values."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < KEPT_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            idle = [i for i in range(len(self._held)) if _count_references(self._held, i) <= _IDLE]
            fits = [i for i in idle if self._held[i].nbytes >= size]
            if fits:
                chosen = self._held[min(fits, key=lambda i: self._held[i].nbytes)]
            else:
                # drop idle buffers that are too small, which would add to the memory
                self._held = [a for i, a in enumerate(self._held) if i not in idle]
                chosen = np.empty(size, np.uint8)
                self._held.append(chosen)
            return chosen[:size].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Drop all buffers; those that are still referenced stay valid."""
        with self._lock:
            self._held = []


BUFFERS = Buffers()
"""The buffers of this process."""


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


def read_sources(
    read: BoxReader, box: IndexBox, given: Readings | None = None, without: Collection[Leaf] = ()
) -> Readings:
    """Read the source voxels that a box needs, each source once.

    Parameters
    ----------
    read : BoxReader
        The reader of the exported array.
    box : IndexBox
        The region.
    given : dict, optional
        Computed values of foreign dask arrays; by default, they are computed here.
    without : collection of Leaf
        Leaves that are read elsewhere.
    """
    expr = read.volume.expr
    if given is None:
        with suspend_id_recording():
            given = input_boxes(expr, read.volume.dask_inputs, box).compute() if read.volume.dask_inputs else {}
    readings: Readings = dict(given)
    needs = {k: v for k, v in required_boxes(expr, box).items() if k not in readings and k not in without}
    # the largest first, or a smaller one may get its buffer
    for leaf in sorted(needs, key=lambda leaf: -leaf.dtype.itemsize * max(b.voxels for b in needs[leaf])):
        readings[leaf] = [(b, read_leaf(leaf, b)) for b in needs[leaf]]
    return readings


def draw(expr: Expr, box: IndexBox, readings: Readings) -> Array:
    """Return the values of a box from source voxels; a large box is drawn brick by brick."""
    if box.voxels <= BRICK_VOXELS or isinstance(expr, Leaf):
        return evaluate(expr, box, readings)
    out = BUFFERS.empty((*box.shape, *expr.tail), expr.dtype)
    for brick in bricks(box):
        out[brick.slices(box)] = evaluate(expr, brick, readings)
    return out


def read_leaf(leaf: Leaf, box: IndexBox) -> Array:
    """Return the voxels of a box of a source; a large box on disk is read part by part."""
    if not is_read_in_parts(leaf, box):
        return leaf.read(box)
    out = BUFFERS.empty(box.shape, leaf.dtype)
    read_into(out, leaf, box)
    return out


def is_read_in_parts(leaf: Leaf, box: IndexBox) -> TypeGuard[LevelLeaf]:
    """Return whether a box of a source is large and on disk."""
    # Over a network, more chunks per request are faster; CloudVolume reads files one by one anyway.
    on_disk = isinstance(leaf, LevelLeaf) and str(getattr(leaf.source, "url", "")).startswith("file://")
    return on_disk and box.voxels * leaf.dtype.itemsize >= 2 * KEPT_BYTES


def read_into(out: Array, leaf: LevelLeaf, box: IndexBox) -> None:
    """Read the voxels of a box of a source into an array, part by part."""
    part = whole_chunks(box, leaf.source.levels[leaf.mip].chunks, PART_BYTES // leaf.dtype.itemsize)
    for tile in tiles(box, part):
        out[tile.slices(box)] = leaf.read(tile)


class SourceReadError(Exception):
    """Wraps an error of a source, so that it is not handled as an error of the target's disk."""


@contextmanager
def wrap_source_errors() -> Iterator[None]:
    """Wrap each `OSError` of a source in a `SourceReadError`, for code that writes files at the same time."""
    try:
        yield
    except ImageryError:
        raise
    except OSError as error:
        raise SourceReadError(error) from error


@contextmanager
def unwrap_source_errors() -> Iterator[None]:
    """Raise the error inside a `SourceReadError`, outside the handler of errors of the target's disk."""
    try:
        yield
        return
    except SourceReadError as error:
        unread: OSError = error.args[0]
    raise unread  # outside the except block, or the two errors would be chained


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
