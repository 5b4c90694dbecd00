"""What an export will read and hold in memory, told from its recipe before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from imageryxr.boxes import Index3, IndexBox
from imageryxr.export.regions import Regions
from imageryxr.expr import Expr, Leaf, LevelLeaf, wanted

# Above this many cuts along one axis, evenly spaced ones stand for all.
SAMPLED = 128
# While chunks are fetched and decoded, their compressed bytes and a decoded chunk are held beside the result.
FETCHING = 1.25
# What a process takes before it does anything: the interpreter, numpy, xarray, compiled kernels, a client.
PROCESS_BYTES = 400_000_000


@dataclass(frozen=True)
class SourceReads:
    """What is read of one level of one source."""

    source: str
    """Its address."""
    mip: int
    resolution: tuple[float, float, float]
    """(x, y, z) nm."""
    bytes: int
    """Uncompressed, of all chunks that are fetched, each as often as it is."""
    distinct_bytes: int
    """The same with every chunk counted once."""
    requests: int
    """Chunks fetched."""

    @property
    def rereads(self) -> float:
        """How many times, on average, each chunk is fetched."""
        return self.bytes / self.distinct_bytes if self.distinct_bytes else 1.0


def source_reads(expr: Expr, regions: Regions) -> list[SourceReads]:
    """Return what the regions of an export read of each source, chunks counted whole."""
    found = []
    whole = wanted(expr, IndexBox.of_shape(regions.shape))
    for leaf, axes in _along_axes(expr, regions).items():
        if not isinstance(leaf, LevelLeaf):
            continue
        level = leaf.source.levels[leaf.mip]
        size = leaf.source.dtype.itemsize
        voxels = math.prod(sum(extent for extent, _ in axis) for axis in axes)
        asks = _chunks(leaf) == level.chunks
        requests = math.prod(sum(count for _, count in axis) for axis in axes) if asks else 0
        boxes = [_rounded(box, _chunks(leaf), leaf.bounds)[0] for box in whole.get(leaf, [])]
        once = max(1, sum(math.prod(shape) for shape in boxes))
        total, count = max(round(voxels), once), max(1, round(requests))
        found.append(SourceReads(leaf.source.name, leaf.mip, level.grid.resolution, total * size, once * size, count))
    return found


def rereads(expr: Expr, regions: Regions) -> tuple[float, float]:
    """Return how many times over the regions read what they need: all sources together by bytes, and the worst."""
    reads = source_reads(expr, regions)
    distinct = sum(r.distinct_bytes for r in reads)
    together = sum(r.bytes for r in reads) / distinct if distinct else 1.0
    return together, max((r.rereads for r in reads), default=1.0)


def _along_axes(expr: Expr, regions: Regions) -> dict[Leaf, list[list[tuple[float, float]]]]:
    # A region's chunks are so many along z, times so many along y, times so many along x: each axis is walked alone.
    found: dict[Leaf, list[list[tuple[float, float]]]] = {}
    counts = regions.counts
    middle = [n // 2 for n in counts]
    for axis in range(3):
        chosen = range(0, counts[axis], -(-counts[axis] // SAMPLED))
        weight = counts[axis] / len(chosen)
        for i in chosen:
            index = [*middle[:axis], i, *middle[axis + 1 :]]
            box = regions[(index[0] * counts[1] + index[1]) * counts[2] + index[2]]
            for leaf, boxes in wanted(expr, box).items():
                chunks = _chunks(leaf)
                shape, number = _rounded(reduce(IndexBox.hull, boxes), chunks, leaf.bounds)
                pairs = found.setdefault(leaf, [[], [], []])[axis]
                pairs.append((shape[axis] * weight, number[axis] * weight))
    return found


def _chunks(leaf: Leaf) -> Index3:
    """Return what is read as a whole: nothing of what is in memory."""
    if not isinstance(leaf, LevelLeaf) or isinstance(getattr(leaf.source, "array", None), np.ndarray):
        return (1, 1, 1)
    return leaf.source.levels[leaf.mip].chunks


def _rounded(box: IndexBox, chunks: Index3, bounds: IndexBox) -> tuple[Index3, Index3]:
    """Return the shape of a box rounded out to chunks, and how many those are along each axis."""
    low = tuple(a // c for a, c in zip(box.start, chunks, strict=True))
    high = tuple(-(-b // c) for b, c in zip(box.stop, chunks, strict=True))
    whole = IndexBox(
        tuple(a * c for a, c in zip(low, chunks, strict=True)),  # type: ignore[arg-type]
        tuple(b * c for b, c in zip(high, chunks, strict=True)),  # type: ignore[arg-type]
    )
    return whole.clip(bounds).shape, tuple(b - a for a, b in zip(low, high, strict=True))  # type: ignore[return-value]


def region_memory(expr: Expr, box: IndexBox, brick: int, encoding: float) -> int:
    """Return the most bytes that a region takes while it is read, drawn, encoded and written.

    Parameters
    ----------
    expr : Expr
        What is exported.
    box : IndexBox
        The region.
    brick : int
        Voxels that are drawn at a time.
    encoding : float
        Bytes that the target holds while it encodes, for each byte of the region.
    """
    readings = FETCHING * sum(
        b.voxels * leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        for leaf, boxes in wanted(expr, box).items()
        for b in boxes
    )
    result = bytes_of(expr, box)
    part = min(1.0, brick / max(1, box.voxels))
    drawing = part * sum(bytes_of(e, b) for e, b in steps(expr, box))
    return int(result + max(readings + drawing, encoding * result))


def steps(expr: Expr, box: IndexBox) -> Iterator[tuple[Expr, IndexBox]]:
    """Return all that is made on the way to a box, but what is read."""
    box = box.clip(expr.bounds)
    if isinstance(expr, Leaf) or not box.voxels:
        return
    yield expr, box
    for child, need in zip(expr.inputs, expr.needs(box), strict=True):
        yield from steps(child, need)


def bytes_of(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of a box of an expression."""
    return box.voxels * expr.dtype.itemsize * math.prod((*expr.lead, *expr.tail))
