"""What an export reads of its sources, computed from its expression, and what of its box they do not cover."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache, reduce
from itertools import accumulate
from typing import Any

import numpy as np
from dask.utils import key_split

from imageryxr.core.bbox import Index3, IndexBox, block_box
from imageryxr.core.grid import Grid
from imageryxr.export.plan.regions import Regions
from imageryxr.graph.dask_inputs import DaskInputs
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.expr import Clipped, DaskLeaf, Expr, Leaf, LevelLeaf, Resampled, Shifted
from imageryxr.graph.oblique import PlaneSlice
from imageryxr.graph.strides import Strided
from imageryxr.graph.to_dask import blocks_below

# If there are more regions along an axis, this many evenly spaced ones are sampled.
MAX_SAMPLES = 128
# A smaller percentage outside a segmentation is not reported, because its edge seldom matches that of the image.
MIN_SEGMENTATION_PERCENT = 1.0


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
        boxes = [chunk_extent(box, leaf) for box in whole.get(leaf, [])]
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


def dask_input_reads(reads_of_export: list[SourceReads], dask_inputs: DaskInputs) -> list[SourceReads]:
    """Return what blocks of foreign dask arrays read of sources, as far as their graphs contain expressions.

    Reads are counted once for each time that the blocks are computed, according to the reads of the export.
    """
    found = []
    times = {r.source: r.requests / r.chunks for r in reads_of_export if r.computed}
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


def is_array_in_memory(leaf: Leaf) -> bool:
    """Return whether a leaf is an array in memory, which has no chunks to read."""
    return isinstance(leaf, LevelLeaf) and isinstance(getattr(leaf.source, "array", None), np.ndarray)


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
# what the sources do not cover, which is 0 and cannot be distinguished from data


def coverage_warning(expr: Expr, grid: Grid, verb: str = "exported") -> str:
    """Return a warning about a box that reaches beyond its sources; an empty string if it does not.

    The images are checked first, because overlays are drawn over them; then the segmentations, without the boxes that
    they were cropped to. Of several sources, the one that covers most of the box is reported. `verb` is the action in
    the warning, as a participle.
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
        whole = _level_extents(expr, cut=False)
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


def _level_extents(expr: Expr, *, cut: bool = True) -> list[tuple[LevelLeaf, IndexBox]]:
    """Return the bounds of each level in the indexes of an expression; levels below an oblique plane are left out."""
    if isinstance(expr, LevelLeaf):
        return [(expr, expr.bounds)]
    if isinstance(expr, PlaneSlice):
        return []
    found = [pair for child in expr.inputs for pair in _level_extents(child, cut=cut)]
    if isinstance(expr, Shifted):
        return [(leaf, box.shift(expr.by, -1)) for leaf, box in found]
    if isinstance(expr, Clipped) and cut:
        return [(leaf, box.clip(expr.box)) for leaf, box in found]
    if isinstance(expr, Resampled | Strided):
        return [(leaf, expr.box_from_child(box)) for leaf, box in found]
    return found
