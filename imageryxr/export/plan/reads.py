"""Estimate the reads and the memory of an export's regions, and find voxels outside the sources.

All results follow from the expression of the exported array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, reduce
from itertools import accumulate
from typing import Any

import numpy as np
from dask.utils import key_split

from imageryxr.core.bbox import Index3, IndexBox, block_box
from imageryxr.core.grid import Grid
from imageryxr.export.plan.regions import Regions
from imageryxr.export.read.sweep import BRICK_VOXELS, box_bytes, bricks, is_array_in_memory, volume_sweep
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.pyramid import Pyramid
from imageryxr.graph.dask_inputs import DaskInputs, has_computed_blocks, has_independent_blocks, is_in_memory
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import Clipped, DaskLeaf, Expr, Leaf, LevelLeaf, Resampled, Shifted
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.selection import Strided
from imageryxr.graph.to_dask import blocks_below

# If there are more regions along an axis, this many evenly spaced ones are sampled.
MAX_SAMPLES = 128
# A smaller percentage outside a segmentation is not reported, because its edge seldom matches that of the image.
MIN_SEGMENTATION_PERCENT = 1.0
# Bytes of memory during a read per byte of its result; a read also needs compressed bytes and a decoded chunk.
FETCH_FACTOR = 1.25
# Blocks of a dask array that are in memory at a time if its blocks are computed one by one.
BLOCKS_IN_MEMORY = 3


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
    """Return the reads of each source by the regions of an export, in whole chunks.

    Blocks of a user's dask arrays are also listed, as ``computed``: each is computed whole, once per region that needs
    it.
    """
    found = []
    whole = required_boxes(expr, IndexBox.of_shape(regions.shape))
    for leaf, axes in _reads_along_axes(expr, regions).items():
        if not isinstance(leaf, LevelLeaf | DaskLeaf):
            continue
        size = leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        voxels = math.prod(sum(extent for extent, _ in axis) for axis in axes)
        requests = math.prod(sum(count for _, count in axis) for axis in axes) * (not is_array_in_memory(leaf))
        boxes = [chunk_extent(box, leaf) for box in whole.get(leaf, [])]
        once = max(1, sum(math.prod(shape) for shape, _ in boxes))
        chunks = max(1, sum(math.prod(number) for _, number in boxes))
        total, count = max(round(voxels), once), max(1, round(requests))
        if isinstance(leaf, DaskLeaf):
            name, resolution = str(key_split(leaf.name)), (0.0, 0.0, 0.0)
            found.append(SourceReads(name, 0, resolution, total * size, once * size, count, chunks, computed=True))
        else:
            resolution = leaf.source.levels[leaf.mip].grid.resolution
            found.append(SourceReads(leaf.source.name, leaf.mip, resolution, total * size, once * size, count, chunks))
    return found


def dask_input_reads(export_reads: list[SourceReads], dask_inputs: DaskInputs) -> list[SourceReads]:
    """Return the reads of sources by blocks of a user's dask arrays, where their graphs contain expressions.

    The reads of a block count as often as the export computes the block, according to `export_reads`.
    """
    found = []
    times = {r.source: r.requests / r.chunks for r in export_reads if r.computed}
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


def reread_factors(reads: list[SourceReads]) -> tuple[float, float]:
    """Return how many times each byte is read on average, over all sources and for the worst source."""
    distinct = sum(r.distinct_bytes for r in reads)
    together = sum(r.bytes for r in reads) / distinct if distinct else 1.0
    return together, max((r.rereads for r in reads), default=1.0)


def _reads_along_axes(expr: Expr, regions: Regions | BlockGrid) -> dict[Leaf, list[list[tuple[float, float]]]]:
    # The number of chunks of a region is a product over the axes, so each axis is sampled on its own.
    found: dict[Leaf, list[list[tuple[float, float]]]] = {}
    counts = regions.counts
    middle = [n // 2 for n in counts]

    @cache
    def extents(z: int, y: int, x: int) -> dict[Leaf, tuple[Index3, Index3]]:
        needs = required_boxes(expr, regions[(z * counts[1] + y) * counts[2] + x])
        return {leaf: chunk_extent(reduce(IndexBox.hull, boxes), leaf) for leaf, boxes in needs.items()}

    for axis in range(3):
        chosen = range(0, counts[axis], -(-counts[axis] // MAX_SAMPLES))
        weight = counts[axis] / len(chosen)
        for i in chosen:
            for leaf, (shape, number) in extents(*middle[:axis], i, *middle[axis + 1 :]).items():
                pairs = found.setdefault(leaf, [[], [], []])[axis]
                pairs.append((shape[axis] * weight, number[axis] * weight))
    return found


def chunk_extent(box: IndexBox, leaf: Leaf) -> tuple[Index3, Index3]:
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


# ---------------------------------------------------------------------------------------------------------
# voxels outside the sources: they are exported as 0, like background in the data


def coverage_warning(expr: Expr, grid: Grid, verb: str = "exported") -> str:
    """Return a warning about a box that reaches beyond its sources; an empty string if it does not.

    The images are checked first, because overlays are drawn over them, and then the segmentations, as if they had not
    been cropped. Of several sources, the one that covers most of the box is reported. `verb` is the action in the
    warning, such as "exported".
    """
    found = _level_extents(expr)
    images = [pair for pair in found if pair[0].source.layer_type == "image"]
    message = _coverage_message(images or found, grid)
    if message:
        return (
            f"{message} are {verb} as 0, which is black and opaque in a picture over an image; give a box inside the "
            "source to avoid this"
        )
    if images:
        whole = _level_extents(expr, cropped=False)
        message = _coverage_message(
            [pair for pair in whole if pair[0].source.layer_type != "image"], grid, MIN_SEGMENTATION_PERCENT
        )
    return message and f"{message} show no cell; give a box inside the source to avoid this"


def _coverage_message(extents: list[tuple[LevelLeaf, IndexBox]], grid: Grid, least_percent: float = 0.0) -> str:
    boxes: dict[LevelLeaf, list[IndexBox]] = {}
    for leaf, box in extents:
        boxes.setdefault(leaf, []).append(box)
    whole = grid.box
    inside = {leaf: reduce(IndexBox.hull, found).clip(whole) for leaf, found in boxes.items()}
    if not inside:
        return ""
    leaf, box = max(inside.items(), key=lambda pair: pair[1].voxels)
    share = 100 * (1 - box.voxels / whole.voxels)
    if box == whole or share < least_percent:
        return ""
    where = f"only {grid.crop(box).bbox} lies" if box.voxels else "nothing lies"
    return (
        f"the box {grid.bbox} reaches beyond {leaf.source.name}: {where} inside the source, and the other {share:.2g} %"
    )


def _level_extents(expr: Expr, *, cropped: bool = True) -> list[tuple[LevelLeaf, IndexBox]]:
    """Return the levels that an expression reads, each with its bounds in the voxel indexes of the expression.

    If `cropped`, the bounds are clipped to the crops in the expression. Levels that are inputs of an oblique plane are
    omitted.
    """
    if isinstance(expr, LevelLeaf):
        return [(expr, expr.bounds)]
    if isinstance(expr, PlaneSlice):
        return []
    found = [pair for child in expr.inputs for pair in _level_extents(child, cropped=cropped)]
    if isinstance(expr, Shifted):
        return [(leaf, box.shift(expr.by, -1)) for leaf, box in found]
    if isinstance(expr, Clipped) and cropped:
        return [(leaf, box.clip(expr.box)) for leaf, box in found]
    if isinstance(expr, Resampled | Strided):
        return [(leaf, expr.box_from_child(box)) for leaf, box in found]
    return found


# ---------------------------------------------------------------------------------------------------------
# memory


def region_memory(
    expr: Expr, box: IndexBox, target: Target | None = None, costs: Mapping[str, ComputeCost] | None = None
) -> int:
    """Return the most bytes of memory that a region needs while it is read, drawn, encoded and written.

    Without a target, the region is drawn at once and not encoded. `costs` are the costs of computing the user's dask
    arrays, by name. Memory that user-defined functions need beyond their inputs and outputs is unknown, so it is not
    counted.
    """
    piece, brick, spared, encoding, page = box, box.voxels, 0, 0.0, 0
    if target is not None:
        brick, encoding, page = BRICK_VOXELS, target.encoding, target.page_bytes
        if target.kind != "memory":
            sweep = volume_sweep(expr, box, target.granule)
            piece, spared = next(bricks(sweep.slabs[0], target.granule)), sweep.spared_bytes
    needs = required_boxes(expr, box)
    given = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if isinstance(leaf, DaskLeaf))
    stored = sum(box_bytes(leaf, b) for leaf, boxes in needs.items() for b in boxes if not isinstance(leaf, DaskLeaf))
    stored -= spared
    flight = _compute_bytes({leaf: boxes for leaf, boxes in needs.items() if isinstance(leaf, DaskLeaf)}, costs or {})
    drawing = min(1.0, brick / max(1, piece.voxels)) * drawing_bytes(expr, piece)
    # a leaf is exported as it was read, without drawing
    result = box_bytes(expr, piece)
    drawn = 0 if isinstance(expr, Leaf) else result
    return int(
        max(given + flight, given + FETCH_FACTOR * stored + max(drawn + drawing, drawn + encoding * result + page))
    )


def drawing_bytes(expr: Expr, box: IndexBox) -> int:
    """Return the bytes of all intermediate results of a box, without its sources."""
    box = box.clip(expr.bounds)
    if isinstance(expr, Leaf) or not box.voxels:
        return 0
    pairs = zip(expr.inputs, expr.needs(box), strict=True)
    return box_bytes(expr, box) + sum(drawing_bytes(child, need) for child, need in pairs)


def coarse_memory(target: Target) -> int:
    """Return the most bytes of memory that a region of a pyramid's coarser levels needs."""
    if not isinstance(target, Pyramid):
        return 0
    most = 0
    for stage, regions in enumerate(target.later, 1):
        box = regions.largest()
        encoding = int((1 + target.encoding) * box.voxels * target.layer.voxel_bytes)
        most = max(most, target.derived_bytes(stage, box), encoding)
    return most


