"""Recover the expression behind a dask array that xarray or dask only sliced, transposed or rechunked.

Their indexing and rechunking put tasks on an array that only move voxels. Followed task by task these give the indexes
of the array below that this one shows, exactly, or nothing is recovered.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import Alias
from dask.array._shuffle import _getitem, concatenate_arrays
from dask.array.chunk import getitem
from dask.array.core import concatenate_shaped
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArraySliceDep

from imageryxr.core.bbox import DIMS
from imageryxr.graph.expr import Clipped, DaskLeaf, Expr, Leaf, replace_leaves
from imageryxr.graph.index_ranges import UnknownMoveError, Window, join_windows, shuffle_windows, slice_window
from imageryxr.graph.lazy_indexing import ExprView, Ranges, expr_at_ranges, expr_view
from imageryxr.graph.to_dask import BoxDep, DaskInputLayer, DaskInputs, Splits, dask_leaves


@dataclass(frozen=True)
class RecoveredArray:
    """The expression (z, y, x) of a dask array, and the foreign arrays in it."""

    expr: Expr
    dask_inputs: dict[str, da.Array]
    splits: Splits
    """Sizes of the blocks (z, y, x) below, as they fall in the array."""
    foreign: bool
    """Whether the expression is nothing but foreign blocks, all of which the array shows."""


def recover_expr(
    array: da.Array, dims: Sequence[str], tail: Sequence[str] = (), *, deep: bool = False
) -> RecoveredArray | None:
    """Return the expression of a dask array that is a part of one in steps of any size; None if it is none.

    The expression covers what lies beyond the part.

    Parameters
    ----------
    array : dask Array
        Of any order of axes; z, y or x may have been dropped.
    dims : sequence of str
        Names of the axes.
    tail : sequence of str
        Names of those behind (z, y, x).
    deep : bool
        Whether to look below a rechunking of foreign blocks, too: those are costly, not what it makes of them.
    """
    key = (id(array.dask), array.name, tuple(dims), tuple(tail), deep)
    known = _CACHE.get(key)
    if known is not None and known[0]() is array.dask:
        return known[1]
    try:
        found: RecoveredArray | None = _GraphWalk(_without_p2p(array), deep).cut(dims, tail)
    except UnknownMoveError:
        found = None
    # An entry goes with the graph that it is about, and so do the blocks that it refers to.
    _CACHE[key] = weakref.ref(array.dask, lambda _: _CACHE.pop(key, None)), found
    return found


_CACHE: dict[Any, tuple[weakref.ref[HighLevelGraph], RecoveredArray | None]] = {}


def recover_inputs(expr: Expr, dask_inputs: DaskInputs) -> tuple[Expr, dict[str, da.Array]]:
    """Return an expression in which foreign arrays that are only parts of another are that one, however far below.

    Voxels and bounds stay as they were: an array ends where it ends, whatever its expression covers beyond.

    Parameters
    ----------
    expr : Expr
        Whose `DaskLeaf` leaves stand for dask arrays.
    dask_inputs : mapping
        These arrays, by name.
    """
    kept: dict[str, da.Array] = {}

    def known(leaf: Leaf) -> Expr:
        if not isinstance(leaf, DaskLeaf):
            return leaf
        array = _without_p2p(dask_inputs[leaf.name])
        tail = [f"tail{i}" for i in range(len(leaf.tail))]
        found = None if leaf.lead else recover_expr(array, (*DIMS, *tail), tail, deep=True)
        if found is None or found.expr == leaf:
            kept[leaf.name] = array
            return leaf
        inner, below = recover_inputs(found.expr, found.dask_inputs)
        kept.update(below)
        return inner if leaf.bounds.contains(inner.bounds) else Clipped(inner, leaf.bounds)

    return replace_leaves(expr, known), kept


def _without_p2p(array: da.Array) -> da.Array:
    """Return an array whose blocks no cluster shuffles: a region needs few of them, wherever it is computed."""
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
# what lies below tasks that only move voxels


@dataclass(frozen=True)
class _Base:
    """The layer with an expression that others stand on."""

    expr: Expr
    dask_inputs: dict[str, da.Array]
    starts: Splits
    """Where blocks begin and, at the end, where the last one ends, along each axis of the layer's array."""
    ranges: Ranges
    """What the layer's array shows of the expression."""
    axes: tuple[int | None, ...]
    foreign: bool = False

    def shown(self, index: Sequence[int]) -> Window:
        ranges = list(self.ranges)
        for pieces, i, axis in zip(self._pieces, index, self.axes, strict=True):
            if axis is not None:
                ranges[axis] = pieces[i]
        return Window(tuple(ranges), self.axes)

    @cached_property
    def _pieces(self) -> list[list[range]]:
        whole = [range(1) if axis is None else self.ranges[axis] for axis in self.axes]
        return [[r[a:b] for a, b in pairwise(start)] for r, start in zip(whole, self.starts, strict=True)]


