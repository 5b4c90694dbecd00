"""Select, mask, find and replace the labels that are in a set of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageryxr.kernels.color_table import as_ids, as_labels, build_hash_table, find_slot
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import PIECE, fill_run, is_blank, make_padded, make_run_buffers, run_ends


@compile_kernel
def _select(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[Any]
) -> None:
    buffers = make_run_buffers(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, buffers)):
            end = buffers.ends[k]
            label = piece[begin]
            # A branch rather than a product with a bool, which could be promoted to float.
            if find_slot(keys, slots, zero, 0, 0, np.uint64(label)) < 0:
                label = flat.dtype.type(0)
            fill_run(out, start + begin, start + end, label)
            begin = end


def select(labels: NDArray[Any], ids: ArrayLike) -> NDArray[Any]:
    """Set all labels that are not in `ids` to 0; dtype (in native byte order) and shape are kept."""
    flat, table = as_labels(labels), build_hash_table(as_ids(ids))
    if is_blank(flat.reshape(-1)):
        return np.zeros(flat.shape, np.asarray(labels).dtype.newbyteorder("="))
    out = make_padded(flat.size, flat.dtype)
    _select(flat.reshape(-1), *table, out)
    return out[: flat.size].reshape(flat.shape).astype(np.asarray(labels).dtype.newbyteorder("="), copy=False)


@compile_kernel
def _masks(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[np.bool_]
) -> None:
    buffers = make_run_buffers(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, buffers)):
            end = buffers.ends[k]
            slot = find_slot(keys, slots, zero, 0, 0, np.uint64(piece[begin]))
            if slot >= 0:
                out[slot, start + begin : start + end] = True
            begin = end


def masks(labels: NDArray[Any], ids: ArrayLike) -> NDArray[np.bool_]:
    """Return the mask of each id, computed in one pass: bool (k, *labels.shape), in the order of `ids`."""
    flat, (distinct, rows) = as_labels(labels), np.unique(as_ids(ids), return_inverse=True)
    out = np.zeros((distinct.size, flat.size), np.bool_)
    _masks(flat.reshape(-1), *build_hash_table(distinct), out)
    if not np.array_equal(rows, np.arange(distinct.size)):  # avoid a copy of masks that are in order
        out = out[rows]
    return out.reshape((rows.size, *flat.shape))


@compile_kernel
def _is_present(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[np.bool_]
) -> None:
    missing = out.size
    buffers = make_run_buffers(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, buffers)):
            slot = find_slot(keys, slots, zero, 0, 0, np.uint64(piece[begin]))
            if slot >= 0 and not out[slot]:
                out[slot] = True
                missing -= 1
            begin = buffers.ends[k]
        if missing == 0:
            return


def is_present(labels: NDArray[Any], ids: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each of `ids` occurs in `labels`: bool[k], in the order of `ids`."""
    distinct, rows = np.unique(as_ids(ids), return_inverse=True)
    out = np.zeros(distinct.size, np.bool_)
    _is_present(as_labels(labels).reshape(-1), *build_hash_table(distinct), out)
    return out[rows]
