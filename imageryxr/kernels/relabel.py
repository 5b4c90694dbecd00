"""Ids of large blocks: which there are, and others in their place, at the speed of memory.

Segmentations are runs along x, and a run mostly continues one in the row above: only where it does not is a table
asked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError
from imageryxr.kernels.color_table import as_labels, home, slot_of
from imageryxr.kernels.isin import build_set
from imageryxr.kernels.run_length import PAD, PIECE, compiled, frozen, run_ends, scratch, spread

__all__ = ["Table", "build_table", "distinct", "relabel"]

_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@compiled
def _put(keys: NDArray[np.uint64], value: np.uint64) -> bool:
    mask = np.uint64(keys.size - 1)
    at = home(value, keys.size)
    while True:
        here = keys[at]
        if here == value:
            return False
        if here == _ZERO:
            keys[at] = value
            return True
        at = (at + _ONE) & mask


@compiled
def _distinct(flat: NDArray[Any], row: int) -> NDArray[np.uint64]:
    keys = np.zeros(4096, np.uint64)
    found = 0
    last = _ZERO
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            value, at = np.uint64(piece[begin]), start + begin
            begin = room.ends[k]
            if value == _ZERO:
                continue
            if value == last or (at >= row and np.uint64(flat[at - row]) == value):
                continue
            last = value
            if _put(keys, value):
                found += 1
                if 2 * found > keys.size:
                    larger = np.zeros(4 * keys.size, np.uint64)
                    for key in keys:
                        if key != _ZERO:
                            _put(larger, key)
                    keys = larger
    out = np.empty(found, np.uint64)
    n = 0
    for key in keys:
        if key != _ZERO:
            out[n] = key
            n += 1
    return out


def distinct(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the ids that occur in a block, without 0.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape; the last axis is the one along which ids run.

    Returns
    -------
    numpy.ndarray
        uint64[k], ascending.
    """
    ids = as_labels(labels)
    row = ids.shape[-1] if ids.ndim > 1 else ids.size
    return np.sort(_distinct(ids.reshape(-1), row))


@compiled
def _relabel(
    flat: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    values: NDArray[np.uint64],
) -> None:
    # By way of memory that stays near, since `spread` overshoots into what has yet to be read.
    out = np.empty(PIECE + PAD, np.uint64)
    room = scratch(PIECE)
    last, put = _ZERO, _ZERO
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            value = piece[begin]
            if value != last:
                last, put = value, _ZERO
                slot = slot_of(keys, slots, -1, 0, 0, value)
                if slot >= 0:
                    put = values[slot]
            spread(out, begin, room.ends[k], put)
            begin = room.ends[k]
        for i in range(piece.size):
            piece[i] = out[i]


class Table(NamedTuple):
    """Ids, and what takes the place of each, in the form that the kernel takes."""

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    values: NDArray[np.uint64]


def build_table(ids: NDArray[np.uint64], values: NDArray[np.uint64]) -> Table:
    """Return the table of distinct ids and of what takes the place of each.

    Raises
    ------
    GridMismatchError
        `ids` and `values` differ in length.
    """
    if len(ids) != len(values):
        raise GridMismatchError(f"{len(ids)} ids need as many values, got {len(values)}")
    table = build_set(ids)
    ordered = np.empty(len(ids), np.uint64)
    ordered[table.order] = values
    return Table(frozen(table.keys), frozen(table.slots), frozen(ordered))


def relabel(labels: NDArray[np.uint64], table: Table) -> None:
    """Put values in the place of ids, where they stand; 0 stays 0.

    In place, because the pages of a second array of that size cost more than the work itself.

    Parameters
    ----------
    labels
        uint64, C-contiguous and writable, any shape. Every id in it but 0 must be in the table.
    table
        See `build_table`.
    """
    _relabel(labels.reshape(-1), *table)
