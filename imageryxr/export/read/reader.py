"""Read the sources of a region slab by slab, keep their voxels in memory or in scratch files, and draw the region.

A region needs hundreds of megabytes. Memory of that size is returned to the system when it is freed, and cleared page
by page when it is allocated again, which can take as long as reading. So large buffers are reused by later regions.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.fork import run_after_fork
from imageryxr.errors import ImageryError
from imageryxr.export.plan.regions import tiles
from imageryxr.export.read.spill import ScratchFile
from imageryxr.export.read.sweep import BRICK_VOXELS, KEPT_BYTES, Sweep, Window, bricks
from imageryxr.export.run.executors import map_in_order
from imageryxr.graph.evaluate import Readings, evaluate, required_boxes
from imageryxr.graph.expr import Array, Expr, Leaf
from imageryxr.sources.base import read_into
from imageryxr.sources.fetch.engine import reading_once
from imageryxr.sources.fetch.threads import start_all


def draw(
    expr: Expr,
    box: IndexBox,
    readings: Callable[[IndexBox], Readings],
    granule: Index3 = (1, 1, 1),
    voxels: int | None = None,
) -> Array:
    """Return the values of a box; a large box is drawn brick by brick, in bricks of a size as in `bricks`.

    `readings` returns the source voxels of a brick.
    """
    if isinstance(expr, Leaf) or box.voxels <= (BRICK_VOXELS if voxels is None else voxels):
        return evaluate(expr, box, readings(box))
    out = BUFFERS.empty((*box.shape, *expr.tail), expr.dtype)
    for brick in bricks(box, granule, voxels):
        out[brick.slices(box)] = evaluate(expr, brick, readings(brick))
    return out


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
    """Raise the error of a source in place of the `SourceReadError` that contains it."""
    try:
        yield
        return
    except SourceReadError as error:
        unread: OSError = error.args[0]
    raise unread  # outside the except block, or the two errors would be chained


class SweepReader:
    """Reads the sources of a region, slab after slab. A context manager, which ends reads and deletes scratch files.

    While a slab is drawn, the next one is read, unless voxels are kept in scratch files.

    `given` are computed values of the user's dask arrays, `threads` is the number of parts that are read at a time, and
    `folder` is the folder of scratch files; None keeps voxels in memory.
    """

    def __init__(
        self,
        expr: Expr,
        sweep: Sweep,
        given: Readings | None = None,
        *,
        threads: int = 1,
        folder: str | None = None,
    ) -> None:
        self._expr, self._given, self._threads = expr, given or {}, threads
        self._spilled, self._last = folder is not None, len(sweep.slabs) - 1
        windows = [w for w in sweep.windows if w.leaf not in self._given]
        # Largest window first, because otherwise a smaller window may get the buffer of a larger one.
        windows.sort(key=lambda window: -window.bytes)
        self._stores = [_InMemory(w) if folder is None else _InScratch(w, folder) for w in windows]
        self._reads = ExitStack()
        self._wait: Callable[[], None] | None = None
        """Waits until the next slab is read."""

    def __enter__(self) -> SweepReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._reads.close()
        for store in self._stores:
            store.close()

    def advance(self, slab: int) -> None:
        """Read the voxels of a slab that are not cached yet; voxels that no later slab needs become invalid."""
        if self._wait is None:
            self._read(slab)
        else:
            self._wait()
        for store in self._stores:
            store.enter(slab)
        self._wait = None if self._spilled or slab >= self._last else self._start(slab + 1)

    def _read(self, slab: int) -> None:
        reads = [(store, part) for store in self._stores for part in store.prepare(slab)]
        for _ in map_in_order(_read, reads, self._threads):
            pass

    def _start(self, slab: int) -> Callable[[], None]:
        """Start to read a slab; return a function that waits for the reads, and raises the error of a failed one."""
        self._reads.close()
        context = copy_context()  # the caller's context may record missing chunks
        read = start_all([partial(context.run, self._read, slab)])
        (wait,) = self._reads.enter_context(read)
        return wait

    def readings(self, box: IndexBox) -> Readings:
        """Return the source voxels of a box that lies in the current slab."""
        found: Readings = dict(self._given)
        needs: dict[Any, list[IndexBox]] = required_boxes(self._expr, box) if self._spilled else {}
        for store in self._stores:
            leaf = store.window.leaf
            found.setdefault(leaf, []).extend(store.values(needs.get(leaf, [])))
        # A box that spans two windows may also need voxels between them. The leaves of such boxes are left
        # out here, so they are read from the source.
        return {leaf: values for leaf, values in found.items() if len(values) >= len(needs.get(leaf, []))}


def _read(job: tuple[_Store, IndexBox]) -> None:
    store, part = job
    with wrap_source_errors(), reading_once(), store.lend(part):
        values = store.window.leaf.read(part)
    store.put(part, values)


class _Store(ABC):
    """The voxels of a window that are cached while its slabs are drawn; subclasses cache in memory or in files."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.kept = window.box.with_axis(window.axis, window.box.start[window.axis], window.box.start[window.axis])
        """The box of the cached voxels; empty before the first slab."""

    def new_part(self, slab: int) -> IndexBox:
        """Return the part of a slab's box that is not cached yet."""
        axis, kept = self.window.axis, self.window.kept_box(slab)
        return kept.with_axis(axis, max(kept.start[axis], self.kept.stop[axis]), kept.stop[axis])

    @abstractmethod
    def prepare(self, slab: int) -> list[IndexBox]:
        """Make room for the voxels of a slab that are not cached yet; return the boxes to read."""

    def lend(self, part: IndexBox) -> AbstractContextManager[None]:
        """Return a context in which a source may read a part directly into the cache."""
        return nullcontext()

    @abstractmethod
    def put(self, part: IndexBox, values: Array) -> None:
        """Store a part."""

    @abstractmethod
    def enter(self, slab: int) -> None:
        """Make a slab current after all its parts were stored; release the voxels that it does not need."""

    @abstractmethod
    def values(self, needs: list[IndexBox]) -> list[tuple[IndexBox, Array]]:
        """Return boxes with their voxels: all cached voxels, or those of the boxes in ``needs``."""

    def close(self) -> None:  # noqa: B027 - memory needs no closing
        """Release the voxels."""


