"""Downsample blocks to a coarser grid: weighted means of images and of RGBA pictures, and most frequent labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import OverlapMap
from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.color_table import as_labels
from imageryxr.kernels.interpolate import check_volume, restore_dtype, storage_range, store_row, to_arithmetic_dtype
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input, is_blank

# Plain tuples, because numba compiles a kernel again for every type of named tuple.
OverlapParts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _check_overlap_maps(axes: tuple[OverlapMap, OverlapMap, OverlapMap], shape: tuple[int, ...]) -> list[OverlapParts]:
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


def _covered_range(part: OverlapParts) -> tuple[int, int]:
    """Return the half-open range of source voxels that an overlap map covers."""
    first, offsets, _ = part
    return (int(first.min()), int((first + np.diff(offsets)).max())) if first.size else (0, 0)


# --- mean -------------------------------------------------------------------------------------------


@compile_kernel
def _mean(
    a: NDArray[Any],
    along_z: OverlapParts,
    along_y: OverlapParts,
    along_x: OverlapParts,
    begin: int,
    end: int,
    integer: bool,
    lowest: float,
    highest: float,
    out: NDArray[Any],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    x_first, x_offsets, x_weights = along_x
    line = np.empty(end - begin, np.float64)
    value = np.empty(x_first.size, np.float64)
    x_totals = np.zeros(x_first.size, np.float64)
    for x in range(x_first.size):
        for k in range(x_offsets[x], x_offsets[x + 1]):
            x_totals[x] += np.float64(x_weights[k])
    for z in range(z_first.size):
        for y in range(y_first.size):
            row = out[z, y]
            line[:] = 0.0
            total = 0.0
            for i in range(z_offsets[z], z_offsets[z + 1]):
                for j in range(y_offsets[y], y_offsets[y + 1]):
                    w = np.float64(z_weights[i]) * np.float64(y_weights[j])
                    total += w
                    source = a[z_first[z] + i - z_offsets[z], y_first[y] + j - y_offsets[y], begin:end]
                    for x in range(line.size):
                        line[x] += w * np.float64(source[x])
            for x in range(value.size):
                low = x_offsets[x]
                at = x_first[x] - begin - low
                s = 0.0
                for k in range(low, x_offsets[x + 1]):
                    s += np.float64(x_weights[np.uint64(k)]) * line[np.uint64(at + k)]
                value[x] = s
            for x in range(value.size):
                value[x] = value[x] / (x_totals[x] * total)
            store_row(value, 0.5, integer, lowest, highest, row)


def mean(a: NDArray[Any], axes: tuple[OverlapMap, OverlapMap, OverlapMap]) -> NDArray[Any]:
    """Average the voxels that each output voxel covers, weighted by the product of the weights of the axes (z, y, x).

    `a` has any integer or float dtype, which is also that of the result. Integers are rounded to nearest, halves up;
    voxels that cover a NaN are NaN. Sums are float64 sums of integer products, so that means of integers are rounded
    exactly while weighted sums stay below 2**50. That includes all sums of 32-bit values whose weights add up to less
    than 2**18.
    """
    a = check_volume(a)
    work = to_arithmetic_dtype(a)
    z, y, x = _check_overlap_maps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    begin, end = _covered_range(x)
    _mean(work, z, y, x, begin, end, *storage_range(work.dtype), out)
    return restore_dtype(out, a.dtype)


# --- mean of RGBA, weighted by alpha ----------------------------------------------------------------


@compile_kernel
def _add_row(
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
    opaque: NDArray[np.uint8],
    weight: float,
    line: NDArray[np.float64],
) -> None:
    """Add a row of pixels to the rows of `line`: sums of red, green and blue, each times alpha, and of alpha."""
    reds, greens, blues, alphas = line[0], line[1], line[2], line[3]
    for x in range(opaque.size):
        alpha = weight * np.float64(opaque[x])
        reds[x] += alpha * np.float64(red[x])
        greens[x] += alpha * np.float64(green[x])
        blues[x] += alpha * np.float64(blue[x])
        alphas[x] += alpha


@compile_kernel
def _sum_along_row(line: NDArray[np.float64], along_x: OverlapParts, begin: int, sums: NDArray[np.float64]) -> None:
    """Write the weighted sums of `line` over the input pixels that each output pixel covers to `sums`."""
    first, offsets, weights = along_x
    red, green, blue, opaque = line[0], line[1], line[2], line[3]
    for x in range(first.size):
        low = offsets[x]
        at = first[x] - begin - low
        r, g, b, a = 0.0, 0.0, 0.0, 0.0
        for k in range(low, offsets[x + 1]):
            w = np.float64(weights[np.uint64(k)])
            here = np.uint64(at + k)
            r += w * red[here]
            g += w * green[here]
            b += w * blue[here]
            a += w * opaque[here]
        sums[0, x], sums[1, x], sums[2, x], sums[3, x] = r, g, b, a


@compile_kernel
def _store_rgba_row(
    sums: NDArray[np.float64],
    totals: NDArray[np.float64],
    total: float,
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
    opaque: NDArray[np.uint8],
) -> None:
    reds, greens, blues, alphas = sums[0], sums[1], sums[2], sums[3]
    for x in range(opaque.size):
        # The sums are 0 if the pixel covers only transparent pixels.
        alpha = max(alphas[x], 1.0)
        red[x] = np.floor(reds[x] / alpha + 0.5)
        green[x] = np.floor(greens[x] / alpha + 0.5)
        blue[x] = np.floor(blues[x] / alpha + 0.5)
        opaque[x] = np.floor(alphas[x] / (totals[x] * total) + 0.5)


@compile_kernel
def _mean_rgba(
    a: NDArray[np.uint8],
    along_z: OverlapParts,
    along_y: OverlapParts,
    along_x: OverlapParts,
    begin: int,
    end: int,
    out: NDArray[np.uint8],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    _, x_offsets, x_weights = along_x
    line = np.empty((4, end - begin), np.float64)
    sums = np.empty((4, out.shape[3]), np.float64)
    totals = np.zeros(out.shape[3], np.float64)
    for x in range(totals.size):
        for k in range(x_offsets[x], x_offsets[x + 1]):
            totals[x] += np.float64(x_weights[k])
    for z in range(z_first.size):
        for y in range(y_first.size):
            line[:] = 0.0
            total = 0.0
            for i in range(z_offsets[z], z_offsets[z + 1]):
                for j in range(y_offsets[y], y_offsets[y + 1]):
                    weight = np.float64(z_weights[i]) * np.float64(y_weights[j])
                    total += weight
                    rows = a[:, z_first[z] + i - z_offsets[z], y_first[y] + j - y_offsets[y], begin:end]
                    _add_row(rows[0], rows[1], rows[2], rows[3], weight, line)
            _sum_along_row(line, along_x, begin, sums)
            rows = out[:, z, y]
            _store_rgba_row(sums, totals, total, rows[0], rows[1], rows[2], rows[3])


def mean_rgba(a: NDArray[np.uint8], axes: tuple[OverlapMap, OverlapMap, OverlapMap]) -> NDArray[np.uint8]:
    """Average the colours that each output pixel covers, weighted by their alpha and the weights of the axes (z, y, x).

    `a` is uint8 (z, y, x, 4) with straight alpha. It is not copied if each channel is contiguous in memory, as in the
    result. Values are rounded to nearest, halves up. Transparent pixels do not contribute to the colour; an output
    pixel that covers only these is (0, 0, 0, 0). Sums and rounding are exact while the weights of an output pixel add
    up to less than 2**36.
    """
    a = np.asarray(a)
    if a.dtype != np.uint8 or a.ndim != 4 or a.shape[-1] != 4:
        raise LayerError(f"colours must be uint8 (z, y, x, 4), got {a.dtype} of shape {a.shape}")
    planes = as_kernel_input(np.moveaxis(a, -1, 0))
    z, y, x = _check_overlap_maps(axes, planes.shape[1:])
    begin, end = _covered_range(x)
    out = np.empty((4, z[0].size, y[0].size, x[0].size), np.uint8)
    _mean_rgba(planes, z, y, x, begin, end, out)
    return np.moveaxis(out, 0, -1)


# --- mode -------------------------------------------------------------------------------------------


@compile_kernel
def _mode(
    a: NDArray[Any],
    along_z: OverlapParts,
    along_y: OverlapParts,
    along_x: OverlapParts,
    places: int,
    out: NDArray[Any],
) -> None:
    z_first, z_offsets, z_weights = along_z
    y_first, y_offsets, y_weights = along_y
    x_first, x_offsets, x_weights = along_x
    labels = np.empty(places, a.dtype)
    sums = np.empty(places, np.int64)
    for z in range(z_first.size):
        z_count = z_offsets[z + 1] - z_offsets[z]
        for y in range(y_first.size):
            y_count = y_offsets[y + 1] - y_offsets[y]
            row = out[z, y]
            for x in range(x_first.size):
                x_low = x_offsets[x]
                x_count = x_offsets[x + 1] - x_low
                n = 0
                last = 0
                for i in range(z_count):
                    for j in range(y_count):
                        w = z_weights[z_offsets[z] + i] * y_weights[y_offsets[y] + j]
                        source = a[z_first[z] + i, y_first[y] + j]
                        for k in range(x_count):
                            label = source[np.uint64(x_first[x] + k)]
                            if n == 0 or labels[last] != label:
                                last = 0
                                while last < n and labels[last] != label:
                                    last += 1
                                if last == n:
                                    labels[n] = label
                                    sums[n] = 0
                                    n += 1
                            sums[last] += w * x_weights[np.uint64(x_low + k)]
                best = 0
                for i in range(1, n):
                    if (
                        sums[i] > sums[best]
                        or (sums[i] == sums[best] and labels[i] != 0 and labels[best] > labels[i])
                        or (sums[i] == sums[best] and labels[best] == 0)
                    ):
                        best = i
                row[x] = labels[best]


def mode(labels: NDArray[Any], axes: tuple[OverlapMap, OverlapMap, OverlapMap]) -> NDArray[Any]:
    """Return the label with the largest total weight in each output voxel.

    The weight of a voxel is the product of its weights along z, y and x. In a tie, the smallest label (as uint64) other
    than 0 is returned. The result has the dtype of `labels`, any integer, in native byte order.
    """
    labels = check_volume(labels)
    work = as_labels(labels)
    z, y, x = _check_overlap_maps(axes, labels.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    places, most = 1, 1
    for _, offsets, weights in (z, y, x):
        count = np.diff(offsets)
        places *= int(count.max(initial=0))
        most *= int(weights.max(initial=0)) * int(count.max(initial=0))
    if most >= 2**63:
        raise OptionError(f"overlap weights add up to {most}, which does not fit int64; use a coarser unit")
    if is_blank(work.reshape(-1)):
        return np.zeros(out.shape, labels.dtype.newbyteorder("="))
    _mode(work, z, y, x, places, out)
    return out.astype(labels.dtype.newbyteorder("="), copy=False)
