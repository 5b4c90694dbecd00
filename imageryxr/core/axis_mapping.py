"""Map the voxels of one grid to another in exact integer arithmetic; every resampling uses these maps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import SNAP, Index3, IndexBox, to_fraction
from imageryxr.core.grid import Axis, Grid


class LinearMap(NamedTuple):
    """Linear interpolation along one axis: ``a[lower] + (a[upper] - a[lower]) * weight``.

    Attributes
    ----------
    lower, upper
        int64[n], the two source voxels around the centre of each target voxel. Where the weight is 0, ``upper`` may lie
        outside the array.
    weight
        float64[n] in [0, 1), the weight of the upper voxel.
    """

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]


class OverlapMap(NamedTuple):
    """The run of source voxels that each target voxel covers along one axis, with integer weights (CSR layout).

    Attributes
    ----------
    first
        int64[n], the first source voxel that target voxel i covers.
    offsets
        int64[n + 1]; target voxel i covers ``offsets[i + 1] - offsets[i]`` source voxels, at least one.
    weights
        int64[offsets[n]], positive: the covered length of each source voxel. The unit may differ between target voxels.
    """

    first: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]


# Weights are integers up to about this number per target voxel, so that the product of three axes fits int64. Common
# ratios need far fewer, so their weights are exact.
_MAX_WEIGHT = 1 << 18


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Positions of the voxels of a target axis on a source axis, as exact integers.

    The centre of target voxel ``j`` lies at ``(a·j + b) / c`` source voxels from the lower edge of source voxel 0.
    Source indexes may be negative. The half-open ``valid`` range contains the source voxels that have data, and the
    centres of all mapped target voxels. A centre on the edge between two source voxels belongs to the upper one,
    because voxels are half-open.
    """

    a: int
    b: int
    c: int

    @classmethod
    def from_axes(cls, target: Axis, source: Axis) -> AxisMap:
        """Return the map from a target axis to a source axis."""
        ratio = to_fraction(target.resolution) / to_fraction(source.resolution)
        shift = (to_fraction(target.offset) + Fraction(1, 2)) * ratio - to_fraction(source.offset)
        # Simple fractions remove float noise, so that ties are decided consistently. The ratio stays unsimplified if
        # the simple one would drift by `SNAP` along the axis.
        shift, simple = shift.limit_denominator(1_000_000), ratio.limit_denominator(1_000_000)
        ratio = simple if abs(ratio - simple) * target.size < SNAP else ratio
        c = math.lcm(ratio.denominator, shift.denominator)
        return cls(int(ratio * c), int(shift * c), c)

    @property
    def scale(self) -> Fraction:
        """Number of source voxels per target voxel."""
        return Fraction(self.a, self.c)

    def first_voxel_at(self, edge: int) -> int:
        """Return the first target voxel whose centre lies at or above the lower edge of source voxel ``edge``."""
        return -((self.b - edge * self.c) // self.a)

    def target_range(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of target voxels whose centre lies in source voxels ``start`` to ``stop``."""
        return self.first_voxel_at(start), self.first_voxel_at(stop)

    def target_edges(self, edges: Iterable[int], start: int, stop: int) -> list[int]:
        """Return the first target voxels at or above the edges of source voxels, of those between start and stop."""
        return sorted({e for e in map(self.first_voxel_at, edges) if start < e < stop})

    def source_range(self, start: int, stop: int, method: str) -> tuple[int, int]:
        """Return the half-open range of source voxels that a method needs for target voxels ``start`` to ``stop``."""
        low = Fraction(self.a * start + self.b, self.c)
        high = Fraction(self.a * (stop - 1) + self.b, self.c)
        half = Fraction(1, 2) if method == "linear" else self.scale / 2
        if method == "nearest":
            return math.floor(low), math.floor(high) + 1
        # Linear interpolation needs the voxel above the last centre. If the centres coincide, that voxel has no weight.
        return math.floor(low - half), math.ceil(high - half) + 1 if method == "linear" else math.ceil(high + half)

    def _positions(self, start: int, stop: int, shift: Fraction | int = 0) -> tuple[npt.NDArray[np.int64], int, int]:
        # The position of voxel j is base + numerator / denominator. The integer part at `start` is subtracted first, so
        # that the numerators fit int64 except for noisy resolutions. Those use Python integers, because a rounded
        # ratio drifts by 1e-4 voxel over 2**31 voxels.
        c = math.lcm(self.c, shift.denominator)
        scale = c // self.c
        first = (self.a * start + self.b) * scale + int(shift * c)
        base, rest = divmod(first, c)
        fits = 2 * (self.a * scale * max(1, stop - start) + c) < 2**62
        steps = np.arange(stop - start).astype(np.int64 if fits else object)
        return self.a * scale * steps + rest, base, c

    def nearest(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the source voxel that contains each centre."""
        numerator, base, c = self._positions(start, stop)
        return (numerator // c + base).astype(np.int64)

    def linear(self, start: int, stop: int, valid: tuple[int, int]) -> LinearMap:
        """Return the source voxels below and above each centre, clamped to the valid range."""
        numerator, base, c = self._positions(start, stop, Fraction(-1, 2))
        lower, rest = (numerator // c + base).astype(np.int64), numerator % c
        below, above = (np.clip(i, valid[0], valid[1] - 1) for i in (lower, lower + 1))
        return LinearMap(below, above, (rest / c).astype(np.float64))

    def overlap(self, start: int, stop: int, valid: tuple[int, int]) -> OverlapMap:
        """Return the source voxels that each target voxel covers, weighted by the covered length."""
        half = Fraction(self.a, 2 * self.c)
        numerator, base, c = self._positions(start, stop, -half)
        length = int(self.scale * c)
        unit = max(1, length // _MAX_WEIGHT)
        k0 = np.maximum((numerator // c).astype(np.int64), valid[0] - base)
        k1 = np.minimum((-(-(numerator + length) // c)).astype(np.int64), valid[1] - base)
        counts = k1 - k0
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        of = np.repeat(np.arange(stop - start), counts)
        k = k0[of] + np.arange(of.size) - offsets[of]
        k = k.astype(numerator.dtype)
        parts = np.minimum((k + 1) * c, numerator[of] + length) - np.maximum(k * c, numerator[of])
        return OverlapMap(k0 + base, offsets, np.maximum(1, (parts + unit // 2) // unit).astype(np.int64))


@dataclass(frozen=True, slots=True)
class GridMap:
    """Positions of the voxels of a target grid on a source grid."""

    axes: tuple[AxisMap, AxisMap, AxisMap]
    """The maps of z, y and x."""

    @classmethod
    def from_grids(cls, target: Grid, source: Grid) -> GridMap:
        """Return the map from a target grid to a source grid."""
        z, y, x = (AxisMap.from_axes(t, s) for t, s in zip(target.axes, source.axes, strict=True))
        return cls((z, y, x))

    @property
    def scale(self) -> float:
        """Number of source voxels per target voxel."""
        return float(math.prod(axis.scale for axis in self.axes))

    def target_box(self, box: IndexBox) -> IndexBox:
        """Return the target voxels whose centre lies in a box of source voxels."""
        z, y, x = (m.target_range(a, b) for m, a, b in zip(self.axes, box.start, box.stop, strict=True))
        return IndexBox((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    def source_box(self, box: IndexBox, method: str) -> IndexBox:
        """Return the source voxels that a method needs for a box of target voxels."""
        z, y, x = (m.source_range(a, b, method) for m, a, b in zip(self.axes, box.start, box.stop, strict=True))
        return IndexBox((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    def relative_to(self, first: Index3) -> GridMap:
        """Return the map to source indexes that are counted from voxel ``first``."""
        z, y, x = (AxisMap(m.a, m.b - o * m.c, m.c) for m, o in zip(self.axes, first, strict=True))
        return GridMap((z, y, x))
