"""Read dask arrays that imageryxr did not build: compute boxes of them, or make tasks that take their blocks.

All blocks of a box are computed in one graph, so that they share their inputs. Each block is checked and copied into
the result as soon as it is computed, so that few blocks are in memory at a time. Blocks that are persisted on a cluster
are fetched from it, or passed in by the cluster as futures.

Dask does not check what the function of a block returns: without a check numpy would silently broadcast or cast a block
of another shape or dtype than the array declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import Alias
from dask.base import optimize
from dask.blockwise import Blockwise, blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArrayBlockIdDep, ArraySliceDep
from dask.utils import key_split

from imageryxr.core.bbox import DIMS, IndexBox, Splits, block_box, block_starts
from imageryxr.errors import LayerError
from imageryxr.graph.evaluate import (
    Readings,
    SharedReads,
    assemble_box,
    evaluate_shared,
    required_boxes,
    restrict_tables,
)
from imageryxr.graph.expr import Array, DaskLeaf, Expr

DaskInputs = Mapping[str, da.Array]


@dataclass(frozen=True)
class InputBoxes:
    """Boxes of input dask arrays that are computed together: the small graph that a worker receives for one region."""

    leaves: tuple[tuple[DaskLeaf, IndexBox], ...]
    arrays: tuple[da.Array, ...]
    """One array per box."""
    futures: dict[Any, Any] = field(default_factory=dict)
    """The futures in the graph, by key: values that a cluster keeps."""

    def compute(self, values: Mapping[Any, Array] | None = None) -> Readings:
        """Compute the boxes in this thread.

        Parameters
        ----------
        values : mapping, optional
            The values of the futures, by key. Default: fetch them from the cluster.
        """
        arrays = self.arrays
        if self.futures:
            values = gather_futures(self.futures) if values is None else values
            arrays = tuple(_rebuild_arrays({**arrays[0].dask, **values}, arrays))
        outputs = [_OutputArray(leaf, box) for leaf, box in self.leaves]
        # Copy each block into the result as it is computed: concatenating at the end would need twice the memory.
        targets: list[Any] = list(outputs)
        da.store(list(arrays), targets, lock=False, scheduler="synchronous")
        found: Readings = {}
        for (leaf, box), output in zip(self.leaves, outputs, strict=True):
            output.check()
            found.setdefault(leaf, []).append((box, output.array))
        return found


def input_boxes(expr: Expr, dask_inputs: DaskInputs, box: IndexBox) -> InputBoxes:
    """Return the boxes of input dask arrays that a box of an expression requires."""
    leaves = [
        (leaf, b) for leaf, boxes in required_boxes(expr, box).items() if isinstance(leaf, DaskLeaf) for b in boxes
    ]
    checked = {leaf: _add_block_checks(dask_inputs[leaf.name], leaf) for leaf, _ in leaves}
    arrays = [checked[leaf][(..., *b.slices(), *(slice(None) for _ in leaf.tail))] for leaf, b in leaves]
    arrays, futures = _split_futures(arrays)
    return InputBoxes(tuple(leaves), tuple(arrays), futures)


def _split_futures(arrays: list[da.Array]) -> tuple[list[da.Array], dict[Any, Any]]:
    if not any(is_future(value) for array in arrays for value in _materialized_values(array)):
        # The optimized graph is the smallest one to send to a worker.
        return list(optimize(*arrays)), {}
    keys = {key for array in arrays for key in _block_keys(array)}
    tasks = dict(_merge_graphs(arrays).cull(keys))
    futures = {key: value for key, value in tasks.items() if is_future(value)}
    rest = {key: task for key, task in tasks.items() if key not in futures}
    return _rebuild_arrays(rest, arrays), futures


def _merge_graphs(arrays: Sequence[da.Array]) -> HighLevelGraph:
    layers: dict[str, Any] = {}
    dependencies: dict[str, Any] = {}
    for array in arrays:
        layers |= array.dask.layers
        dependencies |= array.dask.dependencies
    return HighLevelGraph(layers, dependencies)


def _rebuild_arrays(tasks: Mapping[Any, Any], arrays: Sequence[da.Array]) -> list[da.Array]:
    own = {array.name: {key: tasks[key] for key in _block_keys(array) if key in tasks} for array in arrays}
    rest = {key: task for key, task in tasks.items() if not any(key in part for part in own.values())}
    layers = {name: MaterializedLayer(part) for name, part in {**own, "below": rest}.items()}
    graph = HighLevelGraph(layers, {"below": set(), **{name: {"below"} for name in own}})
    return [da.Array(graph, array.name, array.chunks, dtype=array.dtype) for array in arrays]


def _block_keys(array: da.Array) -> Iterator[Any]:
    return ((array.name, *index) for index in np.ndindex(*array.numblocks))


def _materialized_values(array: da.Array) -> Iterator[Any]:
    """Yield the tasks and values of the materialized layers of an array's graph."""
    for layer in array.dask.layers.values():
        if not isinstance(layer, Blockwise):
            yield from layer.values()