class _GraphWalk:
    """Follows the tasks of a graph down to the layer with an expression, of which there must be one."""

    def __init__(self, array: da.Array, deep: bool) -> None:
        self.array, self.deep = array, deep
        self.graph = array.dask
        self.layers = self.graph.layers
        self.seen: dict[Any, Window] = {}
        self._base: tuple[str, _Base] | None = None
        self._others: set[str] = set()

    def _expression(self, name: str) -> _Base | None:
        if self._base is not None and self._base[0] == name:
            return self._base[1]
        if name in self._others:
            return None
        found = _find_base(self.graph, name, self.array.dtype)
        if found is None:
            self._others.add(name)
            return None
        if self._base is not None:
            raise UnknownMoveError  # several arrays put together
        self._base = (name, found)
        return found

    def shown(self, key: Any, layer: Mapping[Any, Any] | None = None) -> Window:
        """Return what a key's value shows of the base."""
        if key in self.seen:
            return self.seen[key]
        if not isinstance(key, tuple):
            raise UnknownMoveError
        base = self._expression(key[0])
        if base is not None:
            return base.shown(key[1:])
        above = None
        if layer is None or key not in layer:
            above, layer = layer, self.layers.get(key[0])
        try:
            if isinstance(layer, Blockwise):
                found = self._transposed(key, layer)
            elif layer is None or key not in layer:
                raise UnknownMoveError
            else:
                found = self._moved(layer[key], layer)
        except UnknownMoveError:
            if above is None or not self.deep:
                raise
            self._base = (key[0], self._rechunked(key[0], above))
            return self._base[1].shown(key[1:])
        self.seen[key] = found
        return found

    def _rechunked(self, name: str, above: Mapping[Any, Any]) -> _Base:
        """Return the blocks of a foreign array below a rechunking: what is costly are these, not what it makes of them.

        Their sizes follow from the pieces that it cuts them into.
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
        # of a block without a voxel there is no piece
        indexes = [key[1:] for key in self.layers[name].get_output_keys() if isinstance(key, tuple) and key[0] == name]
        counts = [max(along) + 1 for along in zip(*indexes, strict=True)]
        splits = tuple(tuple(size.get(i, 0) for i in range(n)) for size, n in zip(sizes, counts, strict=False))
        if tuple(map(sum, splits)) != self.array.shape:
            raise UnknownMoveError
        return _foreign_base(self.graph, name, splits, self.array.dtype)

    def _transposed(self, key: Any, layer: Blockwise) -> Window:
        task = layer.task
        if getattr(task, "func", None) is not np.transpose or len(layer.indices) != 1:
            raise UnknownMoveError
        below, letters = layer.indices[0]
        order, out = task.kwargs.get("axes"), list(layer.output_indices)
        if order is None or not isinstance(below, str) or letters is None or layer.new_axes:
            raise UnknownMoveError
        index = tuple(key[1:][out.index(letter)] for letter in letters)
        inner = self.shown((below, *index))
        return Window(inner.ranges, tuple(inner.axes[a] for a in order))

    def _moved(self, task: Any, layer: Mapping[Any, Any]) -> Window:
        target = getattr(task, "target", None)  # of an alias
        if target is not None:
            return self.shown(target, layer)
        function, arguments = getattr(task, "func", None), list(getattr(task, "args", ()))
        if function is getitem and len(arguments) == 2:
            return slice_window(self.shown(_referenced_key(arguments[0]), layer), arguments[1])
        if function is _getitem and len(arguments) == 2:
            return slice_window(self.shown(_referenced_key(arguments[0]), layer), _layer_value(layer, arguments[1])[1])
        if function is concatenate_arrays and len(arguments) == 3:
            parts = [self.shown(_referenced_key(part), layer) for part in _sequence_items(arguments[0])]
            return shuffle_windows(parts, np.argsort(_layer_value(layer, arguments[1])[1]), int(arguments[2]))
        if function is concatenate_shaped and len(arguments) == 2:
            parts = [self.shown(_referenced_key(part), layer) for part in _sequence_items(arguments[0])]
            return join_windows(parts, tuple(int(n) for n in _sequence_items(arguments[1])))
        raise UnknownMoveError

    def cut(self, dims: Sequence[str], tail: Sequence[str]) -> RecoveredArray:
        """Return the expression of the array, which stands on the base."""
        array = self.array
        self.shown((array.name, *(0 for _ in array.shape)))
        assert self._base is not None
        name, base = self._base
        if name == array.name:
            whole = Window(base.ranges, base.axes)
        else:
            counts = array.numblocks
            whole = join_windows([self.shown((array.name, *i)) for i in product(*map(range, counts))], counts)
        lengths = tuple(_axis_length(whole, v) for v in range(array.ndim))
        if lengths != array.shape or base.expr.dtype != array.dtype or len(base.expr.tail) != len(tail):
            raise UnknownMoveError
        if whole.ranges[3:] != tuple(map(range, base.expr.tail)) or not _has_axis_names(whole, dims, (*DIMS, *tail)):
            raise UnknownMoveError
        complete = whole.ranges == base.ranges and all(r == range(len(r)) for r in base.ranges)
        expr = base.expr if complete else expr_at_ranges(base.expr, whole.ranges[:3])
        if expr is None:
            raise UnknownMoveError
        return RecoveredArray(expr, base.dask_inputs, _visible_splits(base, whole), base.foreign and complete)


def _has_axis_names(shown: Window, dims: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether each axis of an array has the name that it has in the expression."""
    for dim, axis in zip(dims, shown.axes, strict=True):
        # an axis of its own is one that was dropped and put back
        if axis is None and (dim not in DIMS or DIMS.index(dim) in shown.axes):
            return False
        if axis is not None and dim != names[axis]:
            return False
    return all(axis in shown.axes for axis in range(3, len(names)))


