"""Expressions of planes at any angle, which read the voxels of their pixels chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.dask_inputs import dask_leaves
from imageryxr.graph.expr import Array, Expr, Leaf
from imageryxr.graph.selection import AxisGroup, Indexes, read_selection

Vector = tuple[float, float, float]
Take = Callable[[Indexes], Array]
"""Function that returns the values of voxels (3, n)."""

# Positions closer than this (in voxels) to the edge between two voxels are on the edge and belong to the upper voxel.
_SNAP = 1e-6
# Weights are multiples of this, so that a pixel at the centre of a voxel has exactly the value of that voxel.
_WEIGHT = 2.0**-20

TILE_PIXELS = 1 << 18


@dataclass(frozen=True)
class Cut:
    """An affine map from the pixels of a plane to voxels: ``position = base + origin + steps @ (z, y, x)``.

    The integer part of the position is stored separately: beyond 2**31 voxels a float64 position is too coarse for the
    weights of linear interpolation.
    """

    base: Index3
    """Voxel (z, y, x) that other positions are relative to."""
    origin: Vector
    """Position of the centre of pixel (0, 0, 0), in voxels (z, y, x) from the lower edge of ``base``."""
    steps: tuple[Vector, Vector, Vector]
    """Change of the position per pixel along z, y and x."""
    method: str

    def positions(self, box: IndexBox) -> npt.NDArray[np.float64]:
        """Return the positions of the pixels of a box, relative to ``base``: shape (3, z, y, x)."""
        axes = [np.arange(a, b, dtype=np.float64) for a, b in zip(box.start, box.stop, strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
        rows = []
        for axis in range(3):
            dz, dy, dx = (step[axis] for step in self.steps)
            rows.append(self.origin[axis] + dz * z + dy * y + dx * x)
        return np.stack(np.broadcast_arrays(*rows))

    def voxel_box(self, box: IndexBox) -> IndexBox:
        """Return the smallest box that contains all voxels that the pixels of a box are computed from."""
        corners = np.array(list(product(*zip(box.start, (s - 1 for s in box.stop), strict=True))), dtype=np.float64)
        positions = np.array(self.origin) + corners @ np.array(self.steps)
        around = 1 if self.method == "linear" else 0
        low = np.floor(positions.min(axis=0) - 0.5 * around - _SNAP).astype(int)
        high = np.floor(positions.max(axis=0) + 0.5 * around + _SNAP).astype(int) + 1
        return IndexBox(_index3(low), _index3(high)).shift(self.base)

    def sample(self, box: IndexBox, bounds: IndexBox, dtype: np.dtype[Any], take: Take) -> Array:
        """Return the values of a box of pixels, computed tile by tile to limit memory (8 voxels per pixel).

        Parameters
        ----------
        box : IndexBox
            Pixels of the plane.
        bounds : IndexBox
            Voxels that exist; pixels whose position is outside are 0.
        dtype : dtype
            Type of the result.
        take : callable
            Function that returns the values of voxels (3, n).
        """
        base = np.array(self.base, np.int64)[:, None]
        out = np.zeros(box.shape, dtype)
        local = bounds.shift(self.base, -1)
        for tile in _tiles(box):
            out[tile.slices(box)] = self._tile(tile, local, dtype, lambda voxels: take(voxels + base))
        return out

    def _tile(self, box: IndexBox, bounds: IndexBox, dtype: np.dtype[Any], take: Take) -> Array:
        positions = self.positions(box)
        voxel = np.floor(positions + _SNAP).astype(np.int64)
        inside = np.ones(box.shape, bool)
        for axis in range(3):
            inside &= (voxel[axis] >= bounds.start[axis]) & (voxel[axis] < bounds.stop[axis])
        out = np.zeros(box.shape, dtype)
        if not inside.any():
            return out
        if self.method == "nearest":
            out[inside] = take(voxel[:, inside])
        else:
            out[inside] = _interpolate(positions[:, inside], bounds, dtype, take)
        return out


def _tiles(box: IndexBox) -> list[IndexBox]:
    """Cut a box into tiles of about `TILE_PIXELS`; up to 8 planes share a tile, since they cross the same chunks."""
    depth = min(8, box.shape[0])
    side = int((TILE_PIXELS // depth) ** 0.5)
    starts = [range(a, b, step) for a, b, step in zip(box.start, box.stop, (depth, side, side), strict=True)]
    return [
        IndexBox((z, y, x), (z + depth, y + side, x + side)).clip(box)
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]


def _interpolate(positions: npt.NDArray[np.float64], bounds: IndexBox, dtype: np.dtype[Any], take: Take) -> Array:
    low = np.floor(positions - 0.5 + _SNAP)
    weight = np.clip(np.rint((positions - 0.5 - low) / _WEIGHT) * _WEIGHT, 0, 1)
    corners = list(product((0, 1), repeat=3))
    stops = np.array(bounds.stop)[:, None] - 1
    start = np.array(bounds.start)[:, None]
    voxels = [np.clip(low.astype(np.int64) + np.array(c)[:, None], start, stops) for c in corners]
    values = take(np.concatenate(voxels, axis=1)).reshape(8, -1)
    shares = np.stack([np.prod([w if c else 1 - w for c, w in zip(k, weight, strict=True)], axis=0) for k in corners])
    return _integer_mean(values, shares) if dtype.kind in "iu" else _weighted_sum(values, shares)


def _weighted_sum(values: Array, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = np.zeros(values.shape[1], np.float64)
    for found, share in zip(values, shares, strict=True):
        # A voxel with weight 0 must not contribute, even if it is NaN.
        total += np.where(share > 0, share * found, 0)
    return total


def _integer_mean(values: Array, shares: npt.NDArray[np.float64]) -> Array:
    """Return weighted means of integers (8, n), rounded half up, within the range of the values with weight > 0.

    Only differences from the smallest value are converted to float, so that the mean of equal 64-bit values is exact.
    """
    dtype = values.dtype
    used = shares > 0
    low = np.where(used, values, np.iinfo(dtype).max).min(axis=0)
    high = np.where(used, values, np.iinfo(dtype).min).max(axis=0)
    above = np.where(used, values, low).astype(np.uint64) - low.astype(np.uint64)  # modulo 2**64, so exact for int64
    steps = np.floor(_weighted_sum(above, shares) + 0.5)
    most = high.astype(np.uint64) - low.astype(np.uint64)
    # 2**64 as float overflows uint64, so larger steps are clipped here and replaced with `most` below.
    whole = np.minimum(steps, np.nextafter(2.0**64, 0)).astype(np.uint64)
    rounded = np.where(steps >= most.astype(np.float64), most, whole)
    return np.asarray((low.astype(np.uint64) + rounded).astype(dtype))


def _index3(values: Any) -> Index3:
    z, y, x = (int(v) for v in values)
    return (z, y, x)


@dataclass(frozen=True)
class PlaneSlice(Expr):
    """A plane, or a stack of parallel planes, through an expression with dask inputs."""

    child: Expr
    cut: Cut
    shape: Index3

    @property
    def bounds(self) -> IndexBox:
        """All pixels."""
        return IndexBox.of_shape(self.shape)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the smallest box that contains all voxels of the pixels."""
        return (self.cut.voxel_box(box).clip(self.child.bounds),)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the pixels of a box."""
        (need,) = self.needs(box)
        first = np.array(need.start, np.int64)[:, None]
        return self.cut.sample(box, self.child.bounds, self.dtype, lambda voxels: arrays[0][tuple(voxels - first)])

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return None: storage chunks are not aligned with an oblique plane."""
        return None


@dataclass(frozen=True)
class _HiddenExpr:
    """Wrapper that keeps an expression from being found as an input."""

    expr: Expr

    def __dask_tokenize__(self) -> object:
        return self.expr.__dask_tokenize__()


@dataclass(frozen=True)
class PlaneLeaf(Leaf):
    """A plane through an expression without dask inputs; it reads only the voxels near the plane in each chunk."""

    hidden: _HiddenExpr
    cut: Cut
    shape: Index3

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the expression that the plane cuts."""
        return self.hidden.expr.dtype

    @property
    def bounds(self) -> IndexBox:
        """All pixels."""
        return IndexBox.of_shape(self.shape)

    def read(self, box: IndexBox) -> Array:
        """Read the pixels of a box."""
        expr = self.hidden.expr

        def take(voxels: Indexes) -> Array:
            return read_selection(expr, [AxisGroup((0, 1, 2), tuple(voxels))])

        return self.cut.sample(box, expr.bounds, self.dtype, take)


def plane_expr(expr: Expr, cut: Cut, shape: Index3) -> Expr:
    """Return the expression of a plane through another expression."""
    if dask_leaves(expr):
        return PlaneSlice(expr, cut, shape)
    return PlaneLeaf(_HiddenExpr(expr), cut, shape)