def has_independent_blocks(array: da.Array) -> bool:
    """Return whether each block is computed independently, so that few blocks need to be in memory at a time."""
    graph = array.dask
    return all(
        isinstance(layer, Blockwise) or not graph.dependencies[name] or name.startswith("getitem-")
        for name, layer in graph.layers.items()
    )


def has_computed_blocks(array: da.Array) -> bool:
    """Return whether all blocks are computed already: in memory, or kept by a cluster."""
    return is_in_memory(array) or is_on_cluster(array)


def is_in_memory(array: da.Array) -> bool:
    """Return whether all blocks are numpy arrays."""
    layer = array.dask.layers.get(array.name)
    return isinstance(layer, MaterializedLayer) and all(isinstance(value, np.ndarray) for value in layer.values())


def is_on_cluster(array: da.Array) -> bool:
    """Return whether all blocks are kept by a cluster."""
    layer = array.dask.layers.get(array.name)
    return isinstance(layer, MaterializedLayer) and all(map(is_future, layer.values()))


def without_p2p(array: da.Array) -> da.Array:
    """Return an array with its P2P rechunks replaced by tasks.

    P2P rechunking moves all blocks through the cluster, but a region needs only a few of them.
    """
    layers, dependencies = dict(array.dask.layers), dict(array.dask.dependencies)
    for name, layer in array.dask.layers.items():
        if type(layer).__name__ != "P2PRechunkLayer" or not layer.keepmap.all():
            continue
        below = da.Array(array.dask, layer.name_input, layer.chunks_input, dtype=array.dtype)
        new = below.rechunk(layer.chunks, method="tasks")
        layers |= {n: part for n, part in new.dask.layers.items() if n not in layers}
        dependencies |= {n: part for n, part in new.dask.dependencies.items() if n not in dependencies}
        indexes = list(np.ndindex(*new.numblocks))
        layers[name] = MaterializedLayer({(name, *i): Alias((name, *i), (new.name, *i)) for i in indexes})
        dependencies[name] = {new.name}
    if layers.keys() == array.dask.layers.keys():
        return array
    return da.Array(HighLevelGraph(layers, dependencies), array.name, array.chunks, dtype=array.dtype)


# ---------------------------------------------------------------------------------------------------------
# checks of blocks