def _axis_length(shown: Window, v: int) -> int:
    axis = shown.axes[v]
    return 1 if axis is None else len(shown.ranges[axis])


def _visible_splits(base: _Base, whole: Window) -> Splits:
    """Return the sizes of the base's blocks, as they fall in what is shown of it."""
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
    """Return a value that dask keeps beside the tasks of a layer."""
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


def _plain_base(expr: Expr, dask_inputs: dict[str, da.Array], splits: Splits, *, foreign: bool = False) -> _Base:
    starts = _starts(expr, splits)
    ranges = tuple(range(s[-1]) for s in starts)
    if expr.lead:
        # only known as what nothing is recovered of
        raise UnknownMoveError
    return _Base(expr, dask_inputs, starts, ranges, tuple(range(len(ranges))), foreign)


def _sliced_base(graph: HighLevelGraph, name: str, layer: Blockwise, dep: ArraySliceDep, dtype: Any) -> _Base | None:
    """Return blocks that are slices of one object, as `dask.array.from_array` makes them."""
    whole = [below for below, letters in layer.indices if letters is None]
    if len(whole) != 1:
        return None
    key = getattr(whole[0], "key", None)
    value = whole[0] if key is None else graph.layers.get(key, {}).get(key)
    shown: ExprView | None = expr_view(getattr(value, "value", value))
    if shown is None:
        return _foreign_base(graph, name, dep.chunks, dtype)
    starts = tuple((0, *accumulate(s)) for s in dep.chunks)
    return _Base(shown.expr, {}, starts, shown.ranges, shown.axes)


def _in_memory_base(graph: HighLevelGraph, name: str, layer: MaterializedLayer, dtype: Any) -> _Base | None:
    """Return blocks that are in memory."""
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
    return _foreign_base(graph, name, tuple(splits), dtype)


def _foreign_base(graph: HighLevelGraph, name: str, splits: Splits, dtype: Any) -> _Base:
    if len(splits) < 3 or any(len(s) > 1 for s in splits[3:]):
        raise UnknownMoveError
    z, y, x, *tail = map(sum, splits)
    leaf = DaskLeaf(name, str(dtype), (z, y, x), splits[:3], tail=tuple(tail))
    return _plain_base(leaf, {name: _array_of(graph, leaf)}, leaf.splits, foreign=True)


def _array_of(graph: HighLevelGraph, leaf: DaskLeaf) -> da.Array:
    below = graph.cull_layers([leaf.name])
    return da.Array(below, leaf.name, _all_splits(leaf, leaf.splits), dtype=leaf.dtype)


def _all_splits(expr: Expr, splits: Splits) -> Splits:
    return (*((n,) for n in expr.lead), *splits, *((n,) for n in expr.tail))


def _starts(expr: Expr, splits: Splits) -> Splits:
    return tuple((0, *accumulate(s)) for s in _all_splits(expr, splits))
