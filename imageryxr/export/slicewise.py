"""Regions of whole slices: each source is read once, in whole chunks; then a few slices are drawn at a time.

What is read waits in memory, or where it does not fit, in a scratch file: slices may be wide and chunks deep then, and
still each chunk is read once.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from imageryxr.boxes import Index3, IndexBox
from imageryxr.export.estimate import FETCHING, bytes_of, steps
from imageryxr.export.reading import BRICK_VOXELS, BUFFERS
from imageryxr.export.regions import tiles
from imageryxr.export.scratch import ScratchFile, scratch_folder
from imageryxr.expr import Array, Expr, LevelLeaf, Readings, evaluate, wanted

# What is read of a source at a time: enough chunks that a network is busy.
TILE_BYTES = 1 << 27
LEAST_TILE_BYTES = 1 << 22
LEAST_STRIP_VOXELS = 1 << 18

STOP: ContextVar[threading.Event | None] = ContextVar("imageryxr_stop", default=None)
"""Set once nobody waits for a region any more: it may take minutes."""

Encode = Callable[[int, IndexBox, Array], Iterator[tuple[str, bytes]]]
Files = Iterator[tuple[str, bytes]]


@dataclass(frozen=True)
class Slicewise:
    """How a region of whole slices is made."""

    axis: int
    """Which of z, y, x the slices lie across."""
    slices: int = 1
    """How many are drawn at a time."""
    at_once: int = 1
    """How many regions a worker has under way at a time."""
    threads: int = 1
    """How many threads are at one region: where fewer regions are under way than there are threads, they share it."""
    tile: int = TILE_BYTES
    """Bytes of a source that are read at a time."""
    strip: int = BRICK_VOXELS
    """Voxels that are drawn at a time, of slices that have more."""
    spilled: bool = False
    """Whether what is read waits in a scratch file, not in memory."""
    folder: str | None = None
    """Where that lies; None for the usual place of whoever makes the region."""

    def slabs(self, box: IndexBox) -> Iterator[IndexBox]:
        """Return what is drawn and encoded at a time."""
        return tiles(box, _sized(box.stop, self.axis, self.slices))


def _sized(shape: Index3, axis: int, size: int) -> Index3:
    z, y, x = (size if a == axis else max(1, n) for a, n in enumerate(shape))
    return z, y, x


def strips(how: Slicewise, expr: Expr, slab: IndexBox) -> Iterator[IndexBox]:
    """Return pieces of a few slices that are drawn one by one: whole rows of them."""
    across = 1 if how.axis == 0 else 0
    voxels = max(LEAST_STRIP_VOXELS, int(how.strip / expr.density))
    step = max(1, voxels // max(1, slab.voxels // max(1, slab.shape[across])))
    for low in range(slab.start[across], slab.stop[across], step):
        start, stop = list(slab.start), list(slab.stop)
        start[across], stop[across] = low, min(low + step, slab.stop[across])
        yield IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# where readings wait


class Shelf(Protocol):
    """Boxes of sources that were read."""

    def put(self, wish: Wish, tile: IndexBox, values: Array) -> None:
        """Keep a part of a box."""

    def get(self, wish: Wish, box: IndexBox) -> Array:
        """Return a part of a box, all of which is kept."""


@dataclass(frozen=True, eq=False)
class Wish:
    """A box of a source that a region needs, and in which parts it is read."""

    leaf: LevelLeaf
    box: IndexBox
    part: Index3

    @property
    def bytes(self) -> int:
        """Bytes of the whole box."""
        return self.box.voxels * self.leaf.dtype.itemsize

    def tiles(self) -> Iterator[IndexBox]:
        """Return the parts, whole chunks each."""
        return tiles(self.box, self.part)


def wishes(expr: Expr, box: IndexBox, tile: int) -> list[Wish]:
    """Return what a region needs of sources that are read; arrays in memory wait where they are."""
    return [
        Wish(leaf, b, _part(b, leaf.source.levels[leaf.mip].chunks, max(1, tile // leaf.dtype.itemsize)))
        for leaf, boxes in wanted(expr, box).items()
        if isinstance(leaf, LevelLeaf) and not isinstance(getattr(leaf.source, "array", None), np.ndarray)
        for b in boxes
    ]


def _part(box: IndexBox, chunk: Index3, voxels: int) -> Index3:
    """Return whole numbers of chunks, in so many voxels, the long way along x."""
    size = list(chunk)
    for axis in (2, 1, 0):
        count = max(1, voxels // math.prod(size))
        size[axis] *= min(count, -(-box.shape[axis] // chunk[axis]) + 1)
    return size[0], size[1], size[2]


@dataclass
class InMemory:
    """Readings in memory that is used again."""

    held: dict[Wish, Array] = field(default_factory=dict)

    def add(self, wish: Wish) -> None:
        """Make room for a box."""
        self.held[wish] = BUFFERS.empty(wish.box.shape, wish.leaf.dtype)

    def put(self, wish: Wish, tile: IndexBox, values: Array) -> None:
        """Copy a part to its place."""
        self.held[wish][tile.slices(wish.box)] = values

    def get(self, wish: Wish, box: IndexBox) -> Array:
        """Return a view."""
        return self.held[wish][box.slices(wish.box)]


@dataclass
class OnDisk:
    """Readings in a scratch file: part after part, and of each, slice after slice, as they will be asked for."""

    file: ScratchFile
    axis: int
    begins: dict[tuple[Wish, Index3], int] = field(default_factory=dict)

    def put(self, wish: Wish, tile: IndexBox, values: Array) -> None:
        """Write a part."""
        begin = self.file.put(np.ascontiguousarray(np.moveaxis(values, self.axis, 0)))
        self.begins[wish, tile.start] = begin

    def get(self, wish: Wish, box: IndexBox) -> Array:
        """Read a part of a box, wherever the parts that were written end."""
        out = BUFFERS.empty(box.shape, wish.leaf.dtype)
        planes = np.moveaxis(out, self.axis, 0)
        for piece in tiles(box, wish.part):
            start: Any = tuple(a - a % s for a, s in zip(piece.start, wish.part, strict=True))
            stop: Any = tuple(a + s for a, s in zip(start, wish.part, strict=True))
            tile = IndexBox(start, stop).clip(wish.box)
            self._fill(planes[self._ordered(piece.slices(box))], wish, tile, piece)
        return out

    def _ordered(self, values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        first, second, third = values[self.axis], *(v for a, v in enumerate(values) if a != self.axis)
        return first, second, third

    def _fill(self, planes: Array, wish: Wish, tile: IndexBox, piece: IndexBox) -> None:
        _, rows, columns = self._ordered(tile.shape)
        slices, kept, across = self._ordered(piece.slices(tile))
        begin, size = self.begins[wish, tile.start], wish.leaf.dtype.itemsize
        room = np.empty((kept.stop - kept.start, columns), wish.leaf.dtype)
        for plane, i in zip(planes, range(slices.start, slices.stop), strict=True):
            at = begin + (i * rows + kept.start) * columns * size
            if plane.flags.c_contiguous and plane.shape == room.shape:
                self.file.get(plane, at)
            else:
                self.file.get(room, at)
                plane[...] = room[:, across]


# ---------------------------------------------------------------------------------------------------------
# a region


@contextmanager
def files_of(how: Slicewise, expr: Expr, box: IndexBox, encode: Encode) -> Iterator[Files]:
    """Read what a region needs, and give its files, which are drawn and encoded as they are asked for."""
    asked = wishes(expr, box, how.tile)
    with ExitStack() as kept:
        shelf: Any = InMemory()
        if how.spilled:
            file = ScratchFile(scratch_folder(how.folder), sum(wish.bytes for wish in asked))
            shelf = OnDisk(kept.enter_context(file), how.axis)
        pool = ThreadPoolExecutor(how.threads, thread_name_prefix="imageryxr-slices")
        # whoever still reads or writes must be done before the file is given back
        kept.callback(pool.shutdown, cancel_futures=True)
        if not how.spilled:
            for wish in asked:
                shelf.add(wish)
        _read(asked, shelf, pool, how.threads)
        yield _encoded(how, expr, box, encode, (asked, shelf), pool)


def _read(asked: list[Wish], shelf: Shelf, pool: Executor, threads: int) -> None:
    def one(wish: Wish, tile: IndexBox) -> None:
        shelf.put(wish, tile, wish.leaf.read(tile))

    jobs = ((wish, tile) for wish in asked for tile in wish.tiles())
    for _ in _results(lambda job: one(*job), jobs, pool, threads):
        pass


def _results(act: Callable[[Any], Any], jobs: Iterator[Any], pool: Executor, threads: int) -> Iterator[Any]:
    """Do jobs in threads, and give what they return in their order; no more are under way than there are threads."""
    stop = STOP.get() or threading.Event()
    if threads == 1:
        for job in jobs:
            _check(stop)
            yield act(job)
        return
    under_way: deque[Future[Any]] = deque()
    for job in jobs:
        _check(stop)
        if len(under_way) >= threads:
            yield under_way.popleft().result()
        # with the context of the caller, who may be recording holes
        under_way.append(pool.submit(copy_context().run, act, job))
    while under_way:
        yield under_way.popleft().result()


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise CancelledError("nobody waits for this region any more")


def _encoded(
    how: Slicewise, expr: Expr, box: IndexBox, encode: Encode, read: tuple[list[Wish], Shelf], pool: Executor
) -> Files:

    def made(slab: IndexBox) -> Files:
        files = encode(0, slab, _drawn(how, expr, slab, *read))
        # one after the other, where they need not wait for each other
        return files if how.threads == 1 else iter(list(files))

    for files in _results(made, how.slabs(box), pool, how.threads):
        yield from files


def _drawn(how: Slicewise, expr: Expr, slab: IndexBox, asked: list[Wish], shelf: Shelf) -> Array:
    pieces = list(strips(how, expr, slab))
    if len(pieces) == 1:
        return evaluate(expr, slab, _given(expr, slab, asked, shelf))
    out = BUFFERS.empty((*slab.shape, *expr.tail), expr.dtype)
    for piece in pieces:
        out[piece.slices(slab)] = evaluate(expr, piece, _given(expr, piece, asked, shelf))
    return out


def _given(expr: Expr, box: IndexBox, asked: list[Wish], shelf: Shelf) -> Readings:
    found: Readings = {}
    for leaf, boxes in wanted(expr, box).items():
        homes = [next((w for w in asked if w.leaf == leaf and w.box.contains(b)), None) for b in boxes]
        # what was asked for as two boxes may be wanted as one that holds what lies between: that is read then
        if all(homes):
            found[leaf] = [(b, shelf.get(home, b)) for b, home in zip(boxes, homes, strict=True) if home is not None]
    return found


# ---------------------------------------------------------------------------------------------------------
# what it takes


def scratch_bytes(expr: Expr, box: IndexBox) -> int:
    """Return what a region puts into a scratch file."""
    return sum(wish.bytes for wish in wishes(expr, box, TILE_BYTES))


def drawing_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of all that is made on the way to a box."""
    return sum(bytes_of(e, b) for e, b in steps(expr, box))


