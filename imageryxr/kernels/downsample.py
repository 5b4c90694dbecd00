"""Downsample blocks to a coarser grid: weighted means of images and most frequent labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.core.axis_mapping import OverlapMap
from imageryxr.errors import OptionError
from imageryxr.kernels.axis_weights import (
    OverlapParts,
    check_overlap_maps,
    check_volume,
    covered_range,
    restore_dtype,
    storage_range,
    store_row,
    to_arithmetic_dtype,
)
from imageryxr.kernels.color_table import as_labels
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import is_blank


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
    z, y, x = check_overlap_maps(axes, a.shape)
    out = np.empty(tuple(part[0].size for part in (z, y, x)), work.dtype)
    begin, end = covered_range(x)
    _mean(work, z, y, x, begin, end, *storage_range(work.dtype), out)
    return restore_dtype(out, a.dtype)


# --- mode -----------------------------------------------------------------------------------------


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
    z, y, x = check_overlap_maps(axes, labels.shape)
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
