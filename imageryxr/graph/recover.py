"""Recover the expression behind a dask array that xarray or dask only sliced, transposed or rechunked.

Indexing and rechunking add tasks that only move voxels. This module follows these tasks and computes the exact index
ranges of the base array that each block contains. A task that is not known to move voxels ends the search without a
result.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import dask.array as da
import numpy as np
from dask.array._shuffle import _getitem, concatenate_arrays
from dask.array.chunk import getitem
from dask.array.core import concatenate_shaped
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArraySliceDep

from imageryxr.core.bbox import DIMS, Splits, block_starts
from imageryxr.core.fork import cached_property
from imageryxr.graph.dask_inputs import DaskInputLayer, DaskInputs, dask_leaves, without_p2p
from imageryxr.graph.expr import Clipped, DaskLeaf, Expr, Leaf, replace_leaves
from imageryxr.graph.index_ranges import BlockPart, UnknownMoveError, join_parts, shuffle_parts, slice_part
from imageryxr.graph.lazy_indexing import ExprView, Ranges, expr_at_ranges, expr_view
from imageryxr.graph.to_dask import BoxDep


@dataclass(frozen=True)
class RecoveredArray:
    """The expression (z, y, x) of a dask array, and its dask inputs."""

    expr: Expr
    dask_inputs: dict[str, da.Array]
    splits: Splits
    """Sizes of the base's blocks (z, y, x), within the array."""
    is_whole_input: bool
    """Whether the expression is one `DaskLeaf`, and the array contains all of it."""


def recover_expr(
    array: da.Array, dims: Sequence[str], tail: Sequence[str] = (), *, deep: bool = False
) -> RecoveredArray | None:
    """Return the expression of a dask array that was sliced, with any step, from an expression's array; otherwise None.

    The recovered expression contains the data beyond the part.

    Parameters
    ----------
    array : dask Array
        Array with its axes in any order; z, y or x may have been dropped.
    dims : sequence of str
        Names of the axes.
    tail : sequence of str
        Names of the axes after (z, y, x).
    deep : bool
        Whether to recover the blocks before a rechunking of other dask arrays, too. Computing those blocks is
        expensive; rechunking them is not.
    """
    key = (id(array.dask), array.name, tuple(dims), tuple(tail), deep)
    cached = _CACHE.get(key)
    if cached is not None and cached[0]() is array.dask:
        return cached[1]
    try:
        found: RecoveredArray | None = _GraphWalk(without_p2p(array), deep).recover(dims, tail)
    except UnknownMoveError:
        found = None
    # The entry, and the blocks that it refers to, are removed together with the graph.
    # The cache is bound early, since the module has no globals when the interpreter ends.
    _CACHE[key] = weakref.ref(array.dask, partial(_CACHE.pop, key)), found
    return found


_CACHE: dict[Any, tuple[weakref.ref[HighLevelGraph], RecoveredArray | None]] = {}


def recover_inputs(expr: Expr, dask_inputs: DaskInputs) -> tuple[Expr, dict[str, da.Array]]:
    """Return an expression with each dask input that is a part of another array replaced by the recovered expression.

    The voxels and the bounds do not change: the data beyond the end of an input array are clipped.
    """
    kept: dict[str, da.Array] = {}

    def recover_leaf(leaf: Leaf) -> Expr:
        if not isinstance(leaf, DaskLeaf):
            return leaf
        array = without_p2p(dask_inputs[leaf.name])
        tail = [f"tail{i}" for i in range(len(leaf.tail))]
        found = None if leaf.lead else recover_expr(array, (*DIMS, *tail), tail, deep=True)
        if found is None or found.expr == leaf:
            kept[leaf.name] = array
            return leaf
        inner, below = recover_inputs(found.expr, found.dask_inputs)
        kept.update(below)
        return inner if leaf.bounds.contains(inner.bounds) else Clipped(inner, leaf.bounds)

    return replace_leaves(expr, recover_leaf), kept


# ---------------------------------------------------------------------------------------------------------
# following tasks that only move voxels


