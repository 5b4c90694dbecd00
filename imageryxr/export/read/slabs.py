"""Regions of whole slices: each source is read once, in whole chunks; then a few slices are drawn at a time.

The voxels that are read are cached in memory, or in a scratch file if they do not fit, so that each chunk is read once
even if the slices are wide and the chunks are deep.
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
from imageryxr.export.plan.estimate import FETCH_FACTOR, box_bytes, intermediate_boxes
from imageryxr.export.plan.regions import tiles
from imageryxr.export.read.buffers import BRICK_VOXELS, BUFFERS, unwrap_source_errors, wrap_source_errors
from imageryxr.export.read.cache import BoxRead, DiskCache, MemoryCache, ReadCache, SourceBox, source_boxes
from imageryxr.export.read.spill import scratch_folder
from imageryxr.export.run.daemon_threads import DaemonPool, check_stop
from imageryxr.graph.evaluate import Readings, evaluate, required_boxes
from imageryxr.graph.expr import Array, Expr

# Bytes of a source that are read at a time: enough chunks to keep a network busy.
TILE_BYTES = 1 << 27
MIN_TILE_BYTES = 1 << 22
MIN_STRIP_VOXELS = 1 << 18

Encode = Callable[[int, IndexBox, Array], Iterator[tuple[str, bytes]]]
Files = Iterator[tuple[str, bytes]]


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
    """Whether the voxels that are read are cached in a scratch file instead of memory."""
    folder: str | None = None
    """The folder of the scratch file; None for the default of the worker."""

    def slabs(self, box: IndexBox) -> Iterator[IndexBox]:
        """Return the groups of slices that are drawn and encoded together."""
        return tiles(box, _with_length(box.stop, self.axis, self.slices))


def _with_length(shape: Index3, axis: int, size: int) -> Index3:
    z, y, x = (size if a == axis else max(1, n) for a, n in enumerate(shape))
    return z, y, x


def drawing_strips(settings: SlabSettings, expr: Expr, slab: IndexBox) -> Iterator[IndexBox]:
    """Return the strips of whole rows in which a few slices are drawn."""
    across = 1 if settings.axis == 0 else 0
    voxels = max(MIN_STRIP_VOXELS, int(settings.strip / expr.density))
    step = max(1, voxels // max(1, slab.voxels // max(1, slab.shape[across])))
    for low in range(slab.start[across], slab.stop[across], step):
        start, stop = list(slab.start), list(slab.stop)
        start[across], stop[across] = low, min(low + step, slab.stop[across])
        yield IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# a region


def _is_never_written(box: IndexBox) -> bool:
    return False


@contextmanager
def slab_files(
    settings: SlabSettings,
    expr: Expr,
    box: IndexBox,
    encode: Encode,
    is_written: Callable[[IndexBox], bool] = _is_never_written,
) -> Iterator[Files]:
    """Yield an iterator of the files of a region, which reads, draws and encodes slices on demand.

    For slices that are already written, only the sources are read, to record missing chunks.
    """
    sources = source_boxes(expr, box, settings.tile)
    with ExitStack() as kept:
        cache: Any = MemoryCache(sources)
        if settings.spilled:
            cache = DiskCache(scratch_folder(settings.folder), settings.axis)
            kept.callback(cache.close)
        pool = DaemonPool(settings.threads, "imageryxr-slices")
        # threads that still read or write must end before scratch files are closed
        kept.callback(pool.shutdown, cancel_futures=True)
        with unwrap_source_errors():
            yield _encode_slabs(settings, expr, box, encode, is_written, (sources, cache), pool)


def _prefetched_slabs(
    settings: SlabSettings, expr: Expr, box: IndexBox, sources: list[SourceBox], cache: ReadCache, pool: Executor
) -> Any:
    """Yield slabs whose source voxels are cached, and discard cached voxels that no later slab needs."""

    def read(part: BoxRead) -> None:
        source, tile = part
        with wrap_source_errors():
            cache.put(source, tile, source.leaf.read(tile))

    # reads of the slabs that may be in progress while the next one is read, and of that one
    recent: deque[list[BoxRead]] = deque(maxlen=settings.threads + 1)
    for slab in settings.slabs(box):
        recent.append(_needed_reads(expr, slab, sources))
        for _ in _map_in_order(read, cache.missing(recent[-1]), pool, settings.threads):
            pass
        for source in {source for source, _ in recent[-1]}:
            cache.discard(source, min(b.start[settings.axis] for needs in recent for w, b in needs if w is source))
        yield slab


def _needed_reads(expr: Expr, box: IndexBox, sources: list[SourceBox]) -> list[BoxRead]:
    """Return the boxes that a box of the result needs, each with the source box that contains it."""
    return [
        (source, need)
        for leaf, needs in required_boxes(expr, box).items()
        for need in needs
        for source in [next((s for s in sources if s.leaf == leaf and s.box.contains(need)), None)]
        if source is not None
    ]


def _map_in_order(act: Callable[[Any], Any], jobs: Iterable[Any], pool: Executor, threads: int) -> Iterator[Any]:
    """Yield the results of jobs in order; at most `threads` jobs run at a time."""
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
        # in the context of the caller, which may record missing chunks
        under_way.append(pool.submit(copy_context().run, act, job))
    while under_way:
        yield under_way.popleft().result()


def _encode_slabs(
    settings: SlabSettings,
    expr: Expr,
    box: IndexBox,
    encode: Encode,
    is_written: Callable[[IndexBox], bool],
    read: tuple[list[SourceBox], ReadCache],
    pool: Executor,
) -> Files:

    def encode_slab(slab: IndexBox) -> Files:
        if is_written(slab):
            return iter(())
        files = encode(0, slab, _draw_slab(settings, expr, slab, *read))
        # encode in this thread, in parallel with other slabs
        return files if settings.threads == 1 else iter(list(files))

    for files in _map_in_order(
        encode_slab, _prefetched_slabs(settings, expr, box, *read, pool), pool, settings.threads
    ):
        yield from files


def _draw_slab(settings: SlabSettings, expr: Expr, slab: IndexBox, sources: list[SourceBox], cache: ReadCache) -> Array:
    pieces = list(drawing_strips(settings, expr, slab))
    if len(pieces) == 1:
        return evaluate(expr, slab, _slab_readings(expr, slab, sources, cache))
    out = BUFFERS.empty((*slab.shape, *expr.tail), expr.dtype)
    for piece in pieces:
        out[piece.slices(slab)] = evaluate(expr, piece, _slab_readings(expr, piece, sources, cache))
    return out


def _slab_readings(expr: Expr, box: IndexBox, sources: list[SourceBox], cache: ReadCache) -> Readings:
    readings: dict[Any, list[tuple[IndexBox, Array]]] = {}
    for source, need in _needed_reads(expr, box, sources):
        values = cache.get(source, need)
        if values is not None:
            readings.setdefault(source.leaf, []).append((need, values))
    # A box that spans two cached boxes may also need voxels between them; its leaf is then read from the source.
    counts = {leaf: len(needs) for leaf, needs in required_boxes(expr, box).items()}
    return {leaf: read for leaf, read in readings.items() if len(read) == counts.get(leaf)}


# ---------------------------------------------------------------------------------------------------------
# memory and disk space


def scratch_bytes(settings: SlabSettings, expr: Expr, box: IndexBox) -> int:
    """Return the most bytes that a region has in scratch files: the chunk layers of its current and next slices."""
    axis, total = settings.axis, 0
    near = box.clip(
        IndexBox(box.start, _with_length(box.stop, axis, box.start[axis] + (settings.threads + 1) * settings.slices))
    )
    needs = required_boxes(expr, near)
    for source in source_boxes(expr, box, settings.tile):
        size = source.part[axis]
        reach = max((b.shape[axis] for b in needs.get(source.leaf, [])), default=1)
        layers = -(-reach // size) + 1
        total += min(source.bytes, layers * size * source.bytes // max(1, source.box.shape[axis]))
    return total


def drawing_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of all intermediate results of a box."""
    return sum(box_bytes(e, b) for e, b in intermediate_boxes(expr, box))


