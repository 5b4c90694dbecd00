"""Reduce the blocks of arrays on one grid to one value, such as their ids, with a tree of tasks.

Each block becomes a partial result in the task that reads it. Blocks that are neighbours in space are merged first, so
the partial results in memory are those of a few branches of the tree, however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import get_scheduler, tokenize
from dask.blockwise import blockwise, optimize_blockwise
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from imageryxr.core.bbox import Index3, IndexBox, Splits
from imageryxr.graph.expr import Array, ArrayLeaf, widen_to
from imageryxr.graph.labelled import Volume, crop_volume
from imageryxr.graph.to_dask import BlockBoxDep, choose_splits, to_dask

T = TypeVar("T")

IdCounts = tuple[Array, npt.NDArray[np.int64]]
"""Ids in ascending order, and the number of voxels of each."""

_FAN = 16
"""Number of results that one task of the tree merges."""
_FAN_IN_MEMORY = 4
"""The same for arrays in memory, so that threads share the merges too."""
_SPACE = ("z", "y", "x")
_SLAB = 1 << 22
"""Voxels of the slabs in which an array in memory is reduced: enough for each thread, and rows stay contiguous."""


def reduce_volumes(
    volumes: Sequence[Volume],
    one: Callable[..., T],
    merge: Callable[[list[T]], T],
    *,
    box: IndexBox | None = None,
    before: int = 0,
) -> T:
    """Return the reduction of volumes on one grid; computes.

    Arrays that are opened from a source are read in blocks of whole storage chunks, each once. Arrays in memory are
    reduced in slabs, by threads of this process.

    Parameters
    ----------
    volumes : sequence of Volume
        Volumes on one grid.
    one : callable
        ``one(box, *arrays)`` returns the partial result of a block, given its box and a numpy array per volume.
    merge : callable
        Returns the merged result of a list of partial results; associative, in any order.
    box : IndexBox, optional
        The part of the grid to reduce. Default: all of it.
    before : int, default 0
        Number of voxels before the box, along each axis, that ``one`` receives too if the arrays are in memory.
    """
    box = volumes[0].grid.box if box is None else box
    if all(v.in_memory for v in volumes):
        return _reduce_arrays([_values(v) for v in volumes], one, merge, box, before)
    one = partial(_at_offset, one, box.start) if any(box.start) else one
    found: T = reduce_blocks(block_arrays(volumes, box), one, merge).compute()
    return found


def _reduce_arrays(
    arrays: Sequence[Array], one: Callable[..., T], merge: Callable[[list[T]], T], box: IndexBox, before: int
) -> T:
    """Return the reduction of a box of arrays in memory, by threads unless dask is configured otherwise."""
    boxes = BlockBoxDep(_slabs(box.shape))
    counts = boxes.numblocks
    if counts == (1, 1, 1):
        return merge([one(box, *(a[box.slices()] for a in arrays))])
    tasks: dict[Any, Any] = {}
    for idx in product(*map(range, counts)):
        slab = boxes[idx].shift(box.start)
        # Views in the tasks; `dask.array.from_array` would copy the arrays.
        low = [max(s - before, first) for s, first in zip(slab.start, box.start, strict=True)]
        read = IndexBox((low[0], low[1], low[2]), slab.stop).slices()
        tasks[("slab", *idx)] = (partial(one, slab, *(a[read] for a in arrays)),)
    tree, root = _merge_tree("slab", "merged", counts, merge, _FAN_IN_MEMORY)
    # A client of a cluster would send the values to its workers.
    chosen = dask.config.get("scheduler", None)
    compute = get_scheduler(scheduler="threads" if chosen in (None, "dask.distributed", "distributed") else chosen)
    found: T = compute(tasks | tree, root)
    return found


def _at_offset(one: Callable[..., T], start: Index3, box: IndexBox, *arrays: Array) -> T:
    return one(box.shift(start), *arrays)


def _values(volume: Volume) -> Array:
    assert isinstance(volume.expr, ArrayLeaf)
    return volume.expr.array


def _slabs(shape: Index3) -> Splits:
    plane = shape[1] * shape[2]
    depth, height = (1, max(1, _SLAB // shape[2])) if plane > 2 * _SLAB else (max(1, _SLAB // plane), shape[1])
    return tuple(da.core.normalize_chunks((depth, height, shape[2]), shape))


def block_arrays(volumes: Sequence[Volume], box: IndexBox) -> list[da.Array]:
    """Return the dask arrays of a box of volumes, in the same blocks of whole storage chunks; reads nothing."""
    shifted = [view_of_box(v, box) for v in volumes]
    splits = block_splits(volumes, box)
    return [
        da.from_array(_values(volume)[box.slices()], chunks=splits, name=False)
        if volume.in_memory
        else to_dask(part.expr, box.shape, dask_inputs=volume.dask_inputs, chunks=splits, name="labels")
        for volume, part in zip(volumes, shifted, strict=True)
    ]


def block_splits(volumes: Sequence[Volume], box: IndexBox) -> Splits:
    """Return the sizes of the blocks in which a box of volumes is reduced."""
    if all(v.in_memory for v in volumes):
        return _slabs(box.shape)
    has_dask_inputs = any(v.dask_inputs for v in volumes)
    return choose_splits([view_of_box(v, box).expr for v in volumes], box.shape, group=not has_dask_inputs)


def view_of_box(volume: Volume, box: IndexBox) -> Volume:
    """Return the volume of a box of indexes within a volume."""
    if box == volume.grid.box:
        return replace(volume, expr=widen_to(volume.expr, box))
    return crop_volume(volume, box)


def reduce_blocks(arrays: Sequence[da.Array], one: Callable[..., T], merge: Callable[[list[T]], T]) -> Delayed:
    """Return the delayed reduction of dask arrays (z, y, x) with the same blocks; reads nothing.

    The graph, and the time to build it, grow with the number of blocks.
    """
    splits: Splits = arrays[0].chunks
    counts = tuple(len(s) for s in splits)
    token = tokenize(*(a.name for a in arrays), one, merge)
    name = f"partial-{token}"
    layer = blockwise(
        partial(_run_one, one),
        name,
        _SPACE,
        BlockBoxDep(splits),
        _SPACE,
        *(part for array in arrays for part in (array.name, _SPACE)),
        numblocks={array.name: counts for array in arrays},
    )
    below = HighLevelGraph.merge(*(a.dask for a in arrays))
    graph = HighLevelGraph(
        {**below.layers, name: layer}, {**below.dependencies, name: {array.name for array in arrays}}
    )
    graph = optimize_blockwise(graph, keys=[(name, 0, 0, 0)])
    top = f"merged-{token}"
    tasks, root = _merge_tree(name, top, counts, merge)
    return Delayed(root, HighLevelGraph({**graph.layers, top: tasks}, {**graph.dependencies, top: {name}}), layer=top)


def _run_one(one: Callable[..., T], box: IndexBox, *arrays: Array) -> T:
    return one(IndexBox(*box), *arrays)


def _merge_tree(
    name: str, top: str, counts: tuple[int, ...], merge: Callable[..., Any], fan: int = _FAN
) -> tuple[dict[Any, Any], tuple[Any, ...]]:
    """Return the tasks that merge all blocks, and the key of the last one."""
    tasks: dict[Any, Any] = {}
    level = 0
    while level == 0 or max(counts) > 1:
        sizes = group_shape(counts, fan)
        new = tuple(-(-n // size) for n, size in zip(counts, sizes, strict=True))
        source = (name,) if level == 0 else (top, level - 1)
        for idx in product(*map(range, new)):
            parts = [(*source, *at) for at in _members(idx, sizes, counts)]
            tasks[(top, level, *idx)] = (merge, parts)
        counts, level = new, level + 1
    return tasks, (top, level - 1, 0, 0, 0)


def _members(idx: Sequence[int], sizes: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    ranges = zip(idx, sizes, counts, strict=True)
    return product(*(range(i * size, min(n, (i + 1) * size)) for i, size, n in ranges))


def group_shape(counts: Sequence[int], most: int) -> list[int]:
    """Return how many blocks to group along each axis: up to `most` in all, about as many along each axis."""
    sizes = [1, 1, 1]
    while 2 * sizes[0] * sizes[1] * sizes[2] <= most:
        open_axes = [axis for axis in (2, 1, 0) if sizes[axis] < counts[axis]]
        if not open_axes:
            break
        sizes[min(open_axes, key=lambda axis: sizes[axis])] *= 2
    return sizes


# ---------------------------------------------------------------------------------------------------------
# ids


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
