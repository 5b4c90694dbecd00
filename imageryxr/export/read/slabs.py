"""Regions of whole slices: each source is read once, in whole chunks; then a few slices are drawn at a time.

What is read waits in memory, or where it does not fit, in a scratch file: slices may be wide and chunks deep then, and
still each chunk is read once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.export.plan.estimate import FETCHING, bytes_of, steps
from imageryxr.export.plan.regions import tiles
from imageryxr.export.read.buffers import BRICK_VOXELS, BUFFERS, telling_unread, unread_apart
from imageryxr.export.read.cache import InMemory, Need, OnDisk, Shelf, Wish, wishes
from imageryxr.export.read.spill import scratch_folder
from imageryxr.export.run.daemon_threads import DaemonPool, check_stop
from imageryxr.graph.evaluate import Readings, evaluate, required_boxes
from imageryxr.graph.expr import Array, Expr

# What is read of a source at a time: enough chunks that a network is busy.
TILE_BYTES = 1 << 27
LEAST_TILE_BYTES = 1 << 22
LEAST_STRIP_VOXELS = 1 << 18

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
# a region


def _none(box: IndexBox) -> bool:
    return False


@contextmanager
def files_of(
    how: Slicewise, expr: Expr, box: IndexBox, encode: Encode, there: Callable[[IndexBox], bool] = _none
) -> Iterator[Files]:
    """Give the files of a region: what they need is read, drawn and encoded as they are asked for.

    Of slices that are there, only the sources are read, which may have holes to tell of.
    """
    asked = wishes(expr, box, how.tile)
    with ExitStack() as kept:
        shelf: Any = InMemory(asked)
        if how.spilled:
            shelf = OnDisk(scratch_folder(how.folder), how.axis)
            kept.callback(shelf.close)
        pool = DaemonPool(how.threads, "imageryxr-slices")
        # whoever still reads or writes must be done before files are given back
        kept.callback(pool.shutdown, cancel_futures=True)
        with unread_apart():
            yield _encoded(how, expr, box, encode, there, (asked, shelf), pool)


def _ready(how: Slicewise, expr: Expr, box: IndexBox, asked: list[Wish], shelf: Shelf, pool: Executor) -> Any:
    """Give slices when what they need is there, and let go of what none needs any more."""

    def read(part: Need) -> None:
        wish, tile = part
        with telling_unread():
            shelf.put(wish, tile, wish.leaf.read(tile))

    # those that may be under way while the next ones are made ready, and these
    recent: deque[list[Need]] = deque(maxlen=how.threads + 1)
    for slab in how.slabs(box):
        recent.append(_needs(expr, slab, asked))
        for _ in _results(read, shelf.missing(recent[-1]), pool, how.threads):
            pass
        for wish in {wish for wish, _ in recent[-1]}:
            shelf.forget(wish, min(b.start[how.axis] for needs in recent for w, b in needs if w is wish))
        yield slab


def _needs(expr: Expr, box: IndexBox, asked: list[Wish]) -> list[Need]:
    """Return what a box needs of what was asked for."""
    return [
        (home, b)
        for leaf, boxes in required_boxes(expr, box).items()
        for b in boxes
        for home in [next((w for w in asked if w.leaf == leaf and w.box.contains(b)), None)]
        if home is not None
    ]


def _results(act: Callable[[Any], Any], jobs: Iterable[Any], pool: Executor, threads: int) -> Iterator[Any]:
    """Do jobs in threads, and give what they return in their order; no more are under way than there are threads."""
    if threads == 1:
        for job in jobs:
            check_stop()
            yield act(job)
        return
    under_way: deque[Future[Any]] = deque()
    for job in jobs:
        check_stop()
        if len(under_way) >= threads:
            yield under_way.popleft().result()
        # with the context of the caller, who may be recording holes
        under_way.append(pool.submit(copy_context().run, act, job))
    while under_way:
        yield under_way.popleft().result()


def _encoded(
    how: Slicewise,
    expr: Expr,
    box: IndexBox,
    encode: Encode,
    there: Callable[[IndexBox], bool],
    read: tuple[list[Wish], Shelf],
    pool: Executor,
) -> Files:

    def made(slab: IndexBox) -> Files:
        if there(slab):
            return iter(())
        files = encode(0, slab, _drawn(how, expr, slab, *read))
        # one after the other, where they need not wait for each other
        return files if how.threads == 1 else iter(list(files))

    for files in _results(made, _ready(how, expr, box, *read, pool), pool, how.threads):
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
    held: dict[Expr, list[tuple[IndexBox, Array | None]]] = {}
    for wish, b in _needs(expr, box, asked):
        held.setdefault(wish.leaf, []).append((b, shelf.get(wish, b)))
    # Two boxes that were asked for may be wanted as one that holds what lies between, which was not: it is read then.
    counts = {leaf: len(boxes) for leaf, boxes in required_boxes(expr, box).items()}
    whole = {leaf: [(b, v) for b, v in found if v is not None] for leaf, found in held.items()}
    return {leaf: found for leaf, found in whole.items() if len(found) == counts.get(leaf)}  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------------------
# what it takes


def scratch_bytes(how: Slicewise, expr: Expr, box: IndexBox) -> int:
    """Return the most that a region has in scratch files: the layers of parts that its slices are in, and come to."""
    axis, total = how.axis, 0
    near = box.clip(IndexBox(box.start, _sized(box.stop, axis, box.start[axis] + (how.threads + 1) * how.slices)))
    needs = required_boxes(expr, near)
    for wish in wishes(expr, box, how.tile):
        size = wish.part[axis]
        reach = max((b.shape[axis] for b in needs.get(wish.leaf, [])), default=1)
        layers = -(-reach // size) + 1
        total += min(wish.bytes, layers * size * wish.bytes // max(1, wish.box.shape[axis]))
    return total


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
    needs = sum(b.voxels * leaf.dtype.itemsize for leaf, bs in required_boxes(expr, strip).items() for b in bs)
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