def slab_memory(settings: SlabSettings, expr: Expr, box: IndexBox, page: int) -> int:
    """Return the most bytes that a region takes while it is read, drawn, encoded and written.

    Parameters
    ----------
    settings : SlabSettings
        How the region is made.
    expr : Expr
        The exported expression.
    box : IndexBox
        The region.
    page : int
        Bytes that the target needs to encode a slice.
    """
    sources = source_boxes(expr, box, settings.tile)
    cached = 0 if settings.spilled else sum(source.bytes for source in sources)
    # a tile that was read, and its copy in slice order
    turned = settings.spilled and settings.axis != 0
    tile = max((min(math.prod(w.part), w.box.voxels) * w.leaf.dtype.itemsize for w in sources), default=0)
    slab = box.clip(
        IndexBox(box.start, _with_length(box.stop, settings.axis, box.start[settings.axis] + settings.slices))
    )
    strip = next(drawing_strips(settings, expr, slab))
    needs = sum(b.voxels * leaf.dtype.itemsize for leaf, bs in required_boxes(expr, strip).items() for b in bs)
    needs *= settings.spilled  # voxels that are cached in memory are not copied
    drawing = needs + drawing_bytes(expr, strip)
    out = box_bytes(expr, slab)
    waiting = out if settings.threads > 1 else 0
    making = out + waiting + max(drawing, page)
    return int(cached + settings.threads * max((FETCH_FACTOR + turned) * tile, making))


def fit_memory(settings: SlabSettings, memory_of: Callable[[SlabSettings], int], limit: int) -> SlabSettings:
    """Return settings with smaller parts, then with fewer threads, so that a region fits into a memory limit."""
    large = settings
    while memory_of(settings) > limit:
        smaller = replace(
            settings,
            slices=max(1, settings.slices // 2),
            tile=max(MIN_TILE_BYTES, settings.tile // 2),
            strip=max(MIN_STRIP_VOXELS, settings.strip // 2),
        )
        if smaller == settings:
            if settings.threads == 1:
                break
            smaller = replace(large, threads=settings.threads - 1)
        settings = smaller
    return settings
