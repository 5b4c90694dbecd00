"""Resample blocks to another grid by nearest neighbour or linear interpolation.

`imageryxr.core.axis_mapping` computes the indices and weights along each axis. An output voxel depends only on its own
indices and weights, in a fixed order of arithmetic, so that its value is the same in every block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import LinearMap
from imageryxr.errors import GridMismatchError, LayerError
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input, copy_values

# Plain tuples, because numba compiles a kernel again for every type of named tuple.
LinearParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


# --- checks, because kernels do not check bounds ----------------------------------------------------


def check_volume(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array after checking that it has three dimensions."""
    array = np.asarray(array)
    if array.ndim != 3:
        raise GridMismatchError(f"an array must have the 3 dims (z, y, x), got shape {array.shape}")
    return array


def check_indices(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return indices as kernel input after checking that they are in ``[0, size)``."""
    index = as_kernel_input(np.asarray(index, np.int64))
    if index.ndim != 1 or (index.size and (index.min() < 0 or index.max() >= size)):
        raise GridMismatchError(f"indices must be 1-D and in [0, {size}), got {index}")
    return index


def check_linear_maps(axes: tuple[LinearMap, LinearMap, LinearMap], shape: tuple[int, ...]) -> list[LinearParts]:
    """Return the parts of linear maps as kernel input after checking them against the shape of the source array."""
    parts = []
    for (lower, upper, weight), size in zip(axes, shape, strict=True):
        low = check_indices(lower, size)
        fraction = as_kernel_input(np.asarray(weight, np.float64))
        if not low.shape == np.shape(upper) == fraction.shape:
            raise GridMismatchError(
                f"lower, upper and weight must have the same shape, got {low.shape}, {np.shape(upper)} and "
                f"{fraction.shape}"
            )
        # An upper voxel without weight is not read, and may lie outside the array.
        parts.append((low, check_indices(np.where(fraction == 0, low, upper), size), fraction))
    return parts


# --- conversion of dtypes ---------------------------------------------------------------------------


def to_arithmetic_dtype(a: NDArray[Any]) -> NDArray[Any]:
    """Convert an image to a dtype that the kernels support: bool to uint8, float16 to float32."""
    if a.dtype.kind not in "biuf" or a.dtype.itemsize > 8:
        raise LayerError(f"an image must be of integers or floats, got {a.dtype}")
    if a.dtype.kind == "b":
        return as_kernel_input(a).view(np.uint8)
    return as_kernel_input(a.astype(np.float32)) if a.dtype == np.float16 else as_kernel_input(a)


def restore_dtype(out: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert the result of a kernel to the dtype of its input."""
    if out.dtype.kind in "iu" and out.dtype.itemsize == 8:
        # float64 cannot represent the largest 64-bit integers, so values at the upper end of `storage_range` stand
        # for the largest one.
        out[out == int(storage_range(out.dtype)[2])] = np.iinfo(out.dtype).max
    return out.view(np.bool_) if dtype.kind == "b" else out.astype(dtype.newbyteorder("="), copy=False)


def storage_range(dtype: np.dtype[Any]) -> tuple[bool, float, float]:
    """Return whether values of a dtype are rounded, and the smallest and largest float64 that fit it."""
    if dtype.kind == "f":
        return False, 0.0, 0.0
    info = np.iinfo(dtype)
    highest = float(info.max)
    # float64 rounds the largest 64-bit integers up to a value that does not fit.
    return True, float(info.min), highest if int(highest) <= info.max else float(np.nextafter(highest, 0))


@compile_kernel
def store_row(
    value: NDArray[np.float64], half: float, integer: bool, lowest: float, highest: float, out: NDArray[Any]
) -> None:
    """Store a row of values; round and clip them if the dtype of `out` is an integer."""
    if integer:
        for x in range(out.size):
            out[x] = min(max(np.floor(value[x] + half), lowest), highest)
    else:
        for x in range(out.size):
            out[x] = value[x]


# --- nearest ----------------------------------------------------------------------------------------


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


# --- linear -----------------------------------------------------------------------------------------


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
