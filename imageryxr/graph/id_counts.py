"""Find the ids in the blocks of a segmentation and count their voxels, with a tree reduction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume
from imageryxr.graph.reduction import reduce_volumes

IdCounts = tuple[Array, npt.NDArray[np.int64]]
"""Ids in ascending order, and the number of voxels of each."""


def find_ids(volume: Volume) -> Array:
    """Return the ids of a volume in ascending order, 0 included; computes block by block."""
    return np.unique(reduce_volumes([volume], _block_ids, _merge_ids))


def count_ids(volume: Volume) -> IdCounts:
    """Return the ids of a volume, 0 included, and the number of voxels of each; computes block by block."""
    return reduce_volumes([volume], _block_counts, _merge_counts)


def _native_order(block: Array) -> Array:
    return np.ascontiguousarray(block, block.dtype.newbyteorder("="))


def _block_ids(box: IndexBox, block: Array) -> Array:
    import fastremap

    found: Array = fastremap.unique(_native_order(block)) if block.size else _native_order(block).ravel()
    return found


def _merge_ids(parts: list[Array]) -> Array:
    return np.unique(np.concatenate(parts))


def _block_counts(box: IndexBox, block: Array) -> IdCounts:
    import fastremap

    if not block.size:
        return _native_order(block).ravel(), np.empty(0, np.int64)
    ids, counts = fastremap.unique(_native_order(block), return_counts=True)
    return ids, counts.astype(np.int64)


def _merge_counts(parts: list[IdCounts]) -> IdCounts:
    ids = np.concatenate([ids for ids, _ in parts])
    counts = np.concatenate([counts for _, counts in parts])
    if not len(ids):
        return ids, counts
    order = np.argsort(ids, kind="stable")
    ids, counts = ids[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return ids[first], np.add.reduceat(counts, first)
