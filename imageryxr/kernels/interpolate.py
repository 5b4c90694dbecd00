"""Bring blocks to another grid: gathers, and linear interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import LayerError
from imageryxr.kernels.axis_weights import Lerp, LerpParts, arithmetic, indices, lerps, like, store, top, volume
from imageryxr.kernels.run_length import compiled, frozen

__all__ = ["linear", "nearest"]


@compiled
def _nearest(
    a: NDArray[Any],
    iz: NDArray[np.int64],
    iy: NDArray[np.int64],
    ix: NDArray[np.int64],
    straight: bool,
    fill: NDArray[Any],
    out: NDArray[Any],
) -> None:
    width = ix.size
    for z in range(iz.size):
        for y in range(iy.size):
            row = out[z, y]
            if iz[z] < 0 or iy[y] < 0:
                row[:] = fill[0]
            elif y > 0 and iy[y] == iy[y - 1]:
                row[:] = out[z, y - 1]
            elif z > 0 and iz[z] == iz[z - 1]:
                row[:] = out[z - 1, y]
            elif straight:
                row[:] = a[iz[z], iy[y], ix[0] : ix[0] + width]
            else:
                line = a[iz[z], iy[y]]
                for x in range(width):
                    at = ix[x]
                    # An unsigned index, or numba adds a test for negative ones.
                    row[x] = line[np.uint64(at)] if at >= 0 else fill[0]


def nearest(
    a: NDArray[Any], iz: NDArray[np.int64], iy: NDArray[np.int64], ix: NDArray[np.int64], fill: Any = 0
) -> NDArray[Any]:
    """Gather voxels: ``out[z, y, x] = a[iz[z], iy[y], ix[x]]``.

    Parameters
    ----------
    a
        Array (z, y, x), any dtype of 1, 2, 4 or 8 bytes.
    iz, iy, ix
        int64[n] per axis, voxels of `a`; -1 for none.
    fill
        The value where there is none.

    Returns
    -------
    numpy.ndarray
        The dtype of `a` (in native byte order), shape (len(iz), len(iy), len(ix)).

    Raises
    ------
    GridMismatchError
        `a` is not (z, y, x), or an index is outside it.
    LayerError
        The dtype has another size.
    """
    a = volume(a)
    if a.dtype.itemsize not in (1, 2, 4, 8) or a.dtype.kind not in "biufcmM":
        raise LayerError(f"cannot gather voxels of dtype {a.dtype}")
    z, y, x = (indices(i, n, -1) for i, n in zip((iz, iy, ix), a.shape, strict=True))
    # Bits are moved, so that dtypes of one size share one kernel.
    bits = np.dtype(f"u{a.dtype.itemsize}")
    dtype = a.dtype.newbyteorder("=")
    out = np.empty((z.size, y.size, x.size), dtype)
    straight = x.size > 0 and bool(x[0] >= 0) and bool((np.diff(x) == 1).all())
    filling = frozen(np.array([fill], dtype)).view(bits)
    _nearest(frozen(a).view(bits), z, y, x, straight, filling, out.view(bits))
    return out


# --- linear ---------------------------------------------------------------------------------------


def _half(dtype: np.dtype[Any]) -> float:
    """Return what is added before rounding down: a half, and more than the error of interpolating to one.

    Weights such as thirds are no floats, so that a half may come out as a little less. Beyond 32 bits that is lost.
    """
    return 0.5 if dtype.kind == "f" or dtype.itemsize > 4 else 0.5 + 2.0 ** (8 * dtype.itemsize - 46)


@compiled
def _linear(
    a: NDArray[Any],
    along_z: LerpParts,
    along_y: LerpParts,
    along_x: LerpParts,
    begin: int,
    end: int,
    fill: NDArray[Any],
    half: float,
    integer: bool,
    lowest: float,
    highest: float,
    out: NDArray[Any],
) -> None:
    z_lower, z_upper, z_weight = along_z
    y_lower, y_upper, y_weight = along_y
    x_lower, x_upper, x_weight = along_x
    line = np.empty(end - begin, np.float64)
    below = np.empty(end - begin, np.float64)
    value = np.empty(x_lower.size, np.float64)
    for z in range(z_lower.size):
        for y in range(y_lower.size):
            row = out[z, y]
            if z_lower[z] < 0 or y_lower[y] < 0:
                row[:] = fill[0]
                continue
            # z, then y, then x: one order for every voxel.
            _mix(a, z_lower[z], z_upper[z], z_weight[z], y_lower[y], begin, end, line)
            v = y_weight[y]
            if v != 0.0:
                _mix(a, z_lower[z], z_upper[z], z_weight[z], y_upper[y], begin, end, below)
                for x in range(line.size):
                    line[x] = line[x] + (below[x] - line[x]) * v
            outside = False
            for x in range(value.size):
                low = x_lower[x]
                if low < 0:
                    outside = True
                    value[x] = 0.0
                    continue
                left = line[np.uint64(low - begin)]
                w = x_weight[x]
                value[x] = left if w == 0.0 else left + (line[np.uint64(x_upper[x] - begin)] - left) * w
            store(value, half, integer, lowest, highest, row)
            if outside:
                for x in range(value.size):
                    if x_lower[x] < 0:
                        row[x] = fill[0]


@compiled
def _mix(
    a: NDArray[Any],
    lower: int,
    upper: int,
    weight: float,
    y: int,
    begin: int,
    end: int,
    line: NDArray[np.float64],
) -> None:
    near = a[lower, y, begin:end]
    if weight == 0.0:
        for x in range(line.size):
            line[x] = np.float64(near[x])
    else:
        far = a[upper, y, begin:end]
        for x in range(line.size):
            line[x] = np.float64(near[x]) + (np.float64(far[x]) - np.float64(near[x])) * weight


def linear(a: NDArray[Any], axes: tuple[Lerp, Lerp, Lerp], fill: Any = 0) -> NDArray[Any]:
    """Interpolate linearly along z, then y, then x, in float64.

    Parameters
    ----------
    a
        Image (z, y, x), any integer or float dtype. 64-bit integers beyond 2**53 lose their last bits.
    axes
        How to interpolate along z, y and x.
    fill
        The value of voxels outside.

    Returns
    -------
    numpy.ndarray
        The dtype of `a`; integers rounded to the nearest, a half up (of up to 32 bits; of wider ones a half
        may be missed where its weights are no floats). NaN spreads to the voxels that use it.

    Raises
    ------
    GridMismatchError
        `a` is not (z, y, x), or an index is outside it.
    LayerError
        `a` is not numeric.
    """
    a = volume(a)
    work = arithmetic(a)
    z, y, x = lerps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    used = x[0] >= 0
    begin, end = 0, 0
    if used.any():
        begin = int(min(x[0][used].min(), x[1][used].min()))
        end = int(max(x[0].max(), x[1][used].max())) + 1
    filling = frozen(np.array([fill], work.dtype))
    _linear(work, z, y, x, begin, end, filling, _half(work.dtype), *top(work.dtype), out)
    return like(out, a.dtype)
