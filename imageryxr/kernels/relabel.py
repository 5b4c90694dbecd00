"""Find and replace the ids of large blocks.

Segmentations consist of runs along x, and most runs continue a run of the row above. Only the other runs need a table
lookup, so that the speed is close to the bandwidth of the memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.errors import GridMismatchError
from imageryxr.kernels.color_table import as_ids, as_labels, build_hash_table, find_place, find_slot
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import PAD, PIECE, as_kernel_input, fill_run, make_run_buffers, run_ends

_ZERO = np.uint64(0)


@compile_kernel
def find_distinct_ids(flat: NDArray[Any], row: int) -> NDArray[np.uint64]:
    """Return the distinct ids of a block with rows of `row` voxels, without 0, in any order."""
    keys = np.zeros(4096, np.uint64)
    found = 0
    last = _ZERO
    buffers = make_run_buffers(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, buffers)):
            value, at = np.uint64(piece[begin]), start + begin
            begin = buffers.ends[k]
            if value == _ZERO:
                continue
            if value == last or (at >= row and np.uint64(flat[at - row]) == value):
                continue
            last = value
            place = find_place(keys, value)
            if keys[place] == value:
                continue
            keys[place] = value
            found += 1
            if 2 * found > keys.size:
                larger = np.zeros(4 * keys.size, np.uint64)
                for key in keys:
                    if key != _ZERO:
                        larger[find_place(larger, key)] = key
                keys = larger
    out = np.empty(found, np.uint64)
    n = 0
    for key in keys:
        if key != _ZERO:
            out[n] = key
            n += 1
    return out


def distinct_ids(labels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the distinct ids of a block, without 0, as ascending uint64[k]; runs are along the last axis."""
    ids = as_labels(labels)
    row = ids.shape[-1] if ids.ndim > 1 else ids.size
    return np.sort(find_distinct_ids(ids.reshape(-1), row))


@compile_kernel
def _relabel(
    flat: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    values: NDArray[np.uint64],
) -> None:
    # `fill_run` writes beyond the end of a run, so the results go to a buffer: in place, it would overwrite labels that
    # are not read yet.
    out = np.empty(PIECE + PAD, np.uint64)
    buffers = make_run_buffers(PIECE)
    last, put = _ZERO, _ZERO
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, buffers)):
            value = piece[begin]
            if value != last:
                last, put = value, _ZERO
                slot = find_slot(keys, slots, -1, 0, 0, value)
                if slot >= 0:
                    put = values[slot]
            fill_run(out, begin, buffers.ends[k], put)
            begin = buffers.ends[k]
        for i in range(piece.size):
            piece[i] = out[i]


class RelabelTable(NamedTuple):
    """Ids and their replacements, in the form that the kernel needs."""

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    values: NDArray[np.uint64]


def build_relabel_table(ids: NDArray[np.uint64], values: NDArray[np.uint64]) -> RelabelTable:
    """Build the table of distinct ids and their replacements for `relabel`."""
    if len(ids) != len(values):
        raise GridMismatchError(f"{len(ids)} ids need as many values, got {len(values)}")
    keys, slots, _ = build_hash_table(as_ids(ids))
    return RelabelTable(keys, slots, as_kernel_input(values))


def relabel(labels: NDArray[np.uint64], table: RelabelTable) -> None:
    """Replace ids by values in place; 0 is not replaced, and all other ids must be in the table.

    `labels` are uint64, C-contiguous and writable. The operation is in place because allocating a second array would
    take longer than the operation itself.
    """
    _relabel(labels.reshape(-1), *table)
