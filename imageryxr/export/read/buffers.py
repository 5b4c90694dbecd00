"""Reading and drawing a region, in memory that is used again from region to region.

A region is drawn and encoded piece by piece: so its picture is never there as a whole. What is read for it takes
hundreds of megabytes, less where strips of it will do (`rolling`). Memory of that size goes back to the system when it
is freed, and the system clears it again page by page when it is asked for: that can take as long as the reading. So
what a region needs is kept for the next one.
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

# What is drawn at a time, of a region that was read in one go: what lies between is small then.
BRICK_VOXELS = 1 << 22
# From here on memory is kept; what is smaller, malloc keeps by itself (up to 32 MB each).
KEPT_BYTES = 24_000_000
# What is read at a time of a large box: little enough to lie in a cache when it is put in its place.
PART_BYTES = 8_000_000


def _count_references(held: list[Array], index: int) -> int:
    return sys.getrefcount(held[index])


_IDLE = _count_references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Large arrays whose memory is used again once nobody looks at them: whoever holds one, or a view of it, keeps it.

    Safe to use from many threads.
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
                # what lies idle and is too small would come on top
                self._held = [a for i, a in enumerate(self._held) if i not in idle]
                chosen = np.empty(size, np.uint8)
                self._held.append(chosen)
            return chosen[:size].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Forget all; what somebody still looks at lives as long as that."""
        with self._lock:
            self._held = []


BUFFERS = Buffers()
"""Those of this process."""


def to_native_order(read: BoxReader) -> BoxReader:
    """Return a reader whose values have their bytes as this machine has them: what formats and encoders take for given.

    Parameters
    ----------
    read : BoxReader
        Of any array.
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
    """Return what a box needs of the sources, each read once.

    Parameters
    ----------
    read : BoxReader
        Of what is exported.
    box : IndexBox
        The region.
    given : dict, optional
        What is in hand of foreign dask arrays; else they are computed here.
    without : collection of Leaf
        Those that somebody else reads.
    """
    expr = read.volume.expr
    if given is None:
        with suspend_id_recording():
            given = input_boxes(expr, read.volume.dask_inputs, box).compute() if read.volume.dask_inputs else {}
    readings: Readings = dict(given)
    needs = {k: v for k, v in required_boxes(expr, box).items() if k not in readings and k not in without}
    # the largest first, or a smaller one may get the memory that was kept for it
    for leaf in sorted(needs, key=lambda leaf: -leaf.dtype.itemsize * max(b.voxels for b in needs[leaf])):
        readings[leaf] = [(b, read_leaf(leaf, b)) for b in needs[leaf]]
    return readings


def draw(expr: Expr, box: IndexBox, readings: Readings) -> Array:
    """Return the values of a box from what was read, brick by brick where it is large."""
    if box.voxels <= BRICK_VOXELS or isinstance(expr, Leaf):
        return evaluate(expr, box, readings)
    out = BUFFERS.empty((*box.shape, *expr.tail), expr.dtype)
    for brick in bricks(box):
        out[brick.slices(box)] = evaluate(expr, brick, readings)
    return out


def read_leaf(leaf: Leaf, box: IndexBox) -> Array:
    """Return the voxels of a box of a source, those of a large one from the disk part by part."""
    if not is_read_in_parts(leaf, box):
        return leaf.read(box)
    out = BUFFERS.empty(box.shape, leaf.dtype)
    read_into(out, leaf, box)
    return out


def is_read_in_parts(leaf: Leaf, box: IndexBox) -> TypeGuard[LevelLeaf]:
    """Tell whether a box of a source is large and on the disk."""
    # Over a network the more chunks are asked for at a time, the better; CloudVolume reads files one by one anyway.
    on_disk = isinstance(leaf, LevelLeaf) and str(getattr(leaf.source, "url", "")).startswith("file://")
    return on_disk and box.voxels * leaf.dtype.itemsize >= 2 * KEPT_BYTES


def read_into(out: Array, leaf: LevelLeaf, box: IndexBox) -> None:
    """Read the voxels of a box of a source into an array, part by part."""
    part = whole_chunks(box, leaf.source.levels[leaf.mip].chunks, PART_BYTES // leaf.dtype.itemsize)
    for tile in tiles(box, part):
        out[tile.slices(box)] = leaf.read(tile)


class SourceReadError(Exception):
    """Carries what went wrong with a source past those who tell of the target's disk."""


@contextmanager
def wrap_source_errors() -> Iterator[None]:
    """Give an `OSError` of a source a name of its own, where files are written while sources are read."""
    try:
        yield
    except ImageryError:
        raise
    except OSError as error:
        raise SourceReadError(error) from error


@contextmanager
def unwrap_source_errors() -> Iterator[None]:
    """Raise what went wrong with a source as it was, once nobody takes it for the target's disk."""
    try:
        yield
        return
    except SourceReadError as error:
        unread: OSError = error.args[0]
    raise unread  # out here, or each of the two would come of the other


def bricks(box: IndexBox, granule: Index3 = (1, 1, 1), voxels: int | None = None) -> Iterator[IndexBox]:
    """Return pieces of a box: slabs of it, rows of a slab, or parts of a row, in C order.

    Parameters
    ----------
    box : IndexBox
        What to cut.
    granule : tuple of 3 int
        Voxels (z, y, x) that stay together, counted from where the box begins. Those of a piece follow each other in
        the C order of those of the box.
    voxels : int, optional
        How many a piece has at the most, if a granule is no more; `BRICK_VOXELS` unless given.
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