def check_block(values: Any, leaf: DaskLeaf, box: IndexBox) -> Array:
    """Return the values of a box of a dask array with its dtype; a narrower dtype is cast if all of its values fit.

    Raises `LayerError` if they are not an array, have another shape, or have a dtype whose values may not fit.
    """
    expected = (*leaf.lead, *box.shape, *leaf.tail)
    if isinstance(values, np.ndarray) and values.shape == expected and values.dtype == leaf.dtype:
        return values
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape is None or dtype is None:
        given = "None" if values is None else f"a {type(values).__name__}"
        advice = "end the function that makes the block with `return` and a numpy array"
    elif tuple(shape) != expected:
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            "return blocks of the same shape as the input blocks from the function that makes them, or pass map_blocks "
            "the sizes that it returns as chunks=…"
        )
    elif not np.can_cast(dtype, leaf.dtype, "safe"):
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            f"end the function that makes the block with .astype('{leaf.dtype}'), or pass map_blocks dtype=… and "
            f"meta=… of the type that the function returns, '{dtype}'"
        )
    else:
        return np.asarray(values).astype(leaf.dtype, copy=False)
    raise LayerError(
        f"{_describe_box(leaf, box)} is {given}, but the array declares shape {expected} and dtype {leaf.dtype}: "
        f"{advice}"
    )


def _describe_box(leaf: DaskLeaf, box: IndexBox) -> str:
    starts = block_starts(leaf.splits)
    index = tuple(int(np.searchsorted(s, a, "right")) - 1 for s, a in zip(starts, box.start, strict=True))
    which = f"block {index}" if block_box(starts, index) == box else "a part"
    place = ", ".join(f"{d}={a}:{b}" for d, a, b in zip(DIMS, box.start, box.stop, strict=True))
    return f"{which} of the dask array {key_split(leaf.name)!r}, at {place},"


class _OutputArray:
    """Target of `dask.array.store`: an array that checks each block on assignment and has a token of its own."""

    def __init__(self, leaf: DaskLeaf, box: IndexBox) -> None:
        self.leaf, self.box = leaf, box
        self.array = np.empty((*leaf.lead, *box.shape, *leaf.tail), leaf.dtype)
        self.shape, self.dtype = self.array.shape, leaf.dtype
        self.missing = self.array.size
        """Number of values that no block has filled yet."""

    def __setitem__(self, index: Sequence[slice], values: Any) -> None:
        part = self.array[tuple(index)]
        first = len(self.leaf.lead)
        z, y, x = (a + i.start for a, i in zip(self.box.start, index[first : first + 3], strict=True))
        box = IndexBox.of_shape(part.shape[first : first + 3]).shift((z, y, x))
        part[...] = check_block(values, self.leaf, box)
        self.missing -= part.size

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.into", id(self))

    def check(self) -> None:
        """Raise `LayerError` if values are missing: `dask.array.store` silently skips empty blocks."""
        if self.missing:
            raise LayerError(
                f"{_describe_box(self.leaf, self.box)} lacks {self.missing:,} of {self.array.size:,} values, because "
                "some of its blocks are empty: check that the function that reads them returns arrays of the requested "
                "size"
            )


def _check_task(values: Any, idx: tuple[int, ...], *, leaf: DaskLeaf, starts: Splits) -> Array:
    first = len(leaf.lead)
    return check_block(values, leaf, block_box(starts, idx[first : first + 3]))


def _add_block_checks(array: da.Array, leaf: DaskLeaf) -> da.Array:
    """Return a dask array that raises an error, which names the block, if a block has a wrong shape or dtype.

    Arrays that dask makes by slicing one object are returned unchanged, so that dask can still fuse further slicing.
    """
    layer = array.dask.layers.get(array.name)
    is_sliced = isinstance(layer, Blockwise) and any(isinstance(dep, ArraySliceDep) for dep in layer.io_deps.values())
    if is_sliced or is_in_memory(array):
        return array
    name, axes = f"checked-{array.name}", tuple(range(array.ndim))
    checks = blockwise(
        _check_task, name, axes, array.name, axes, ArrayBlockIdDep(array.chunks), axes,
        numblocks={array.name: array.numblocks}, leaf=leaf, starts=block_starts(leaf.splits),
    )  # fmt: skip
    below = array.dask
    graph = HighLevelGraph({**below.layers, name: checks}, {**below.dependencies, name: {array.name}})
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


# ---------------------------------------------------------------------------------------------------------
# blocks that a cluster keeps