# ---------------------------------------------------------------------------------------------------------
# blocks of a user's dask arrays


@dataclass(frozen=True)
class ComputeCost:
    """The memory that is needed to compute blocks of a user's dask array."""

    independent: bool
    """Whether the blocks can be computed one by one."""
    expressions: int
    """Bytes per block that expressions in the array's graph need."""
    factor: float = 2.0
    """Bytes in memory per byte of the blocks if all are computed at once; 0 if the blocks are already in memory."""


def compute_costs(dask_inputs: DaskInputs) -> dict[str, ComputeCost]:
    """Return the memory that is needed to compute blocks of each dask array."""
    found = {}
    for name, array in dask_inputs.items():
        below = [region_memory(expr, box) for expr, box in map(_largest_block, blocks_below(array))]
        if has_computed_blocks(array):
            found[name] = ComputeCost(independent=False, expressions=0, factor=0.0 if is_in_memory(array) else 1.0)
        else:
            found[name] = ComputeCost(has_independent_blocks(array), max(below, default=0))
    return found


def _largest_block(below: tuple[Expr, tuple[tuple[int, ...], ...]]) -> tuple[Expr, IndexBox]:
    expr, splits = below
    box = IndexBox.of_shape(tuple(map(max, splits)))
    return expr, box


def _compute_bytes(needs: Mapping[DaskLeaf, list[IndexBox]], dask_inputs: Mapping[str, ComputeCost]) -> int:
    """Return the bytes of memory that are needed to compute boxes of dask arrays; blocks are computed whole.

    Independent blocks are computed one after the other. Blocks with shared inputs are assumed to be in memory at the
    same time, with inputs of the same size.
    """
    one_by_one, together = [0], 0
    for leaf, boxes in needs.items():
        size = leaf.dtype.itemsize * math.prod((*leaf.lead, *leaf.tail))
        cost = dask_inputs.get(leaf.name, ComputeCost(independent=False, expressions=0))
        whole = int(cost.factor * size * sum(math.prod(chunk_extent(box, leaf)[0]) for box in boxes))
        if cost.independent:
            few = BLOCKS_IN_MEMORY * size * math.prod(map(max, leaf.splits))
            one_by_one.append(min(few, whole) + cost.expressions)
        else:
            together += whole + cost.expressions
    return max(one_by_one) + together