class _InMemory(_Store):
    """Voxels in two buffers that take turns: one has those of a slab, the other receives those of the next one."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._current = self._next = (self.kept, np.empty(self.kept.shape, window.leaf.dtype))
        """The boxes of the buffers, and their voxels."""

    def prepare(self, slab: int) -> list[IndexBox]:
        """Allocate the buffer of a slab; return the parts to read into it."""
        window, new = self.window, self.new_part(slab)
        if not new.voxels:
            return []
        shape = list(window.box.shape)
        shape[window.axis] = window.length  # all buffers of a window have the same size, so that they can be reused
        kept = window.kept_box(slab)
        self._next = (kept, BUFFERS.empty(tuple(shape), window.leaf.dtype)[kept.slices(kept)])
        return [new] if window.tile is None else list(tiles(new, window.tile))

    def lend(self, part: IndexBox) -> AbstractContextManager[None]:
        """Let sources read a part into the buffer."""
        return read_into(self._place(part))

    def _place(self, part: IndexBox) -> Array:
        box, voxels = self._next
        return voxels[part.slices(box)]

    def put(self, part: IndexBox, values: Array) -> None:
        """Copy a part into the buffer, unless the source has read it there; values of the whole buffer replace it."""
        place = self._place(part)
        if values.ctypes.data == place.ctypes.data and values.strides == place.strides:
            return
        if part != self._next[0]:
            place[...] = values
            return
        del place
        self._next = (part, np.ascontiguousarray(values))
        if values.nbytes >= KEPT_BYTES:
            BUFFERS.drop_idle()  # free the buffer that the source did not use

    def enter(self, slab: int) -> None:
        """Make the slab's buffer current, if there is one, after copying the voxels that both slabs need into it."""
        before, kept = self.kept, self.window.kept_box(slab)
        (there, voxels), (box, buffer) = self._current, self._next
        if box != there:
            axis = self.window.axis
            stays = kept.with_axis(axis, kept.start[axis], max(kept.start[axis], before.stop[axis]))
            if stays.voxels:
                buffer[stays.slices(box)] = voxels[stays.slices(there)]
            self._current = self._next
        self.kept = kept

    def values(self, needs: list[IndexBox]) -> list[tuple[IndexBox, Array]]:
        """Return a view of all cached voxels."""
        there, voxels = self._current
        return [(self.kept, voxels[self.kept.slices(there)])] if self.kept.voxels else []


