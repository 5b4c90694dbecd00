"""Sum the voxels, positions and grey values of each segment of a block."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError
from imageryxr.kernels.color_table import as_labels
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input, fill_run, make_run_buffers, run_ends
from imageryxr.kernels.tally import Tally, find_or_add, make_tally, reserve_rows, tally_rows

# Columns of the sums: voxels, doubled sum of x, sums of y and z, then the first and last x, y and z.
_COLUMNS = 10
_ADDED_AT_ONCE = 256
_SIGN = np.uint64(1 << 63)
_LARGEST_REFERENCE = 1e150
"""Differences from larger values could overflow; the squares of such values exceed float64 anyway."""


class BlockSums(NamedTuple):
    """Sums of the segments of a block; axes are (z, y, x), and indexes are relative to the start of the block."""

    ids: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    sums: NDArray[np.int64]
    """int64[k, 3], the sums of the indexes of all voxels."""
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    """int64[k, 3], the smallest and the largest index."""
    rows: NDArray[np.intp]
    """The row of each segment in the hash table."""


class GreySums(NamedTuple):
    """Sums of the grey values of the segments of a block."""

    reference: NDArray[Any]
    """A value near those of the segment, float64, or the image's dtype for integers of 64 bits."""
    total: NDArray[np.float64]
    """The sum of the differences from the reference."""
    deviation: NDArray[np.float64]
    """The sum of squared deviations from the mean."""
    low: NDArray[Any]
    high: NDArray[Any]
    """The smallest and the largest value, of the dtype of the image."""


