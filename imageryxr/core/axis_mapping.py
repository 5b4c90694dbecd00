"""Where the voxels of one axis lie on another, in exact whole numbers: what every resampling follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import SNAP, exact
from imageryxr.core.grid import Axis

# The index of "no source voxel": the target voxel lies outside the volume.
OUTSIDE = -1


class NearestMap(NamedTuple):
    """For each target voxel the source voxel that holds its centre."""

    voxel: npt.NDArray[np.int64]

    def read_from(self, first: int) -> NearestMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return NearestMap(_rebased(self.voxel, first))


class LinearMap(NamedTuple):
    """For each target voxel the two source voxels around its centre, and the weight of the second."""

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]

    def read_from(self, first: int) -> LinearMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return LinearMap(_rebased(self.lower, first), _rebased(self.upper, first), self.weight)


class OverlapMap(NamedTuple):
    """For each target voxel the run of source voxels it covers, with whole-number weights (CSR)."""

    first: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]

    def read_from(self, first: int) -> OverlapMap:
        """Return the map into an array whose index 0 is source voxel ``first``; `OUTSIDE` stays."""
        return OverlapMap(_rebased(self.first, first), self.offsets, self.weights)


def _rebased(index: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    return np.where(index == _NOWHERE, OUTSIDE, index - first)


# Lengths are counted in at most about so many parts of a target voxel: three axes' product must fit int64. Ratios that
# people use need far fewer, so that their weights are exact.
_WEIGHTS = 1 << 18

# Source indexes may be negative before a read box is known, so "nowhere" is an index that no volume reaches.
_NOWHERE = -(2**62)


@dataclass(frozen=True, slots=True)
class AxisMap:
    """Where the voxels of a target axis lie on a source axis, in exact whole numbers.

    The centre of target voxel ``j`` lies at ``(a·j + b) / c`` source voxels from the lower edge of source voxel
    0. Source indexes may be negative: ``valid`` ranges, half-open, say where data exist. A target voxel whose
    centre lies outside of them is outside the volume; one rule breaks ties, a centre on the edge between two voxels
    belongs to the upper one, as voxels are half-open.
    """

    a: int
    b: int
    c: int

    @classmethod
    def between(cls, target: Axis, source: Axis) -> AxisMap:
        """Return the map from a target axis to a source axis."""
        ratio = exact(target.resolution) / exact(source.resolution)
        shift = (exact(target.offset) + Fraction(1, 2)) * ratio - exact(source.offset)
        # The simple fraction that a noisy one stands for decides ties; a ratio that drifts along the axis is kept.
        shift, simple = shift.limit_denominator(1_000_000), ratio.limit_denominator(1_000_000)
        ratio = simple if abs(ratio - simple) * target.size < SNAP else ratio
        c = math.lcm(ratio.denominator, shift.denominator)
        return cls(int(ratio * c), int(shift * c), c)

    @property
    def scale(self) -> Fraction:
        """Source voxels per target voxel."""
        return Fraction(self.a, self.c)

    def first_at(self, edge: int) -> int:
        """Return the first target voxel whose centre lies at or above the lower edge of a source voxel."""
        return -((self.b - edge * self.c) // self.a)

    def reach(self, start: int, stop: int, method: str) -> tuple[int, int]:
        """Return the half-open source range that a method touches for target voxels start to stop."""
        low = Fraction(self.a * start + self.b, self.c)
        high = Fraction(self.a * (stop - 1) + self.b, self.c)
        half = Fraction(1, 2) if method == "linear" else self.scale / 2
        if method == "nearest":
            return math.floor(low), math.floor(high) + 1
        # Linear ends with the voxel above the last centre, unless that centre is a voxel's: then it has no weight.
        return math.floor(low - half), math.ceil(high - half) + 1 if method == "linear" else math.ceil(high + half)

    def _places(self, start: int, stop: int, shift: Fraction = Fraction(0)) -> tuple[npt.NDArray[np.int64], int, int]:
        # position of voxel j = base + numerator / denominator. The whole part at `start` is taken out first, so that
        # int64 holds the numerators of all but noisy resolutions; those take Python's integers, since a rounded ratio
        # drifts by 1e-4 voxel over 2**31 voxels.
        c = math.lcm(self.c, shift.denominator)
        scale = c // self.c
        first = (self.a * start + self.b) * scale + int(shift * c)
        base, rest = divmod(first, c)
        fits = 2 * (self.a * scale * max(1, stop - start) + c) < 2**62
        steps = np.arange(stop - start).astype(np.int64 if fits else object)
        return self.a * scale * steps + rest, base, c

    def _inside(self, start: int, stop: int, valid: tuple[int, int]) -> npt.NDArray[np.bool_]:
        j = np.arange(start, stop)
        inside: npt.NDArray[np.bool_] = (j >= self.first_at(valid[0])) & (j < self.first_at(valid[1]))
        return inside

    def nearest(self, start: int, stop: int, valid: tuple[int, int]) -> NearestMap:
        """Return the source voxel that holds each centre."""
        numerator, base, c = self._places(start, stop)
        index = (numerator // c + base).astype(np.int64)
        return NearestMap(np.where(self._inside(start, stop, valid), index, _NOWHERE))

    def linear(self, start: int, stop: int, valid: tuple[int, int]) -> LinearMap:
        """Return the source voxels below and above each centre, clamped to the data at its edges."""
        numerator, base, c = self._places(start, stop, Fraction(-1, 2))
        lower, rest = (numerator // c + base).astype(np.int64), numerator % c
        last = valid[1] - 1
        inside = self._inside(start, stop, valid)
        below, above = (np.where(inside, np.clip(i, valid[0], last), _NOWHERE) for i in (lower, lower + 1))
        return LinearMap(below, above, (rest / c).astype(np.float64))

    def overlap(self, start: int, stop: int, valid: tuple[int, int]) -> OverlapMap:
        """Return the source voxels that each target voxel covers, with weights that are lengths."""
        half = Fraction(self.a, 2 * self.c)
        numerator, base, c = self._places(start, stop, -half)
        length = int(self.scale * c)
        unit = max(1, length // _WEIGHTS)
        inside = self._inside(start, stop, valid)
        k0 = np.maximum((numerator // c).astype(np.int64), valid[0] - base)
        k1 = np.minimum((-(-(numerator + length) // c)).astype(np.int64), valid[1] - base)
        first, counts = np.where(inside, k0 + base, _NOWHERE), np.where(inside, k1 - k0, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        of = np.repeat(np.arange(stop - start), counts)
        k = k0[of] + np.arange(of.size) - offsets[of]
        k = k.astype(numerator.dtype)
        parts = np.minimum((k + 1) * c, numerator[of] + length) - np.maximum(k * c, numerator[of])
        return OverlapMap(first, offsets, np.maximum(1, (parts + unit // 2) // unit).astype(np.int64))