class _InScratch(_Store):
    """Voxels in scratch files, one per layer of chunks. A file has one tile after another, each slice by slice."""

    def __init__(self, window: Window, folder: str) -> None:
        super().__init__(window)
        self._folder = folder
        self._layers: dict[int, tuple[IndexBox, ScratchFile]] = {}
        """The layers by number: their boxes and files."""
        self._begins: dict[Index3, int] = {}
        """The offsets of tiles by their first voxels."""

    def prepare(self, slab: int) -> list[IndexBox]:
        """Delete the files of layers that lie before the slab, create files of new layers, and return their tiles."""
        axis, start, new = self.window.axis, self.window.kept_box(slab).start, self.new_part(slab)
        for number, (box, file) in list(self._layers.items()):
            if box.stop[axis] <= start[axis]:
                del self._layers[number]
                file.close()
        if not new.voxels:
            return []
        found = []
        for layer in tiles(new, self._layer_shape):
            file = ScratchFile(self._folder, layer.voxels * self.window.leaf.dtype.itemsize)
            self._layers[layer.start[axis] // self.window.chunk] = layer, file
            found += list(tiles(layer, self._tile))
        return found

    @property
    def _tile(self) -> Index3:
        assert self.window.tile is not None
        return self.window.tile

    @property
    def _layer_shape(self) -> Index3:
        z, y, x = (self.window.chunk if a == self.window.axis else n for a, n in enumerate(self.window.box.stop))
        return z, y, x

    def enter(self, slab: int) -> None:
        """Record the box of the slab; `prepare` has deleted and created the files."""
        self.kept = self.window.kept_box(slab)

    def put(self, part: IndexBox, values: Array) -> None:
        """Append a tile to the file of its layer."""
        _, file = self._layers[part.start[self.window.axis] // self.window.chunk]
        self._begins[part.start] = file.put(np.ascontiguousarray(np.moveaxis(values, self.window.axis, 0)))

    def values(self, needs: list[IndexBox]) -> list[tuple[IndexBox, Array]]:
        """Read the needed boxes."""
        return [(need, self._load(need)) for need in needs if self.kept.contains(need)]

    def _load(self, box: IndexBox) -> Array:
        out = BUFFERS.empty(box.shape, self.window.leaf.dtype)
        planes = np.moveaxis(out, self.window.axis, 0)
        for layer, file in self._layers.values():
            part = layer.clip(box)
            for piece in tiles(part, self._tile) if part.voxels else ():
                start = tuple(a - a % s for a, s in zip(piece.start, self._tile, strict=True))
                stop = tuple(a + s for a, s in zip(start, self._tile, strict=True))
                tile = IndexBox(start, stop).clip(layer)  # type: ignore[arg-type]
                self._fill(planes[self._slice_axis_first(piece.slices(box))], file, tile, piece)
        return out

    def _fill(self, planes: Array, file: ScratchFile, tile: IndexBox, piece: IndexBox) -> None:
        _, rows, columns = self._slice_axis_first(tile.shape)
        slices, kept, across = self._slice_axis_first(piece.slices(tile))
        size = self.window.leaf.dtype.itemsize
        rest = np.empty((kept.stop - kept.start, columns), self.window.leaf.dtype)
        for plane, i in zip(planes, range(slices.start, slices.stop), strict=True):
            at = self._begins[tile.start] + (i * rows + kept.start) * columns * size
            if plane.flags.c_contiguous and plane.shape == rest.shape:
                file.get(plane, at)
            else:
                file.get(rest, at)
                plane[...] = rest[:, across]

    def _slice_axis_first(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        first, second, third = values[self.window.axis], *(v for a, v in enumerate(values) if a != self.window.axis)
        return first, second, third

    def close(self) -> None:
        """Delete all files; no thread may read or write them any more."""
        while self._layers:
            self._layers.popitem()[1][1].close()


# ---------------------------------------------------------------------------------------------------------
# reused memory


def _count_references(held: list[Array], index: int) -> int:
    return sys.getrefcount(held[index])


_IDLE = _count_references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Large arrays whose memory is reused as soon as there is no reference to them or to a view of them.

    Thread-safe.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin without buffers and with a new lock: a thread that a forked child lacks may hold the old lock."""
        self._lock = threading.Lock()
        self._held: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of undefined values."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size < KEPT_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            fits = [i for i in self._idle() if self._held[i].nbytes >= size]
            if fits:
                chosen = self._held[min(fits, key=lambda i: self._held[i].nbytes)]
            else:
                self._drop_idle()  # free the buffers that are too small
                chosen = np.empty(size, np.uint8)
                self._held.append(chosen)
            return chosen[:size].view(dtype).reshape(shape)

    def _idle(self) -> list[int]:
        return [i for i in range(len(self._held)) if _count_references(self._held, i) <= _IDLE]

    def _drop_idle(self) -> None:
        idle = self._idle()
        self._held = [a for i, a in enumerate(self._held) if i not in idle]

    def drop_idle(self) -> None:
        """Drop the buffers without references."""
        with self._lock:
            self._drop_idle()

    def clear(self) -> None:
        """Drop all buffers; those that are still referenced stay valid."""
        with self._lock:
            self._held = []


BUFFERS = Buffers()
"""The buffers of this process."""
run_after_fork(BUFFERS.reset)