@dataclass(frozen=True)
class _Base:
    """The layer with an expression that the layers above slice, transpose or rechunk."""

    expr: Expr
    dask_inputs: dict[str, da.Array]
    starts: Splits
    """Starts of the blocks, followed by the end of the last block, along each axis of the layer's array."""
    ranges: Ranges
    """Indexes of the expression that the layer's array contains."""
    axes: tuple[int | None, ...]
    is_whole_input: bool = False

    def part(self, index: Sequence[int]) -> BlockPart:
        """Return the part of a block."""
        ranges = list(self.ranges)
        for pieces, i, axis in zip(self._pieces, index, self.axes, strict=True):
            if axis is not None:
                ranges[axis] = pieces[i]
        return BlockPart(tuple(ranges), self.axes)

    @cached_property
    def _pieces(self) -> list[list[range]]:
        whole = [range(1) if axis is None else self.ranges[axis] for axis in self.axes]
        return [[r[a:b] for a, b in pairwise(start)] for r, start in zip(whole, self.starts, strict=True)]


class _GraphWalk:
    """Search of a graph, task by task, for the only layer with an expression below an array."""

    def __init__(self, array: da.Array, deep: bool) -> None:
        self.array, self.deep = array, deep
        self.graph = array.dask
        self.layers = self.graph.layers
        self.seen: dict[Any, BlockPart] = {}
        self._base: tuple[str, _Base] | None = None
        self._others: set[str] = set()

    def _base_at(self, name: str) -> _Base | None:
        if self._base is not None and self._base[0] == name:
            return self._base[1]
        if name in self._others:
            return None
        found = _find_base(self.graph, name, self.array.dtype)
        if found is None:
            self._others.add(name)
            return None
        if self._base is not None:
            raise UnknownMoveError  # The array combines several arrays.
        self._base = (name, found)
        return found

    def part(self, key: Any, layer: Mapping[Any, Any] | None = None) -> BlockPart:
        """Return the part of the base array that the value of a key of the graph contains."""
        if key in self.seen:
            return self.seen[key]
        if not isinstance(key, tuple):
            raise UnknownMoveError
        base = self._base_at(key[0])
        if base is not None:
            return base.part(key[1:])
        above = None
        if layer is None or key not in layer:
            above, layer = layer, self.layers.get(key[0])
        try:
            if isinstance(layer, Blockwise):
                found = self._transposed_part(key, layer)
            elif layer is None or key not in layer:
                raise UnknownMoveError
            else:
                found = self._moved_part(layer[key], layer)
        except UnknownMoveError:
            if above is None or not self.deep:
                raise
            self._base = (key[0], self._rechunked_base(key[0], above))
            return self._base[1].part(key[1:])
        self.seen[key] = found
        return found

    def _rechunked_base(self, name: str, above: Mapping[Any, Any]) -> _Base:
        """Return the blocks before a rechunking of another dask array.

        Their sizes follow from the pieces that the rechunking cuts them into.
        """
        known = self._base is None and name in self.layers
        if not known or not all(str(key[0]).startswith("rechunk-") for key in above):
            raise UnknownMoveError
        sizes: list[dict[int, int]] = [{} for _ in range(self.array.ndim)]
        for task in above.values():
            if getattr(task, "func", None) is not getitem:
                continue
            key = _referenced_key(task.args[0])
            for size, i, piece in zip(sizes, key[1:] if key[0] == name else (), task.args[1], strict=False):
                size[i] = max(size.get(i, 0), int(piece.stop))
        # A block without a piece is empty, so the number of blocks follows from the keys.
        indexes = [key[1:] for key in self.layers[name].get_output_keys() if isinstance(key, tuple) and key[0] == name]
        counts = [max(along) + 1 for along in zip(*indexes, strict=True)]
        splits = tuple(tuple(size.get(i, 0) for i in range(n)) for size, n in zip(sizes, counts, strict=False))
        if tuple(map(sum, splits)) != self.array.shape:
            raise UnknownMoveError
        return _input_base(self.graph, name, splits, self.array.dtype)

    def _transposed_part(self, key: Any, layer: Blockwise) -> BlockPart:
        task = layer.task
        if getattr(task, "func", None) is not np.transpose or len(layer.indices) != 1:
            raise UnknownMoveError
        below, letters = layer.indices[0]
        order, out = task.kwargs.get("axes"), list(layer.output_indices)
        if order is None or not isinstance(below, str) or letters is None or layer.new_axes:
            raise UnknownMoveError
        index = tuple(key[1:][out.index(letter)] for letter in letters)
        inner = self.part((below, *index))
        return BlockPart(inner.ranges, tuple(inner.axes[a] for a in order))

    def _moved_part(self, task: Any, layer: Mapping[Any, Any]) -> BlockPart:
        target = getattr(task, "target", None)  # Only an alias has a target.
        if target is not None:
            return self.part(target, layer)
        function, arguments = getattr(task, "func", None), list(getattr(task, "args", ()))
        if function is getitem and len(arguments) == 2:
            return slice_part(self.part(_referenced_key(arguments[0]), layer), arguments[1])
        if function is _getitem and len(arguments) == 2:
            return slice_part(self.part(_referenced_key(arguments[0]), layer), _layer_value(layer, arguments[1])[1])
        if function is concatenate_arrays and len(arguments) == 3:
            parts = [self.part(_referenced_key(part), layer) for part in _sequence_items(arguments[0])]
            return shuffle_parts(parts, np.argsort(_layer_value(layer, arguments[1])[1]), int(arguments[2]))
        if function is concatenate_shaped and len(arguments) == 2:
            parts = [self.part(_referenced_key(part), layer) for part in _sequence_items(arguments[0])]
            return join_parts(parts, tuple(int(n) for n in _sequence_items(arguments[1])))
        raise UnknownMoveError

    def recover(self, dims: Sequence[str], tail: Sequence[str]) -> RecoveredArray:
        """Return the expression of the array, in terms of the base."""
        array = self.array
        self.part((array.name, *(0 for _ in array.shape)))
        assert self._base is not None
        name, base = self._base
        if name == array.name:
            whole = BlockPart(base.ranges, base.axes)
        else:
            counts = array.numblocks
            whole = join_parts([self.part((array.name, *i)) for i in product(*map(range, counts))], counts)
        if whole.shape != array.shape or base.expr.dtype != array.dtype or len(base.expr.tail) != len(tail):
            raise UnknownMoveError
        if whole.ranges[3:] != tuple(map(range, base.expr.tail)) or not whole.has_names(dims, tail):
            raise UnknownMoveError
        complete = whole.ranges == base.ranges and all(r == range(len(r)) for r in base.ranges)
        expr = base.expr if complete else expr_at_ranges(base.expr, whole.ranges[:3])
        if expr is None:
            raise UnknownMoveError
        return RecoveredArray(expr, base.dask_inputs, _visible_splits(base, whole), base.is_whole_input and complete)


