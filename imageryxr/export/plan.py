"""What an export will do, as a value with numbers, before it does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from imageryxr.export.targets import Target
from imageryxr.expr import Expr
from imageryxr.grid import Index3, IndexBox
from imageryxr.lazy import choose_splits

# As many voxels as a block has by default: a region is what one thread holds at a time.
REGION_VOXELS = 1 << 22


@dataclass(frozen=True)
class ExportPlan:
    """An export, planned: regions that are written one after the other, each by one thread."""

    target: Target
    """What is written to."""
    shape: Index3
    """Voxels (z, y, x)."""
    voxel_bytes: int
    """Bytes of one voxel in memory."""
    regions: tuple[IndexBox, ...]
    """In the order in which they are written; whole numbers of the target's chunks."""

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the exported array, before compression."""
        return math.prod(self.shape) * self.voxel_bytes

    @property
    def region_bytes(self) -> int:
        """Bytes of the largest region."""
        return max(r.voxels for r in self.regions) * self.voxel_bytes

    def __repr__(self) -> str:
        z, y, x = self.shape
        return (
            f"<ExportPlan {self.target.place}: {len(self.regions)} regions, {x} × {y} × {z} voxels, "
            f"{show_bytes(self.bytes_to_write)} before compression, {show_bytes(self.region_bytes)} a region>"
        )


def make_plan(target: Target, expr: Expr, shape: Index3, dtype: np.dtype[Any], channels: int) -> ExportPlan:
    """Return the regions of an export: whole target chunks, and along the source's chunks where that can be."""
    splits = choose_splits(expr, shape)
    ranges = [
        _cuts(n, granule, max(sizes), axis == 0)
        for axis, (n, granule, sizes) in enumerate(zip(shape, target.granule, splits, strict=True))
    ]
    # A slab as deep as the source's chunks may be many slices: halve it until a region is of block size.
    while math.prod(step for _, step in ranges) > 2 * REGION_VOXELS:
        depth = max(range(3), key=lambda a: ranges[a][1] / target.granule[a])
        n, step = ranges[depth]
        smaller = max(target.granule[depth], -(-(step // 2) // target.granule[depth]) * target.granule[depth])
        if smaller >= step:
            break
        ranges[depth] = (n, smaller)
    boxes = [
        IndexBox(start, tuple(min(a + s, n) for a, (n, s) in zip(start, ranges, strict=True)))  # type: ignore[arg-type]
        for start in product(*(range(0, n, step) for n, step in ranges))
    ]
    return ExportPlan(target, shape, dtype.itemsize * max(1, channels), tuple(boxes))


def _cuts(n: int, granule: int, block: int, deep: bool) -> tuple[int, int]:
    step = max(granule, -(-block // granule) * granule)
    return n, min(step, -(-n // granule) * granule)


def show_bytes(count: float) -> str:
    """Return a count of bytes as people read it: 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
