"""A hash table that grows: from pairs of ids to rows of sums.

Kernels add to the rows while they walk along the runs of a row of voxels. A single id is the pair of that id and 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.color_table import first_probe
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input, copy_values

# uint64 constants, because numba converts an operation on uint64 and int64 to float64.
_ONE = np.uint64(1)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)

_FIRST_ROWS = 2048


class Tally(NamedTuple):
    """The hash table; only the first ``used[0]`` rows of `pairs` and `sums` are in use."""

    pairs: NDArray[np.uint64]
    """uint64[n, 2], the ids of each row."""
    sums: NDArray[np.int64]
    """int64[n, columns], 0 in a new row."""
    slots: NDArray[np.int32]
    """int32[capacity], the row of each slot or -1; capacity is a power of two, and probing is linear."""
    used: NDArray[np.int64]
    """int64[1], the number of rows in use."""


def make_tally(columns: int, ids: NDArray[np.uint64] | None = None) -> Tally:
    """Return an empty tally, or one whose rows are those of `ids` (uint64[k], distinct), each paired with 0."""
    rows = _FIRST_ROWS if ids is None else max(len(ids), 1)
    tally = _allocate(rows, columns)
    if ids is not None:
        _add_ids(tally, as_kernel_input(ids))
    return tally


def tally_rows(tally: Tally) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the pairs of ids and the sums of the rows in use."""
    n = int(tally.used[0])
    return tally.pairs[:n], tally.sums[:n]


@compile_kernel
def _allocate(rows: int, columns: int) -> Tally:
    capacity = 4
    while 2 * capacity < 3 * rows:
        capacity *= 2
    pairs = np.zeros((rows, 2), np.uint64)
    return Tally(pairs, np.zeros((rows, columns), np.int64), np.full(capacity, -1, np.int32), np.zeros(1, np.int64))


@compile_kernel
def _add_ids(tally: Tally, ids: NDArray[np.uint64]) -> None:
    for i in range(ids.size):
        find_or_add(tally, ids[i], np.uint64(0), True)


@compile_kernel
def find_or_add(tally: Tally, a: np.uint64, b: np.uint64, add: bool) -> int:
    """Return the row of a pair of ids; add a row for a new pair if `add` is True, otherwise return -1 for it.

    Before adding, the caller must reserve rows with `reserve_rows`.
    """
    pairs, slots = tally.pairs, tally.slots
    mask = np.uint64(slots.size - 1)
    at = first_probe(a ^ (b * _SPREAD), slots.size)
    row = slots[at]
    while row >= 0:
        if pairs[row, 0] == a and pairs[row, 1] == b:
            return int(row)
        at = (at + _ONE) & mask
        row = slots[at]
    if not add:
        return -1
    new = tally.used[0]
    tally.used[0] = new + 1
    slots[at] = new
    pairs[new, 0] = a
    pairs[new, 1] = b
    return int(new)


@compile_kernel
def reserve_rows(tally: Tally, count: int) -> Tally:
    """Return a tally with room for `count` more pairs: the same one, or a larger copy."""
    used = tally.used[0]
    if used + count <= tally.pairs.shape[0]:
        return tally
    larger = _allocate(max(2 * tally.pairs.shape[0], used + count), tally.sums.shape[1])
    for row in range(used):
        find_or_add(larger, tally.pairs[row, 0], tally.pairs[row, 1], True)
        copy_values(tally.sums[row], larger.sums[row])
    return larger
