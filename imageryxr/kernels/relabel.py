"""Ids of large blocks: which there are, and others in their place, at the speed of memory.

Segmentations are runs along x, and a run mostly continues one in the row above: only where it does not is a table
asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.lookup import as_labels, compiled, find_end, remap

__all__ = ["distinct", "relabel"]

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_SCATTER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


@compiled
def _put(keys: NDArray[np.uint64], value: np.uint64) -> bool:
    # Keys are scattered by a multiplication: cheaper than a full hash, and ids of a block share no pattern with it.
    mask = np.uint64(keys.size - 1)
    at = ((value * _SCATTER) >> _SHIFT) & mask
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
    i = 0
    last = _ZERO
    while i < flat.size:
        value = np.uint64(flat[i])
        end = find_end(flat, i, flat.size)
        if value != _ZERO and value != last and (i < row or np.uint64(flat[i - row]) != value) and _put(keys, value):
            found += 1
            if 2 * found > keys.size:
                larger = np.zeros(4 * keys.size, np.uint64)
                for key in keys:
                    if key != _ZERO:
                        _put(larger, key)
                keys = larger
        last = value
        i = end
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


def relabel(labels: NDArray[Any], ids: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a block with values in the place of ids; 0 stays 0.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    ids, values
        Every id that occurs, and what takes its place.

    Returns
    -------
    numpy.ndarray
        uint64, the shape of `labels`.
    """
    return remap(labels, ids, values, missing="zero")
