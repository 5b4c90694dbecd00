"""Find the ids in the blocks of a segmentation and count their voxels, with a tree reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from imageryxr.graph.expr import Array

IdCounts = tuple[Array, npt.NDArray[np.int64]]
"""Ids in ascending order, and the number of voxels of each."""

# Number of results that one task of the tree merges.
_FAN = 16


def find_ids(data: Array | da.Array) -> Array:
    """Return the ids of an array in ascending order, 0 included; computes block by block."""
    if isinstance(data, np.ndarray):
        return _block_ids(data)
    if not data.size:
        return np.empty(0, data.dtype)
    return np.unique(np.asarray(_merge_tree(data, _block_ids, _merge_ids).compute()))


def count_ids(data: Array | da.Array) -> IdCounts:
    """Return the ids of an array, 0 included, and the number of voxels of each; computes block by block."""
    if isinstance(data, np.ndarray):
        return _block_counts(data)
    if not data.size:
        return np.empty(0, data.dtype), np.empty(0, np.int64)
    found: IdCounts = _merge_tree(data, _block_counts, _merge_counts).compute()
    return found


def _merge_tree(data: da.Array, one: Callable[[Array], Any], merge: Callable[[list[Any]], Any]) -> Any:
    """Return the delayed reduction of an array: ``one`` applied to each block, merged level by level.

    The graph, and the time to build it, grow with the number of blocks.
    """
    from dask.base import optimize, tokenize
    from dask.core import flatten
    from dask.delayed import Delayed
    from dask.highlevelgraph import HighLevelGraph

    ones = tuple((1,) * n for n in data.numblocks)
    meta = np.empty((0,) * data.ndim, object)
    (blocks,) = optimize(da.map_blocks(_box_value, data, one, chunks=ones, dtype=object, meta=meta))
    name = f"ids-{tokenize(blocks.name, one)}"
    tasks: dict[Any, Any] = {}
    keys, level = list(flatten(blocks.__dask_keys__())), 0
    while len(keys) > 1 or level == 0:
        groups = [keys[i : i + _FAN] for i in range(0, len(keys), _FAN)]
        tasks |= {(name, level, i): (_merge_group, merge, group, level == 0) for i, group in enumerate(groups)}
        keys, level = [(name, level, i) for i in range(len(groups))], level + 1
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[blocks])
    return Delayed(keys[0], graph, layer=name)


def _box_value(block: Array, one: Callable[[Array], Any]) -> npt.NDArray[np.object_]:
    """Return ``one(block)`` as the only element of an object array, since `map_blocks` requires arrays."""
    out = np.empty((1,) * block.ndim, object)
    out[(0,) * block.ndim] = one(block)
    return out


def _merge_group(merge: Callable[[list[Any]], Any], parts: list[Any], boxed: bool) -> Any:
    return merge([part.item() for part in parts] if boxed else parts)


def _native_order(block: Array) -> Array:
    return np.ascontiguousarray(block, block.dtype.newbyteorder("="))


def _block_ids(block: Array) -> Array:
    import fastremap

    found: Array = fastremap.unique(_native_order(block)) if block.size else _native_order(block).ravel()
    return found


def _merge_ids(parts: list[Array]) -> Array:
    return np.unique(np.concatenate(parts))


def _block_counts(block: Array) -> IdCounts:
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
