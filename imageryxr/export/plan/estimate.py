"""Estimates of what an export will read and hold in memory, computed from its expression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import accumulate
from typing import Any

import numpy as np
from dask.utils import key_split

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.export.plan.regions import Regions
from imageryxr.graph.block_check import block_box
from imageryxr.graph.dask_inputs import has_computed_blocks, has_independent_blocks, is_in_memory
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import DaskLeaf, Expr, Leaf, LevelLeaf
from imageryxr.graph.to_dask import DaskInputs, blocks_below

# If there are more regions along an axis, this many evenly spaced ones are sampled.
MAX_SAMPLES = 128
# Memory of a read per byte of its result, which includes compressed bytes and a decoded chunk.
FETCH_FACTOR = 1.25
# Blocks in memory at a time, for a dask array whose blocks are computed one by one.
BLOCKS_IN_MEMORY = 3
# Memory of an idle process: the interpreter, numpy, xarray, compiled kernels, a client.
PROCESS_BYTES = 400_000_000


@dataclass(frozen=True)
class SourceReads:
    """The reads of one level of one source."""

    source: str
    """Address of the source."""
    mip: int
    resolution: tuple[float, float, float]
    """(x, y, z) nm."""
    bytes: int
    """Uncompressed bytes of all fetched chunks; a chunk that is fetched twice counts twice."""
    distinct_bytes: int
    """Uncompressed bytes of all fetched chunks, each counted once."""
    requests: int
    """Number of fetched chunks or computed blocks, with repetitions."""
    chunks: int = 0
    """Number of fetched chunks or computed blocks, each counted once."""
    computed: bool = False
    """Whether the reads are blocks of a user's dask array, computed for the export."""

    @property
    def rereads(self) -> float:
        """How many times, on average, each chunk is fetched."""
        return self.bytes / self.distinct_bytes if self.distinct_bytes else 1.0


def source_reads(expr: Expr, regions: Regions | BlockGrid) -> list[SourceReads]:
    """Return what the regions of an export read of each source, in whole chunks.

    Blocks of foreign dask arrays are included, as ``computed``: they are computed whole, once per region that needs
    them.
    """
    found = []
    whole = required_boxes(expr, IndexBox.of_shape(regions.shape))
    for leaf, axes in _reads_along_axes(expr, regions).items():
        if not isinstance(leaf, LevelLeaf | DaskLeaf):
            continue
        size = leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        voxels = math.prod(sum(extent for extent, _ in axis) for axis in axes)
        requests = math.prod(sum(count for _, count in axis) for axis in axes) * (not is_array_in_memory(leaf))
        boxes = [_chunk_extent(box, leaf) for box in whole.get(leaf, [])]
        once = max(1, sum(math.prod(shape) for shape, _ in boxes))
        chunks = max(1, sum(math.prod(number) for _, number in boxes))
        total, count = max(round(voxels), once), max(1, round(requests))
        if isinstance(leaf, DaskLeaf):
            name, nowhere = str(key_split(leaf.name)), (0.0, 0.0, 0.0)
            found.append(SourceReads(name, 0, nowhere, total * size, once * size, count, chunks, computed=True))
        else:
            place = leaf.source.levels[leaf.mip].grid.resolution
            found.append(SourceReads(leaf.source.name, leaf.mip, place, total * size, once * size, count, chunks))
    return found