def is_future(value: Any) -> bool:
    """Return whether a value is a `distributed.Future`, without importing distributed."""
    kind = type(value)
    return kind.__name__ == "Future" and kind.__module__.startswith("distributed")


def gather_futures(futures: Mapping[Any, Any]) -> dict[Any, Array]:
    """Fetch the values of futures from their cluster."""
    keys = list(futures)
    if not keys:
        return {}
    values = futures[keys[0]].client.gather([futures[key] for key in keys])
    return dict(zip(keys, values, strict=True))


def count_lost_blocks(dask_inputs: DaskInputs) -> int:
    """Return the number of persisted blocks that their cluster no longer keeps."""
    futures = [value for array in dask_inputs.values() for value in _materialized_values(array) if is_future(value)]
    return sum(f.status in ("cancelled", "lost") or f.client.status == "closed" for f in futures)


# ---------------------------------------------------------------------------------------------------------
# tasks that read the blocks of input arrays


def dask_leaves(expr: Expr) -> list[DaskLeaf]:
    """Return the `DaskLeaf` leaves of an expression."""
    if isinstance(expr, DaskLeaf):
        return [expr]
    return [leaf for child in expr.inputs for leaf in dask_leaves(child)]


class DaskInputLayer(MaterializedLayer):
    """Tasks on the blocks of input dask arrays; stores the expression, so that `recover` can find it."""

    def __init__(self, tasks: Mapping[Any, Any], expr: Expr, splits: Splits) -> None:
        super().__init__(tasks)
        self.expr = expr
        self.splits = splits


def input_tasks(key: str, expr: Expr, splits: Splits, reads: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and tasks of the blocks of an expression with dask inputs."""
    lead, tail = (0,) * len(expr.lead), (0,) * len(expr.tail)
    starts = block_starts(splits)
    for idx in product(*(range(len(s)) for s in splits)):
        box = block_box(starts, idx)
        pieces, keys = [], []
        for leaf, boxes in required_boxes(expr, box).items():
            if isinstance(leaf, DaskLeaf):
                for part, source_key in touched_blocks(leaf, boxes):
                    pieces.append((leaf, part))
                    keys.append(source_key)
        shared = [(name, *idx) for name in reads]
        own = restrict_tables(expr, box)
        yield (key, *lead, *idx, *tail), (_run_with_inputs, own, Opaque((box, tuple(pieces))), keys, shared)


@dataclass(frozen=True)
class Opaque:
    """Wrapper that hides a value from dask's search for keys."""

    value: Any


def touched_blocks(leaf: DaskLeaf, boxes: list[IndexBox]) -> Iterator[tuple[IndexBox, Any]]:
    """Yield the box and the key of each block of a dask array that boxes overlap."""
    starts = block_starts(leaf.splits)
    lead, tail = (0,) * len(leaf.lead), (0,) * len(leaf.tail)
    seen = set()
    for box in boxes:
        ranges = [
            range(np.searchsorted(s, a, "right") - 1, np.searchsorted(s, b, "left"))
            for s, a, b in zip(starts, box.start, box.stop, strict=True)
        ]
        for idx in product(*ranges):
            if idx not in seen:
                seen.add(idx)
                yield block_box(starts, idx), (leaf.name, *lead, *map(int, idx), *tail)


def _run_with_inputs(expr: Expr, opaque: Opaque, blocks: list[Array], reads: list[SharedReads]) -> Array:
    box, pieces = opaque.value
    readings: Readings = {}
    for leaf, boxes in required_boxes(expr, box).items():
        if isinstance(leaf, DaskLeaf):
            mine = [
                (part, check_block(values, leaf, part))
                for (own, part), values in zip(pieces, blocks, strict=True)
                if own == leaf
            ]
            readings[leaf] = [(target, assemble_box(leaf, target, mine)) for target in boxes]
    return evaluate_shared(expr, box, readings, reads)