def _visible_splits(base: _Base, whole: BlockPart) -> Splits:
    """Return the sizes of the base's blocks, within the part of the base that the array contains."""
    splits = []
    for axis in range(3):
        shown, below = whole.ranges[axis], base.ranges[axis]
        v = base.axes.index(axis) if axis in base.axes else None
        starts = (0, len(below)) if v is None else base.starts[v]
        edges = [below.start + e * below.step for e in starts[1:-1]]
        cuts = {min(max(-((shown.start - e) // shown.step), 0), len(shown)) for e in edges} | {0, len(shown)}
        inner = sorted(cuts)
        splits.append(tuple(b - a for a, b in pairwise(inner)))
    return tuple(splits)


def _referenced_key(reference: Any) -> Any:
    key = getattr(reference, "key", None)
    target = getattr(reference, "target", None)
    if target is None and key is None:
        raise UnknownMoveError
    return key if target is None else target


def _layer_value(layer: Mapping[Any, Any], reference: Any) -> Any:
    """Return a value that dask stores among the tasks of a layer."""
    key = getattr(reference, "key", None)
    value = layer.get(key)
    value = getattr(value, "value", value)
    if not isinstance(value, tuple) or len(value) != 2:
        raise UnknownMoveError
    return value


def _sequence_items(sequence: Any) -> list[Any]:
    sequence = getattr(sequence, "value", sequence)
    if isinstance(sequence, tuple | list):
        return list(sequence)
    inner = getattr(sequence, "args", None)
    if inner is None:
        raise UnknownMoveError
    return list(inner)


def _find_base(graph: HighLevelGraph, name: str, dtype: Any) -> _Base | None:
    layer = graph.layers.get(name)
    if isinstance(layer, DaskInputLayer):
        leaves = {leaf.name: leaf for leaf in dask_leaves(layer.expr)}
        dask_inputs = {name: _array_of(graph, leaf) for name, leaf in leaves.items()}
        return _plain_base(layer.expr, dask_inputs, layer.splits)
    for dep in getattr(layer, "io_deps", {}).values():
        if isinstance(dep, BoxDep):
            return _plain_base(dep.expr, {}, dep.splits)
        if isinstance(dep, ArraySliceDep) and isinstance(layer, Blockwise):
            return _sliced_base(graph, name, layer, dep, dtype)
    if isinstance(layer, MaterializedLayer):
        return _in_memory_base(graph, name, layer, dtype)
    return None


def _plain_base(expr: Expr, dask_inputs: dict[str, da.Array], splits: Splits, *, is_whole_input: bool = False) -> _Base:
    starts = block_starts(_all_splits(expr, splits))
    ranges = tuple(range(s[-1]) for s in starts)
    if expr.lead:
        # Expressions with leading axes are not recovered.
        raise UnknownMoveError
    return _Base(expr, dask_inputs, starts, ranges, tuple(range(len(ranges))), is_whole_input)


def _sliced_base(graph: HighLevelGraph, name: str, layer: Blockwise, dep: ArraySliceDep, dtype: Any) -> _Base | None:
    """Return the base of blocks that are slices of one object, as in `dask.array.from_array`."""
    whole = [below for below, letters in layer.indices if letters is None]
    if len(whole) != 1:
        return None
    key = getattr(whole[0], "key", None)
    value = whole[0] if key is None else graph.layers.get(key, {}).get(key)
    view: ExprView | None = expr_view(getattr(value, "value", value))
    if view is None:
        return _input_base(graph, name, dep.chunks, dtype)
    starts = block_starts(dep.chunks)
    return _Base(view.expr, {}, starts, view.ranges, view.axes)


def _in_memory_base(graph: HighLevelGraph, name: str, layer: MaterializedLayer, dtype: Any) -> _Base | None:
    """Return the base of blocks that are in memory."""
    if not all(isinstance(getattr(v, "value", v), np.ndarray) for v in layer.values()):
        return None
    blocks = {key[1:]: getattr(v, "value", v) for key, v in layer.items() if isinstance(key, tuple) and key[0] == name}
    if not blocks:
        return None
    ndim = len(next(iter(blocks)))
    counts = [max(along) + 1 for along in zip(*blocks, strict=True)]
    splits = []
    for axis, n in enumerate(counts):
        line = [blocks.get(tuple(i if a == axis else 0 for a in range(ndim))) for i in range(n)]
        sizes = [block.shape[axis] for block in line if isinstance(block, np.ndarray) and block.ndim == ndim]
        if len(sizes) < n:
            return None
        splits.append(tuple(sizes))
    return _input_base(graph, name, tuple(splits), dtype)


def _input_base(graph: HighLevelGraph, name: str, splits: Splits, dtype: Any) -> _Base:
    if len(splits) < 3 or any(len(s) > 1 for s in splits[3:]):
        raise UnknownMoveError
    z, y, x, *tail = map(sum, splits)
    leaf = DaskLeaf(name, str(dtype), (z, y, x), splits[:3], tail=tuple(tail))
    return _plain_base(leaf, {name: _array_of(graph, leaf)}, leaf.splits, is_whole_input=True)


def _array_of(graph: HighLevelGraph, leaf: DaskLeaf) -> da.Array:
    below = graph.cull_layers([leaf.name])
    return da.Array(below, leaf.name, _all_splits(leaf, leaf.splits), dtype=leaf.dtype)


def _all_splits(expr: Expr, splits: Splits) -> Splits:
    return (*((n,) for n in expr.lead), *splits, *((n,) for n in expr.tail))