def dask_input_reads(expr: Expr, dask_inputs: DaskInputs, regions: Regions) -> list[SourceReads]:
    """Return what blocks of foreign dask arrays read of sources, as far as their graphs contain expressions.

    Reads are counted once for each time that the blocks are computed.
    """
    found = []
    times = {r.source: r.requests / r.chunks for r in source_reads(expr, regions) if r.computed}
    for name, array in dask_inputs.items():
        for below, splits in blocks_below(array):
            for reads in source_reads(below, BlockGrid(splits)):
                factor = times.get(str(key_split(name)), 1.0)
                found.append(replace(reads, bytes=round(reads.bytes * factor), requests=round(reads.requests * factor)))
    return found


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a dask array, which `source_reads` accepts in place of regions."""

    splits: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> Index3:
        """Voxels (z, y, x)."""
        z, y, x = map(sum, self.splits)
        return z, y, x

    @property
    def counts(self) -> Index3:
        """Blocks along (z, y, x)."""
        z, y, x = map(len, self.splits)
        return z, y, x

    def __getitem__(self, index: int) -> IndexBox:
        return block_box([_block_starts(s) for s in self.splits], tuple(map(int, np.unravel_index(index, self.counts))))


def reread_factors(expr: Expr, regions: Regions) -> tuple[float, float]:
    """Return how many times the regions read each byte on average, over all sources and for the worst source."""
    reads = source_reads(expr, regions)
    distinct = sum(r.distinct_bytes for r in reads)
    together = sum(r.bytes for r in reads) / distinct if distinct else 1.0
    return together, max((r.rereads for r in reads), default=1.0)


def _reads_along_axes(expr: Expr, regions: Regions | BlockGrid) -> dict[Leaf, list[list[tuple[float, float]]]]:
    # The number of chunks of a region is a product over the axes, so each axis is sampled on its own.
    found: dict[Leaf, list[list[tuple[float, float]]]] = {}
    counts = regions.counts
    middle = [n // 2 for n in counts]
    for axis in range(3):
        chosen = range(0, counts[axis], -(-counts[axis] // MAX_SAMPLES))
        weight = counts[axis] / len(chosen)
        for i in chosen:
            index = [*middle[:axis], i, *middle[axis + 1 :]]
            box = regions[(index[0] * counts[1] + index[1]) * counts[2] + index[2]]
            for leaf, boxes in required_boxes(expr, box).items():
                shape, number = _chunk_extent(reduce(IndexBox.hull, boxes), leaf)
                pairs = found.setdefault(leaf, [[], [], []])[axis]
                pairs.append((shape[axis] * weight, number[axis] * weight))
    return found


def is_array_in_memory(leaf: Leaf) -> bool:
    """Return whether a leaf is an array in memory, which has no chunks to read."""
    return isinstance(leaf, LevelLeaf) and isinstance(getattr(leaf.source, "array", None), np.ndarray)


def _chunk_extent(box: IndexBox, leaf: Leaf) -> tuple[Index3, Index3]:
    """Return the shape of a box rounded out to whole chunks, and the number of chunks along each axis."""
    if isinstance(leaf, DaskLeaf):
        ends = [_block_extent(s, a, b) for s, a, b in zip(leaf.splits, box.start, box.stop, strict=True)]
        return tuple(n for n, _ in ends), tuple(count for _, count in ends)  # type: ignore[return-value]
    stored = isinstance(leaf, LevelLeaf) and not is_array_in_memory(leaf)
    chunks = leaf.source.levels[leaf.mip].chunks if stored and isinstance(leaf, LevelLeaf) else (1, 1, 1)
    whole = box.round_out(chunks)
    number = tuple(n // c for n, c in zip(whole.shape, chunks, strict=True))
    return whole.clip(leaf.bounds).shape, number  # type: ignore[return-value]


def _block_extent(sizes: tuple[int, ...], start: int, stop: int) -> tuple[int, int]:
    starts = _block_starts(sizes)
    first, last = np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, stop, "left")
    return int(starts[last] - starts[first]), int(last - first)


@lru_cache(maxsize=64)
def _block_starts(sizes: tuple[int, ...]) -> Any:
    return np.array([0, *accumulate(sizes)])


@dataclass(frozen=True)
class ComputeCost:
    """The memory that computing blocks of a foreign dask array needs in addition to the blocks."""

    apart: bool
    """Whether each block is computed on its own."""
    below: int
    """Bytes that the expressions in its graph need per block."""
    held: float = 2.0
    """Bytes in memory per byte of the blocks if all are computed at once; 0 if they are in memory anyway."""


def compute_costs(dask_inputs: DaskInputs) -> dict[str, ComputeCost]:
    """Return the memory that computing blocks of each foreign array needs."""
    found = {}
    for name, array in dask_inputs.items():
        below = [region_memory(expr, box, box.voxels, 0.0) for expr, box in map(_largest_block, blocks_below(array))]
        if has_computed_blocks(array):
            found[name] = ComputeCost(apart=False, below=0, held=0.0 if is_in_memory(array) else 1.0)
        else:
            found[name] = ComputeCost(has_independent_blocks(array), max(below, default=0))
    return found


def _largest_block(below: tuple[Expr, tuple[tuple[int, ...], ...]]) -> tuple[Expr, IndexBox]:
    expr, splits = below
    box = IndexBox.of_shape(tuple(map(max, splits)))
    return expr, box


def region_memory(
    expr: Expr,
    box: IndexBox,
    brick: int,
    encoding: float,
    *,
    piece: IndexBox | None = None,
    spared: int = 0,
    page: int = 0,
    inputs: Mapping[str, ComputeCost] | None = None,
) -> int:
    """Return the most bytes of memory that a region needs while it is read, drawn, encoded and written.

    Parameters
    ----------
    expr : Expr
        The exported expression.
    box : IndexBox
        The region.
    brick : int
        Voxels that are drawn at a time.
    encoding : float
        Bytes that the target needs to encode a piece, per byte of the piece.
    piece : IndexBox, optional
        The part of the region that the target encodes at a time; default: the region.
    spared : int
        Bytes that are read but not in memory at the same time.
    page : int
        Bytes that the target needs in addition for one file.
    inputs : mapping, optional
        The cost of computing foreign dask arrays, by name. Memory that user-defined functions need beyond their
        inputs and outputs is unknown and not counted.
    """
    piece = box if piece is None else piece
    needs = required_boxes(expr, box)
    given = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if isinstance(leaf, DaskLeaf))
    stored = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if not isinstance(leaf, DaskLeaf))
    stored -= spared
    flight = _compute_bytes({leaf: boxes for leaf, boxes in needs.items() if isinstance(leaf, DaskLeaf)}, inputs or {})
    part = min(1.0, brick / max(1, piece.voxels))
    drawing = part * sum(box_bytes(e, b) for e, b in intermediate_boxes(expr, piece))
    # a leaf is exported as it was read, without drawing
    result = box_bytes(expr, piece)
    drawn = 0 if isinstance(expr, Leaf) else result
    return int(
        max(given + flight, given + FETCH_FACTOR * stored + max(drawn + drawing, drawn + encoding * result + page))
    )


def _compute_bytes(needs: Mapping[DaskLeaf, list[IndexBox]], dask_inputs: Mapping[str, ComputeCost]) -> int:
    """Return the bytes of memory that computing boxes of foreign arrays needs; blocks are computed whole.

    Independent blocks are computed one after the other. Blocks with shared inputs are assumed to be in memory at the
    same time, with inputs of the same size.
    """
    apart, together = [0], 0
    for leaf, boxes in needs.items():
        size = leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        how = dask_inputs.get(leaf.name, ComputeCost(apart=False, below=0))
        whole = int(how.held * size * sum(math.prod(_chunk_extent(box, leaf)[0]) for box in boxes))
        if how.apart:
            apart.append(min(BLOCKS_IN_MEMORY * size * math.prod(map(max, leaf.splits)), whole) + how.below)
        else:
            together += whole + how.below
    return max(apart) + together


def intermediate_boxes(expr: Expr, box: IndexBox) -> Iterator[tuple[Expr, IndexBox]]:
    """Yield the intermediate results of a box, without its sources."""
    box = box.clip(expr.bounds)
    if isinstance(expr, Leaf) or not box.voxels:
        return
    yield expr, box
    for child, need in zip(expr.inputs, expr.needs(box), strict=True):
        yield from intermediate_boxes(child, need)


def box_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of a box of an expression."""
    return box.voxels * expr.dtype.itemsize * math.prod((*expr.lead, *expr.tail))
