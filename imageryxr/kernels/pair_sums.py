"""Sum the faces between neighbouring segments, and the voxels that two segmentations share, by pair of ids.

Kernels process two rows at a time, in intervals in which each row has only one id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError
from imageryxr.kernels.color_table import as_labels
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import PIECE, make_run_buffers, run_ends
from imageryxr.kernels.tally import Tally, find_or_add, make_tally, reserve_rows, tally_rows

PairTable = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Pairs of ids, uint64[n, 2], and their sums, int64[n, columns]."""

_ZERO = np.uint64(0)


def sum_contacts(labels: NDArray[Any], before: tuple[int, int] = (0, 0), *, background: bool = False) -> PairTable:
    """Return the faces between the voxels of different segments of a block (z, y, x), by pair of ids.

    Faces between a segment and the background, 0, count only if `background` is True. The smaller id of a pair is
    first. The sums are int64[n, 12]: for faces across z, then y, then x, their number and the sums of the doubled
    positions (z, y, x) of their centres, in voxels from the corner of the block.

    `before` is the number of planes (0 or 1) across z and across y at the start of `labels` that belong to the previous
    blocks. Of these planes, only the faces that they share with this block count.
    """
    pairs, sums = tally_rows(_sum_contacts(as_labels(labels), before[0], before[1], make_tally(12), background))
    return pairs, sums


@compile_kernel
def _sum_contacts(labels: NDArray[Any], first_z: int, first_y: int, tally: Tally, background: bool) -> Tally:
    depth, height, width = labels.shape
    here, above, behind = make_run_buffers(width), make_run_buffers(width), make_run_buffers(width)
    runs = 0
    for z in range(first_z, depth):
        if first_y > 0:
            runs = run_ends(labels[z, first_y - 1], here)
        for y in range(first_y, height):
            row = labels[z, y]
            here, above, count = above, here, runs
            runs = run_ends(row, here)
            tally = reserve_rows(tally, runs)
            _add_along_row(row, here.ends, runs, tally, z, y, background)
            if y > 0:
                tally = reserve_rows(tally, runs + count)
                _add_between(labels[z, y - 1], above.ends, row, here.ends, tally, 4, 2 * z + 1, 2 * y, background)
            if z > 0:
                count = run_ends(labels[z - 1, y], behind)
                tally = reserve_rows(tally, runs + count)
                _add_between(labels[z - 1, y], behind.ends, row, here.ends, tally, 0, 2 * z, 2 * y + 1, background)
    return tally


@compile_kernel
def _add_along_row(
    row: NDArray[Any], ends: NDArray[np.int64], runs: int, tally: Tally, z: int, y: int, background: bool
) -> None:
    for k in range(runs - 1):
        end = ends[k]
        a, b = np.uint64(row[end - 1]), np.uint64(row[end])
        if background or (a != _ZERO and b != _ZERO):
            sums = tally.sums[find_or_add(tally, min(a, b), max(a, b), True)]
            sums[8] += 1
            sums[9] += 2 * z + 1
            sums[10] += 2 * y + 1
            sums[11] += 2 * end


@compile_kernel
def _add_between(
    one: NDArray[Any],
    one_ends: NDArray[np.int64],
    other: NDArray[Any],
    other_ends: NDArray[np.int64],
    tally: Tally,
    column: int,
    first: int,
    second: int,
    background: bool,
) -> None:
    """Add the faces between two rows; `first` and `second` are the doubled positions of the faces' other axes."""
    begin = i = j = 0
    while begin < one.size:
        end = min(one_ends[i], other_ends[j])
        a, b = np.uint64(one[begin]), np.uint64(other[begin])
        if a != b and (background or (a != _ZERO and b != _ZERO)):
            faces = end - begin
            sums = tally.sums[find_or_add(tally, min(a, b), max(a, b), True)]
            sums[column] += faces
            sums[column + 1] += faces * first
            sums[column + 2] += faces * second
            sums[column + 3] += faces * (begin + end)
        i += one_ends[i] == end
        j += other_ends[j] == end
        begin = end


def sum_plane_contacts(one: NDArray[Any], other: NDArray[Any], *, background: bool = False) -> PairTable:
    """Return the faces between two planes of voxels (rows, columns) that touch each other, by pair of ids.

    Faces between a segment and the background, 0, count only if `background` is True. The smaller id of a pair is
    first. The sums are int64[n, 3]: the number of faces, and the sums of the doubled positions (row, column) of their
    centres, in voxels from the corner of the planes.
    """
    if one.shape != other.shape:
        raise GridMismatchError(f"planes {one.shape} and {other.shape} must have the same shape")
    pairs, sums = tally_rows(_sum_plane_contacts(as_labels(one), as_labels(other), make_tally(4), background))
    return pairs, sums[:, [0, 2, 3]]


@compile_kernel
def _sum_plane_contacts(one: NDArray[Any], other: NDArray[Any], tally: Tally, background: bool) -> Tally:
    height, width = one.shape
    here, there = make_run_buffers(width), make_run_buffers(width)
    for y in range(height):
        tally = reserve_rows(tally, run_ends(one[y], here) + run_ends(other[y], there))
        _add_between(one[y], here.ends, other[y], there.ends, tally, 0, 0, 2 * y + 1, background)
    return tally


def sum_overlaps(one: NDArray[Any], other: NDArray[Any]) -> PairTable:
    """Return the number of voxels of each pair of ids at the same place in two arrays, 0 included.

    The id of `one` is first. The sums are int64[n, 1].
    """
    if one.shape != other.shape:
        raise GridMismatchError(f"labels {one.shape} and {other.shape} must have the same shape")
    flat = as_labels(one).reshape(-1), as_labels(other).reshape(-1)
    return tally_rows(_sum_overlaps(*flat, make_tally(1)))


@compile_kernel
def _sum_overlaps(one: NDArray[Any], other: NDArray[Any], tally: Tally) -> Tally:
    here, there = make_run_buffers(PIECE), make_run_buffers(PIECE)
    for start in range(0, one.size, PIECE):
        a, b = one[start : start + PIECE], other[start : start + PIECE]
        tally = reserve_rows(tally, run_ends(a, here) + run_ends(b, there))
        begin = i = j = 0
        while begin < a.size:
            end = min(here.ends[i], there.ends[j])
            row = find_or_add(tally, np.uint64(a[begin]), np.uint64(b[begin]), True)
            tally.sums[row, 0] += end - begin
            i += here.ends[i] == end
            j += there.ends[j] == end
            begin = end
    return tally
