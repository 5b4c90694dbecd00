"""Check the inputs of resampling kernels, and convert their results to the dtype of the input.

`imageryxr.core.axis_mapping` computes the indices and weights along each axis. An output voxel depends only on its own
indices and weights, in a fixed order of arithmetic, so that its value is the same in every block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import LinearMap, OverlapMap
from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input

# Plain tuples, because numba compiles a kernel again for every type of named tuple.
LinearParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
OverlapParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


# --- checks, because kernels do not check bounds ---------------------------------------------------


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


def check_overlap_maps(axes: tuple[OverlapMap, OverlapMap, OverlapMap], shape: tuple[int, ...]) -> list[OverlapParts]:
    """Return the parts of overlap maps as kernel input after checking them against the shape of the source array."""
    parts = []
    for (first, offsets, weights), size in zip(axes, shape, strict=True):
        begin = as_kernel_input(np.asarray(first, np.int64))
        ends = as_kernel_input(np.asarray(offsets, np.int64))
        given = as_kernel_input(np.asarray(weights, np.int64))
        count = np.diff(ends)
        if ends.shape != (begin.size + 1,) or ends[0] != 0 or ends[-1] != given.size or (count < 1).any():
            raise GridMismatchError(f"offsets {ends} do not fit {begin.size} voxels and {given.size} weights")
        if (begin < 0).any() or (begin + count > size).any():
            raise GridMismatchError(f"runs that start at voxels {begin} with lengths {count} must lie in [0, {size})")
        if (given <= 0).any():
            raise OptionError("overlap weights must be positive")
        # The weights of each output voxel are divided by their common divisor, so that sums stay small and exact.
        common = np.gcd.reduceat(given, ends[:-1]) if begin.size else given
        parts.append((begin, ends, as_kernel_input(given // np.repeat(common, count))))
    return parts


def covered_range(part: OverlapParts) -> tuple[int, int]:
    """Return the half-open range of source voxels that an overlap map covers."""
    first, offsets, _ = part
    return (int(first.min()), int((first + np.diff(offsets)).max())) if first.size else (0, 0)


# --- values ---------------------------------------------------------------------------------------


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