def slicewise_memory(how: Slicewise, expr: Expr, box: IndexBox, page: int) -> int:
    """Return the most bytes that a region takes while it is read, drawn, encoded and written.

    Parameters
    ----------
    how : Slicewise
        How it is made.
    expr : Expr
        What is exported.
    box : IndexBox
        The region.
    page : int
        Bytes that the target takes to encode a slice.
    """
    asked = wishes(expr, box, how.tile)
    held = 0 if how.spilled else sum(wish.bytes for wish in asked)
    # a part that is read, and the same in the order of slices
    turned = how.spilled and how.axis != 0
    tile = max((min(math.prod(w.part), w.box.voxels) * w.leaf.dtype.itemsize for w in asked), default=0)
    slab = box.clip(IndexBox(box.start, _sized(box.stop, how.axis, box.start[how.axis] + how.slices)))
    strip = next(strips(how, expr, slab))
    needs = sum(b.voxels * leaf.dtype.itemsize for leaf, bs in wanted(expr, strip).items() for b in bs)
    needs *= how.spilled  # what waits in memory is looked at there
    drawing = needs + drawing_bytes(expr, strip)
    out = bytes_of(expr, slab)
    waiting = out if how.threads > 1 else 0
    making = out + waiting + max(drawing, page)
    return int(held + how.threads * max((FETCHING + turned) * tile, making))


def fitted(how: Slicewise, memory_of: Callable[[Slicewise], int], limit: int) -> Slicewise:
    """Return the same in smaller parts, and then with fewer threads, until it takes no more than it may."""
    large = how
    while memory_of(how) > limit:
        smaller = replace(
            how,
            slices=max(1, how.slices // 2),
            tile=max(LEAST_TILE_BYTES, how.tile // 2),
            strip=max(LEAST_STRIP_VOXELS, how.strip // 2),
        )
        if smaller == how:
            if how.threads == 1:
                break
            smaller = replace(large, threads=how.threads - 1)
        how = smaller
    return how
