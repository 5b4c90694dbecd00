"""Resample blocks to another grid by nearest neighbour or linear interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import LinearMap
from imageryxr.errors import LayerError
from imageryxr.kernels.axis_weights import (
    LinearParts,
    check_indices,
    check_linear_maps,
    check_volume,
    restore_dtype,
    storage_range,
    store_row,
    to_arithmetic_dtype,
)
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input, copy_values


@compile_kernel
def _nearest(
    a: NDArray[Any],
    iz: NDArray[np.int64],
    iy: NDArray[np.int64],
    ix: NDArray[np.int64],
    straight: bool,
    out: NDArray[Any],
) -> None:
    width = ix.size
    for z in range(iz.size):
        for y in range(iy.size):
            row = out[z, y]
            if y > 0 and iy[y] == iy[y - 1]:
                copy_values(out[z, y - 1], row)
            elif z > 0 and iz[z] == iz[z - 1]:
                copy_values(out[z - 1, y], row)
            elif straight:
                copy_values(a[iz[z], iy[y], ix[0] : ix[0] + width], row)
            else:
                line = a[iz[z], iy[y]]
                for x in range(width):
                    # An unsigned index avoids numba's test for negative indices.
                    row[x] = line[np.uint64(ix[x])]


def resample_nearest(
    a: NDArray[Any], iz: NDArray[np.int64], iy: NDArray[np.int64], ix: NDArray[np.int64]
) -> NDArray[Any]:
    """Copy voxels: ``out[z, y, x] = a[iz[z], iy[y], ix[x]]``.

    `a` is (z, y, x) of any dtype of 1, 2, 4 or 8 bytes, which is also that of the result, in native byte order. The
    indices are int64[n].
    """
    a = check_volume(a)
    if a.dtype.itemsize not in (1, 2, 4, 8) or a.dtype.kind not in "biufcmM":
        raise LayerError(f"cannot resample voxels of dtype {a.dtype}; use numbers, bools or dates of up to 8 bytes")
    z, y, x = (check_indices(i, n) for i, n in zip((iz, iy, ix), a.shape, strict=True))
    # Voxels are copied as unsigned integers, so that dtypes of one size share one kernel.
    bits = np.dtype(f"u{a.dtype.itemsize}")
    dtype = a.dtype.newbyteorder("=")
    out = np.empty((z.size, y.size, x.size), dtype)
    straight = x.size > 0 and bool((np.diff(x) == 1).all())
    _nearest(as_kernel_input(a).view(bits), z, y, x, straight, out.view(bits))
    return out


# --- linear ---------------------------------------------------------------------------------------


def _rounding_offset(dtype: np.dtype[Any]) -> float:
    """Return the offset that is added before rounding down: a half, plus a little for integers up to 32 bits.

    Floats cannot represent weights such as thirds, so that an exact half may be computed as slightly less. The offset
    compensates for this error, except for integers wider than 32 bits.
    """
    return 0.5 if dtype.kind == "f" or dtype.itemsize > 4 else 0.5 + 2.0 ** (8 * dtype.itemsize - 46)


@compile_kernel
def _linear(
    a: NDArray[Any],
    along_z: LinearParts,
    along_y: LinearParts,
    along_x: LinearParts,
    begin: int,
    end: int,
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
            # The order of the axes is fixed, so that the rounding error of a voxel does not depend on its block.
            _interpolate_rows(a, z_lower[z], z_upper[z], z_weight[z], y_lower[y], begin, end, line)
            v = y_weight[y]
            if v != 0.0:
                _interpolate_rows(a, z_lower[z], z_upper[z], z_weight[z], y_upper[y], begin, end, below)
                for x in range(line.size):
                    line[x] = line[x] + (below[x] - line[x]) * v
            for x in range(value.size):
                left = line[np.uint64(x_lower[x] - begin)]
                w = x_weight[x]
                value[x] = left if w == 0.0 else left + (line[np.uint64(x_upper[x] - begin)] - left) * w
            store_row(value, half, integer, lowest, highest, row)


@compile_kernel
def _interpolate_rows(
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


def resample_linear(a: NDArray[Any], axes: tuple[LinearMap, LinearMap, LinearMap]) -> NDArray[Any]:
    """Interpolate linearly along z, then y, then x, in float64.

    `a` is (z, y, x) of any integer or float dtype, which is also that of the result; 64-bit integers beyond 2**53 lose
    their last bits. Integers are rounded to nearest, halves up (for integers wider than 32 bits, a half may be rounded
    down if floats cannot represent its weights). Voxels that depend on a NaN are NaN.
    """
    a = check_volume(a)
    work = to_arithmetic_dtype(a)
    z, y, x = check_linear_maps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    used = np.concatenate(x[:2])
    begin, end = (int(used.min()), int(used.max()) + 1) if used.size else (0, 0)
    _linear(work, z, y, x, begin, end, _rounding_offset(work.dtype), *storage_range(work.dtype), out)
    return restore_dtype(out, a.dtype)
