"""What a resampled voxel is made of along each axis, checked, and how its value is stored.

Which input voxels make an output voxel, and with which weights, is decided elsewhere, per axis and in integers. A
kernel's output voxel depends on its own indices and weights alone, in a fixed order of arithmetic, so that it comes out
alike in every block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.run_length import compiled, frozen

__all__ = ["Lerp", "Overlap"]


class Lerp(NamedTuple):
    """Linear interpolation along one axis: ``a[lower] + (a[upper] - a[lower]) * weight``.

    Attributes
    ----------
    lower, upper
        int64[n], the two input voxels of each output voxel; ``lower == -1`` lies outside and is filled. The upper
        one need not be in the array where its weight is 0.
    weight
        float64[n] in [0, 1); where it is 0 only the lower voxel counts.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]


class Overlap(NamedTuple):
    """Input voxels that each output voxel covers along one axis.

    Attributes
    ----------
    first
        int64[n], the first input voxel that output voxel i covers.
    offsets
        int64[n + 1]; it covers ``offsets[i + 1] - offsets[i]`` voxels; none lies outside and is filled.
    weights
        int64[offsets[n]], how much of each it covers, positive, in any unit common to the voxels of one i.
    """

    first: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.int64]


# Plain tuples: numba would compile anew for every kind of named one.
LerpParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
OverlapParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


# --- checks: a wrong index would read foreign memory ----------------------------------------------


def volume(array: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(array)
    if array.ndim != 3:
        raise GridMismatchError(f"an array must be (z, y, x), got shape {array.shape}")
    return array


def indices(index: NDArray[np.int64], size: int, lowest: int) -> NDArray[np.int64]:
    index = frozen(np.asarray(index, np.int64))
    if index.ndim != 1 or (index.size and (index.min() < lowest or index.max() >= size)):
        raise GridMismatchError(f"indices must be 1-D and in [{lowest}, {size}), got {index}")
    return index


def lerps(axes: tuple[Lerp, Lerp, Lerp], shape: tuple[int, ...]) -> list[LerpParts]:
    parts = []
    for (lower, upper, weight), size in zip(axes, shape, strict=True):
        low = indices(lower, size, -1)
        fraction = frozen(np.asarray(weight, np.float64))
        if not low.shape == np.shape(upper) == fraction.shape:
            raise GridMismatchError(f"lower {low.shape}, upper {np.shape(upper)} and weight {fraction.shape} differ")
        # What has no weight is not read, and need not be there.
        used = np.where(fraction == 0, low, upper)
        up = indices(np.where(low < 0, 0, used) if size else np.zeros_like(low), max(size, 1), 0)
        parts.append((low, up, fraction))
    return parts


def overlaps(axes: tuple[Overlap, Overlap, Overlap], shape: tuple[int, ...]) -> list[OverlapParts]:
    parts = []
    for (first, offsets, weights), size in zip(axes, shape, strict=True):
        begin = frozen(np.asarray(first, np.int64))
        ends = frozen(np.asarray(offsets, np.int64))
        given = frozen(np.asarray(weights, np.int64))
        count = np.diff(ends)
        if ends.shape != (begin.size + 1,) or ends[0] != 0 or ends[-1] != given.size or (count < 0).any():
            raise GridMismatchError(f"offsets {ends} do not fit {begin.size} voxels and {given.size} weights")
        some = count > 0
        if (begin[some] < 0).any() or (begin[some] + count[some] > size).any():
            raise GridMismatchError(f"voxels {begin} and on for {count} are not all in [0, {size})")
        if (given <= 0).any():
            raise OptionError("overlap weights must be positive")
        parts.append((begin, ends, frozen(_reduced(ends, given))))
    return parts


@compiled
def _reduced(offsets: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide the weights of each output voxel by their common divisor, which keeps sums small and exact."""
    out = np.empty(weights.size, np.int64)
    for i in range(offsets.size - 1):
        common = np.int64(0)
        for k in range(offsets[i], offsets[i + 1]):
            other = weights[k]
            while other != 0:
                common, other = other, common % other
        for k in range(offsets[i], offsets[i + 1]):
            out[k] = weights[k] // common
    return out


# --- values ---------------------------------------------------------------------------------------


def arithmetic(a: NDArray[Any]) -> NDArray[Any]:
    """Return an image in a dtype that the kernels compute with: bools as 0 and 1, half floats widened."""
    if a.dtype.kind not in "biuf" or a.dtype.itemsize > 8:
        raise LayerError(f"an image must be of integers or floats, got {a.dtype}")
    if a.dtype.kind == "b":
        return frozen(a).view(np.uint8)
    return frozen(a.astype(np.float32)) if a.dtype == np.float16 else frozen(a)


def like(out: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if out.dtype.kind in "iu" and out.dtype.itemsize == 8:
        # `top` stops below the largest integer, which no float64 equals: what came that far is the largest.
        out[out == int(top(out.dtype)[2])] = np.iinfo(out.dtype).max
    return out.view(np.bool_) if dtype.kind == "b" else out.astype(dtype.newbyteorder("="), copy=False)


def top(dtype: np.dtype[Any]) -> tuple[bool, float, float]:
    """Return whether values are rounded, and between which floats they must be to fit."""
    if dtype.kind == "f":
        return False, 0.0, 0.0
    info = np.iinfo(dtype)
    highest = float(info.max)
    # The largest 64-bit integers round up to a float that no longer fits.
    return True, float(info.min), highest if int(highest) <= info.max else float(np.nextafter(highest, 0))


@compiled
def store(
    value: NDArray[np.float64], half: float, integer: bool, lowest: float, highest: float, out: NDArray[Any]
) -> None:
    if integer:
        for x in range(out.size):
            out[x] = min(max(np.floor(value[x] + half), lowest), highest)
    else:
        for x in range(out.size):
            out[x] = value[x]
