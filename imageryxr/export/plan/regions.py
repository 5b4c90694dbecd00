"""Regions: the boxes that an export is divided into, and the choice of their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import overload

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.dask_inputs import dask_leaves
from imageryxr.graph.expr import Expr

# Memory of a region, unless the caller or the machine allows less.
REGION_BYTES = 1 << 30
# If the regions read more than this multiple of what they need, a region may use more memory.
REREAD_LIMIT = 1.15
# Initial voxels of a region. CloudVolume reaches its full speed at about this size.
START_VOXELS = 1 << 22


@dataclass(frozen=True)
class Regions(Sequence[IndexBox]):
    """A grid of boxes that cover a shape, computed on access so that a million need no more memory than one."""

    shape: Index3
    """Voxels (z, y, x) covered."""
    step: Index3
    """Size of a region."""
    first: Index3
    """Size of the first region along each axis; it may be smaller, to align the others with the source's chunks."""

    @property
    def counts(self) -> Index3:
        """Regions along (z, y, x)."""
        z, y, x = (
            1 + max(0, -(-(n - f) // s)) if n else 0 for n, s, f in zip(self.shape, self.step, self.first, strict=True)
        )
        return (z, y, x)

    def __len__(self) -> int:
        return math.prod(self.counts)

    @overload
    def __getitem__(self, index: int) -> IndexBox: ...
    @overload
    def __getitem__(self, index: slice) -> list[IndexBox]: ...
    def __getitem__(self, index: int | slice) -> IndexBox | list[IndexBox]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"region {index} is out of range; there are {len(self)} regions")
        _, ny, nx = self.counts
        rest, x = divmod(index % len(self), nx)
        z, y = divmod(rest, ny)
        start, stop = [], []
        for i, n, s, f in zip((z, y, x), self.shape, self.step, self.first, strict=True):
            low = 0 if i == 0 else f + (i - 1) * s
            start.append(low)
            stop.append(min(n, f if i == 0 else low + s))
        return IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[IndexBox]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def uniform(cls, shape: Index3, step: Index3) -> Regions:
        """Return regions of one size that start at index 0."""
        size: Index3 = tuple(max(1, min(s, n)) for s, n in zip(step, shape, strict=True))  # type: ignore[assignment]
        return cls(shape, size, size)

    def largest(self) -> IndexBox:
        """Return one of the largest regions."""
        index = []
        for n, step, first, count in zip(self.shape, self.step, self.first, self.counts, strict=True):
            # the second region has full size unless it is the last
            index.append(1 if count > 1 and min(step, n - first) > first else 0)
        z, y, x = index
        _, ny, nx = self.counts
        return self[(z * ny + y) * nx + x]


@dataclass(frozen=True)
class Stages:
    """All regions of an export, numbered consecutively: first the array's, then those of each later stage."""

    parts: tuple[Regions, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def start(self, stage: int) -> int:
        """Return the number of a stage's first region."""
        return sum(len(p) for p in self.parts[:stage])

    def box(self, number: int) -> tuple[int, IndexBox]:
        """Return stage and box of a region."""
        stage = 0
        while number >= len(self.parts[stage]):
            number -= len(self.parts[stage])
            stage += 1
        return stage, self.parts[stage][number]


def tiles(box: IndexBox, size: Index3) -> Iterator[IndexBox]:
    """Iterate over the pieces of a box cut at multiples of a size."""
    return (cell.clip(box) for cell in box.cells(size))


@dataclass(frozen=True)
class RegionLimits:
    """Limits of the size of regions."""

    budget: int
    """Bytes of memory that a region may use."""
    most: int
    """Bytes of memory that a region may use if it would exceed `REREAD_LIMIT` otherwise."""
    least: int
    """Number of regions that keeps all workers busy. Fewer are chosen only to stay below `REREAD_LIMIT`."""
    threads: int
    """Regions that share the memory of a worker; if there are fewer, each may use more."""


def choose_regions(
    expr: Expr,
    shape: Index3,
    granule: Index3,
    limits: RegionLimits,
    *,
    memory_of: Callable[[IndexBox], int],
    reads_of: Callable[[Regions], tuple[float, float]],
) -> Regions:
    """Return regions of whole target chunks that are aligned with the source's chunks, so that few chunks are reread.

    `memory_of` returns the bytes of memory that a region needs. `reads_of` returns about how many times some regions
    read each byte, for all sources together and for the worst source.
    """
    axes = [_initial_size(expr, axis, n, g) for axis, (n, g) in enumerate(zip(shape, granule, strict=True))]
    start = best = Regions(shape, *(tuple(sizes) for sizes in zip(*axes, strict=True)))
    # Blocks of a user's dask array are computed whole, however small the region.
    has_blocks = bool(dask_leaves(expr))
    most = limits.most if has_blocks else limits.budget

    def fits(regions: Regions) -> bool:
        box = regions.largest()
        return (has_blocks or box.voxels <= 2 * START_VOXELS) and memory_of(box) <= most

    best = _shrink(best, granule, fits)
    reads, worst = reads_of(best)

    def grow(axis: int) -> tuple[tuple[float, float], Regions] | None:
        # If the first region is short, one doubling may gain nothing while the next one does. Computing blocks again
        # costs so much that the next one is tried.
        grown, rereads_too_much = best, worst > REREAD_LIMIT
        while (larger := _grow(grown, axis, start, granule[axis])) != grown:
            grown = larger
            too_few = not rereads_too_much and len(grown) < limits.least
            if too_few or memory_of(grown.largest()) > _memory_limit(grown, limits, rereads_too_much):
                return None
            if (cost := reads_of(grown))[0] <= reads * 0.99:
                return cost, grown
            if not has_blocks:
                return None
        return None

    while reads > 1.02:
        # Of equal gains, the axis that is contiguous in memory comes first.
        gains = [gain for axis in (2, 1, 0) if (gain := grow(axis)) is not None]
        if not gains:
            break
        (reads, worst), best = min(gains, key=lambda gain: gain[0])
    return best


def choose_slabs(
    expr: Expr,
    shape: Index3,
    axis: int,
    *,
    reads_of: Callable[[Regions], tuple[float, float]],
    fits: Callable[[Regions], bool],
) -> Regions:
    """Return regions of whole slices that are as thick as chunks, or thicker if too much would be read twice.

    `reads_of` is that of `choose_regions`; `fits` returns whether there is room for thicker regions.
    """
    start = best = _replace_axis(Regions(shape, shape, shape), axis, *_initial_size(expr, axis, shape[axis], 1))
    reads, worst = reads_of(best)
    while worst > REREAD_LIMIT:
        grown = _grow(best, axis, start, 1)
        cost = reads_of(grown)
        if grown == best or cost[0] > reads * 0.99 or not fits(grown):
            break
        best, (reads, worst) = grown, cost
    return best


def _initial_size(expr: Expr, axis: int, n: int, granule: int) -> tuple[int, int]:
    """Return the size of the regions and of the first one along an axis: storage chunks in whole target chunks."""
    edges = expr.edges(axis, 0, n)
    if not edges:
        step = min(-(-n // granule), max(1, 512 // granule)) * granule
        return step, step
    stored = max((b - a for a, b in pairwise(edges)), default=max(edges[0], n - edges[0]))
    step = -(-stored // granule) * granule
    if stored < step and step % stored:
        # a multiple of both sizes, unless that is much larger than one of them
        both = math.lcm(stored, granule)
        step = both if both <= 4 * step else step
    step = min(step, -(-n // granule) * granule)
    # cut the first region short so that the others are aligned with the chunks
    first = edges[0] % stored // granule * granule if step < n else step
    return step, first or step


def _memory_limit(regions: Regions, limits: RegionLimits, rereads_too_much: bool) -> int:
    """Return the bytes of memory that a region may use: more if the usual limit causes too many rereads."""
    if not rereads_too_much:
        return limits.budget
    return limits.most * (limits.threads // min(limits.threads, len(regions)))


def _shrink(regions: Regions, granule: Index3, fits: Callable[[Regions], bool]) -> Regions:
    start = regions
    while not fits(regions):
        axis = max(range(3), key=lambda a: regions.step[a] / granule[a])
        half = _half(regions.step[axis], granule[axis])
        if half >= regions.step[axis]:
            break
        regions = _resize(regions, axis, half, start, granule[axis])
    return regions


def _half(step: int, granule: int) -> int:
    return max(granule, -(-(step // 2) // granule) * granule)


def _grow(regions: Regions, axis: int, start: Regions, granule: int) -> Regions:
    step, n = regions.step[axis], regions.shape[axis]
    if step >= n:
        return regions
    double = min(2 * step, -(-n // granule) * granule)
    if step < start.step[axis]:  # retrace the halvings of `_shrink`, so that regions end where chunks end
        double = start.step[axis]
        while _half(double, granule) > step:
            double = _half(double, granule)
    return _resize(regions, axis, double, start, granule)


def _resize(regions: Regions, axis: int, step: int, start: Regions, granule: int) -> Regions:
    """Return regions of another size along an axis, aligned with the chunks as `start` is."""
    edge = start.first[axis] % start.step[axis] if step < regions.shape[axis] else 0
    return _replace_axis(regions, axis, step, edge % step // granule * granule or step)


def _replace_axis(regions: Regions, axis: int, step: int, first: int) -> Regions:
    steps, firsts = list(regions.step), list(regions.first)
    steps[axis], firsts[axis] = step, min(first, regions.shape[axis])
    return replace(regions, step=tuple(steps), first=tuple(firsts))  # type: ignore[arg-type]