def sum_segments(labels: NDArray[Any], ids: NDArray[np.uint64] | None = None) -> tuple[BlockSums, Tally]:
    """Return the sums of the segments of a block (z, y, x) in ascending order of id, and their hash table.

    `ids` are the distinct ids to sum, without 0. Default: all.
    """
    block = as_labels(labels)
    tally = _sum_segments(block, make_tally(_COLUMNS, ids), ids is None)
    pairs, sums = tally_rows(tally)
    order = np.argsort(pairs[:, 0], kind="stable")
    order = order[sums[order, 0] > 0]
    found = sums[order]
    positions = np.stack([found[:, 3], found[:, 2], found[:, 1] // 2], axis=1)
    return BlockSums(pairs[order, 0], found[:, 0], positions, found[:, [8, 6, 4]], found[:, [9, 7, 5]], order), tally


@compile_kernel
def _sum_segments(labels: NDArray[Any], tally: Tally, add: bool) -> Tally:
    depth, height, width = labels.shape
    buffers = make_run_buffers(width)
    for z in range(depth):
        for y in range(height):
            row = labels[z, y]
            runs = run_ends(row, buffers)
            if add:
                tally = reserve_rows(tally, runs)
            begin = 0
            for k in range(runs):
                end = buffers.ends[k]
                label = np.uint64(row[begin])
                if label != np.uint64(0):
                    at = find_or_add(tally, label, np.uint64(0), add)
                    if at >= 0:
                        _add_run(tally.sums[at], z, y, begin, end)
                begin = end
    return tally


@compile_kernel
def _add_run(sums: NDArray[np.int64], z: int, y: int, begin: int, end: int) -> None:
    voxels = end - begin
    if sums[0] == 0:
        sums[4], sums[5], sums[6], sums[7], sums[8] = begin, end - 1, y, y, z
    else:
        sums[4] = min(sums[4], begin)
        sums[5] = max(sums[5], end - 1)
        sums[6] = min(sums[6], y)
        sums[7] = max(sums[7], y)
    sums[9] = z  # rows are visited in ascending order of z
    sums[0] += voxels
    sums[1] += voxels * (begin + end - 1)
    sums[2] += voxels * y
    sums[3] += voxels * z


def sum_grey(labels: NDArray[Any], image: NDArray[Any], segments: BlockSums, tally: Tally) -> GreySums:
    """Return the sums of the grey values of the segments of a block, in the order of `segments`.

    `image` has the shape of `labels` and any integer, boolean or float dtype; `segments` and `tally` are the results of
    `sum_segments`. Integers of 8 and 16 bits are summed exactly; of other values, the differences from one value of the
    segment are summed as float64, run by run.
    """
    if labels.shape != image.shape:
        raise GridMismatchError(f"image {image.shape} and labels {labels.shape} must have the same shape")
    block, rows = as_labels(labels), segments.rows
    dtype = image.dtype.newbyteorder("=")
    if dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize <= 2):
        values = image.view(np.uint8) if dtype.kind == "b" else image
        found = _sum_integers(block, as_kernel_input(values), tally)[rows]
        return _exact_sums(segments.voxels, found, dtype)
    is_long = dtype.kind in "iu" and dtype.itemsize == 8
    values = as_kernel_input(image if is_long or dtype in (np.float32, np.float64) else image.astype(np.float64))
    if dtype == np.int64:
        values = as_kernel_input(values.view(np.uint64) ^ _SIGN)  # in the same order
    limits: NDArray[Any] = np.zeros((len(tally.pairs), 3), np.uint64 if is_long else np.float64)
    sums = _sum_differences(block, values, tally, limits)[rows]
    reference, low, high = ((limits ^ _SIGN).view(np.int64) if dtype == np.int64 else limits)[rows].T
    correction = sums[:, [2, 4]]  # NaN for an infinite sum
    total, deviation = (sums[:, [1, 3]] + np.where(np.isfinite(correction), correction, 0)).T
    return GreySums(reference, total, deviation, low.astype(dtype), high.astype(dtype))


def subtract(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the difference of arrays of one dtype as float64; that of integers of 64 bits is rounded once."""
    found: NDArray[np.float64]
    if a.dtype.kind == "f":
        found = a - b
    else:  # the difference of unsigned integers is not negative
        distance = (np.maximum(a, b).view(np.uint64) - np.minimum(a, b).view(np.uint64)).astype(np.float64)
        found = np.where(a >= b, distance, -distance)
    return found


def _exact_sums(voxels: NDArray[np.int64], found: NDArray[np.int64], dtype: np.dtype[Any]) -> GreySums:
    total, squares = found[:, 0], found[:, 1]
    # Squared deviations from `near`, the whole number nearest to the mean, are summed as integers. Intermediate values
    # may exceed int64 and wrap; the sum does not. The correction for the fraction of the mean is at most half of the
    # sum, so that the subtraction loses no digits.
    near = (2 * total + voxels) // (2 * voxels)
    rest = (total - near * voxels).astype(np.float64)
    deviation = (squares - near * (2 * total - near * voxels)).astype(np.float64) - rest**2 / voxels
    return GreySums(near.astype(np.float64), rest, deviation, found[:, 2].astype(dtype), found[:, 3].astype(dtype))


@compile_kernel
def _sum_integers(labels: NDArray[Any], image: NDArray[Any], tally: Tally) -> NDArray[np.int64]:
    """Return the sum, the sum of squares, the minimum and the maximum of each row of the tally."""
    depth, height, width = labels.shape
    out = np.zeros((tally.pairs.shape[0], 4), np.int64)
    for row in range(out.shape[0]):
        out[row, 2] = 1 << 40
        out[row, 3] = -(1 << 40)
    buffers = make_run_buffers(width)
    for z in range(depth):
        for y in range(height):
            row, grey = labels[z, y], image[z, y]
            begin = 0
            for k in range(run_ends(row, buffers)):
                end = buffers.ends[k]
                label = np.uint64(row[begin])
                at = find_or_add(tally, label, np.uint64(0), False) if label != np.uint64(0) else -1
                if at >= 0:
                    total, squares = np.int64(0), np.int64(0)
                    low = high = np.int64(grey[begin])
                    for value in grey[begin:end]:
                        v = np.int64(value)
                        total += v
                        squares += v * v
                        low = min(low, v)
                        high = max(high, v)
                    out[at, 0] += total
                    out[at, 1] += squares
                    out[at, 2] = min(out[at, 2], low)
                    out[at, 3] = max(out[at, 3], high)
                begin = end
    return out


@compile_kernel
def _sum_differences(
    labels: NDArray[Any], image: NDArray[Any], tally: Tally, limits: NDArray[Any]
) -> NDArray[np.float64]:
    """Return statistics of the grey values of each segment, which has one row of the tally.

    These are the number of voxels, the sum of the differences from a reference and its correction, and the sum of
    squared deviations and its correction. The reference, the minimum and the maximum are written to `limits`.

    A reference among the values keeps the digits of deviations that are small compared to the values. Runs are merged
    with the update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    """
    depth, height, width = labels.shape
    out = np.zeros((tally.pairs.shape[0], 5), np.float64)
    buffers = make_run_buffers(width)
    for z in range(depth):
        for y in range(height):
            row, grey = labels[z, y], image[z, y]
            begin = 0
            for k in range(run_ends(row, buffers)):
                end = buffers.ends[k]
                label = np.uint64(row[begin])
                at = find_or_add(tally, label, np.uint64(0), False) if label != np.uint64(0) else -1
                if at >= 0:
                    # Rounding errors grow with the number of values that are added one by one.
                    for start in range(begin, end, _ADDED_AT_ONCE):
                        _add_values(out, limits, at, grey, start, min(start + _ADDED_AT_ONCE, end))
                begin = end
    return out


@compile_kernel
def _add_values(
    sums: NDArray[np.float64], limits: NDArray[Any], at: int, grey: NDArray[Any], begin: int, end: int
) -> None:
    count, before = np.float64(end - begin), sums[at, 0]
    if before == 0:
        limits[at, 1] = limits[at, 2] = grey[begin]
        if -_LARGEST_REFERENCE < grey[begin] < _LARGEST_REFERENCE:
            limits[at, 0] = grey[begin]
    reference, low, high = limits[at, 0], limits[at, 1], limits[at, 2]
    total = 0.0
    for i in range(begin, end):
        v = grey[i]
        total += _difference(v, reference)
        # NaN is the minimum and the maximum, as in numpy.
        low = v if v < low or v != v else low
        high = v if v > high or v != v else high
    limits[at, 1], limits[at, 2] = low, high
    mean = total / count
    deviation = 0.0
    for i in range(begin, end):
        deviation += (_difference(grey[i], reference) - mean) ** 2
    if before > 0:
        deviation += (mean - sums[at, 1] / before) ** 2 * before * count / (before + count)
    _add_exactly(sums, at, 1, total)
    _add_exactly(sums, at, 3, deviation)
    sums[at, 0] = before + count


@compile_kernel
def _difference(value: Any, reference: Any) -> float:
    # The difference of unsigned integers is not negative.
    return np.float64(value - reference) if value >= reference else -np.float64(reference - value)


@compile_kernel
def _add_exactly(sums: NDArray[np.float64], at: int, column: int, value: float) -> None:
    """Add to a sum, and the rounding error to the next column (Knuth's TwoSum)."""
    before = sums[at, column]
    total = before + value
    added = total - before
    sums[at, column] = total
    sums[at, column + 1] += (before - (total - added)) + (value - added)


def count_values(
    labels: NDArray[Any], image: NDArray[Any], tally: Tally
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the histogram of each segment of a block: pairs of id and grey value, and their numbers of voxels.

    `image` is uint8 or uint16 with the shape of `labels`; `tally` is the hash table from `sum_segments`.
    """
    import fastremap

    rows = np.empty(labels.size + 64, np.int32)
    _find_rows(as_labels(labels), tally, rows)
    rows = rows[: labels.size]
    shown = rows >= 0
    keys = rows[shown].astype(np.uint64) << np.uint64(16)
    keys |= np.asarray(image).reshape(-1)[shown].astype(np.uint64)
    pairs, counts = fastremap.unique(keys, return_counts=True) if len(keys) else (keys, np.empty(0, np.int64))
    ids = tally.pairs[(pairs >> np.uint64(16)).astype(np.intp), 0]
    return np.stack([ids, pairs & np.uint64(0xFFFF)], axis=1), counts.astype(np.int64)


@compile_kernel
def _find_rows(labels: NDArray[Any], tally: Tally, out: NDArray[np.int32]) -> None:
    depth, height, width = labels.shape
    buffers = make_run_buffers(width)
    start = 0
    for z in range(depth):
        for y in range(height):
            row = labels[z, y]
            begin = 0
            for k in range(run_ends(row, buffers)):
                end = buffers.ends[k]
                label = np.uint64(row[begin])
                at = find_or_add(tally, label, np.uint64(0), False) if label != np.uint64(0) else -1
                fill_run(out, start + begin, start + end, at)
                begin = end
            start += width
