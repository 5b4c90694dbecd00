"""Recipes below what xarray did to them: of a dask array that is a box of one, the recipe.

xarray's own indexing and rechunking put tasks on an array that only move voxels. Followed task by task they tell which
box of the array below this one is, and that is exact, or nothing is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import Alias
from dask.array.chunk import getitem
from dask.array.core import concatenate_shaped
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from imageryxr.boxes import IndexBox
from imageryxr.expr import Clipped, Expr, GivenLeaf, Leaf, shifted, with_leaves
from imageryxr.lazy import BoxDep, GivenLayer, Givens, Splits, given_leaves

Span = tuple[int, int]
# Boxes here have all axes of a block, those before and behind (z, y, x) too.
Spans = tuple[Span, ...]


def recovered(expr: Expr, givens: Givens, *, ended: bool = True) -> tuple[Expr, dict[str, da.Array]]:
    """Return an expression in which foreign arrays that are only boxes of a recipe are that recipe.

    Voxels and bounds stay as they were: an array ends where it ends, whatever its recipe knows beyond.

    Parameters
    ----------
    expr : Expr
        Whose `GivenLeaf` leaves stand for dask arrays.
    givens : mapping
        These arrays, by name.
    ended : bool, default True
        Whether that holds for an expression, too, that is nothing but a foreign array. False where nobody will look
        beyond it: what dask did not cut is the very recipe then, as a verb gave it.
    """
    kept: dict[str, da.Array] = {}

    def known(leaf: Leaf) -> Expr:
        if not isinstance(leaf, GivenLeaf):
            return leaf
        array = _by_tasks(givens[leaf.name])
        found = _recipe_of(array)
        if found is None or found[0].lead != leaf.lead or found[0].tail != leaf.tail or found[0].dtype != leaf.dtype:
            kept[leaf.name] = array
            return leaf
        inner, below = recovered(*found)
        kept.update(below)
        if leaf.bounds.contains(inner.bounds) or (leaf is expr and not ended):
            return inner
        return Clipped(inner, leaf.bounds)

    return with_leaves(expr, known), kept


def _by_tasks(array: da.Array) -> da.Array:
    """Return an array whose blocks no cluster shuffles: a region asks for a few of them, wherever it is made."""
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
# recipes below tasks that only move


@dataclass(frozen=True)
class _Base:
    """The layer with a recipe that others stand on."""

    expr: Expr
    givens: dict[str, da.Array]
    starts: Splits
    """Where blocks begin and, at the end, where the last one ends, along each axis."""

    def spans(self, index: Sequence[int]) -> Spans:
        return tuple((s[i], s[i + 1]) for s, i in zip(self.starts, index, strict=True))


class _UnknownError(Exception):
    """A task does more than move voxels, or is not known."""


def _recipe_of(array: da.Array) -> tuple[Expr, dict[str, da.Array]] | None:
    """Return the recipe of a dask array that is a box of one, and the foreign arrays in it; None if it is none."""
    walk = _Walk(array)
    try:
        walk.spans((array.name, *(0 for _ in array.shape)))
        return walk.cut()
    except _UnknownError:
        return None


class _Walk:
    """Follows the tasks of a graph down to the layer with a recipe, of which there must be one."""

    def __init__(self, array: da.Array) -> None:
        self.array = array
        self.graph = array.dask
        self.layers = self.graph.layers
        self.seen: dict[Any, Spans] = {}
        self._base: tuple[str, _Base] | None = None

    def _recipe(self, name: str) -> _Base | None:
        if self._base is not None and self._base[0] == name:
            return self._base[1]
        found = _base_of(self.graph, name)
        if found is None:
            return None
        if self._base is not None:
            raise _UnknownError  # several arrays put together
        self._base = (name, found)
        return found

    def spans(self, key: Any, layer: Mapping[Any, Any] | None = None) -> Spans:
        """Return the box of the base that a key's value is."""
        if key in self.seen:
            return self.seen[key]
        if not isinstance(key, tuple):
            raise _UnknownError
        base = self._recipe(key[0])
        if base is not None:
            return base.spans(key[1:])
        above = None
        if layer is None or key not in layer:
            above, layer = layer, self.layers.get(key[0])
        try:
            if layer is None or isinstance(layer, Blockwise) or key not in layer:
                raise _UnknownError
            found = self._moved(layer[key], layer)
        except _UnknownError:
            if above is None:
                raise
            self._base = (key[0], self._rechunked(key[0], above))
            return self._base[1].spans(key[1:])
        self.seen[key] = found
        return found

    def _rechunked(self, name: str, above: Mapping[Any, Any]) -> _Base:
        """Return the blocks of a foreign array below a rechunking: what is costly are these, not what it makes of them.

        How large they are is told by the pieces that it cuts them into.
        """
        known = self._base is None and name in self.layers
        if not known or not all(str(key[0]).startswith("rechunk-") for key in above):
            raise _UnknownError
        sizes: list[dict[int, int]] = [{} for _ in range(self.array.ndim)]
        for task in above.values():
            if getattr(task, "func", None) is not getitem:
                continue
            key = _key(task.args[0])
            for size, i, piece in zip(sizes, key[1:] if key[0] == name else (), task.args[1], strict=False):
                size[i] = max(size.get(i, 0), int(piece.stop))
        # of a block without a voxel there is no piece
        indexes = [key[1:] for key in self.layers[name].get_output_keys() if isinstance(key, tuple) and key[0] == name]
        counts = [max(along) + 1 for along in zip(*indexes, strict=True)]
        splits = tuple(tuple(size.get(i, 0) for i in range(n)) for size, n in zip(sizes, counts, strict=False))
        if tuple(map(sum, splits)) != self.array.shape or any(len(s) > 1 for s in splits[3:]):
            raise _UnknownError
        z, y, x, *tail = self.array.shape
        leaf = GivenLeaf(name, str(self.array.dtype), (z, y, x), splits[:3], tail=tuple(tail))
        return _Base(leaf, {name: _array_of(self.graph, leaf)}, _starts(leaf, leaf.splits))

    def _moved(self, task: Any, layer: Mapping[Any, Any]) -> Spans:
        target = getattr(task, "target", None)  # of an alias
        if target is not None:
            return self.spans(target, layer)
        function, arguments = getattr(task, "func", None), list(getattr(task, "args", ()))
        if function is getitem and len(arguments) == 2:
            return _sliced(self.spans(_key(arguments[0]), layer), arguments[1])
        if function is concatenate_shaped and len(arguments) == 2:
            parts = [self.spans(_key(part), layer) for part in _items(arguments[0])]
            return _joined(parts, tuple(int(n) for n in _items(arguments[1])))
        raise _UnknownError

    def cut(self) -> tuple[Expr, dict[str, da.Array]]:
        """Return the expression of the array, which stands on the base."""
        assert self._base is not None
        (name, base), array = self._base, self.array
        if name == array.name:
            return base.expr, base.givens
        counts = array.numblocks
        if len(counts) != len(base.starts):
            raise _UnknownError
        whole = _joined([self.spans((array.name, *index)) for index in np.ndindex(*counts)], counts)
        if tuple(b - a for a, b in whole) != array.shape:
            raise _UnknownError
        first = len(base.expr.lead)
        around = (*whole[:first], *whole[first + 3 :])
        if around != tuple((0, n) for n in (*base.expr.lead, *base.expr.tail)):
            raise _UnknownError
        low = tuple(a for a, _ in whole[first : first + 3])
        shape = tuple(b - a for a, b in whole[first : first + 3])
        if not any(low) and shape == tuple(s[-1] for s in base.starts[first : first + 3]):
            return base.expr, base.givens
        box = IndexBox.of_shape(shape)
        moved = shifted(base.expr, low)
        return (moved if moved.bounds == box else Clipped(moved, box)), base.givens


def _key(reference: Any) -> Any:
    key = getattr(reference, "key", None)
    target = getattr(reference, "target", None)
    if target is None and key is None:
        raise _UnknownError
    return key if target is None else target


def _items(sequence: Any) -> list[Any]:
    sequence = getattr(sequence, "value", sequence)
    if isinstance(sequence, tuple | list):
        return list(sequence)
    inner = getattr(sequence, "args", None)
    if inner is None:
        raise _UnknownError
    return list(inner)


def _base_of(graph: HighLevelGraph, name: str) -> _Base | None:
    layer = graph.layers.get(name)
    if isinstance(layer, GivenLayer):
        leaves = {leaf.name: leaf for leaf in given_leaves(layer.expr)}
        givens = {name: _array_of(graph, leaf) for name, leaf in leaves.items()}
        return _Base(layer.expr, givens, _starts(layer.expr, layer.splits))
    for dep in getattr(layer, "io_deps", {}).values():
        if isinstance(dep, BoxDep):
            return _Base(dep.expr, {}, _starts(dep.expr, dep.splits))
    return None


def _array_of(graph: HighLevelGraph, leaf: GivenLeaf) -> da.Array:
    below = graph.cull_layers([leaf.name])
    return da.Array(below, leaf.name, _all_splits(leaf, leaf.splits), dtype=leaf.dtype)


def _all_splits(expr: Expr, splits: Splits) -> Splits:
    return (*((n,) for n in expr.lead), *splits, *((n,) for n in expr.tail))


def _starts(expr: Expr, splits: Splits) -> Splits:
    return tuple((0, *accumulate(s)) for s in _all_splits(expr, splits))


def _sliced(spans: Spans, index: Any) -> Spans:
    if not isinstance(index, tuple) or len(index) != len(spans) or not all(isinstance(i, slice) for i in index):
        raise _UnknownError
    found = []
    for (low, high), item in zip(spans, index, strict=True):
        start, stop, step = item.indices(high - low)
        if step != 1:
            raise _UnknownError
        found.append((low + start, low + max(start, stop)))
    return tuple(found)


def _joined(parts: list[Spans], counts: tuple[int, ...]) -> Spans:
    """Return the box of parts that lie side by side, in C order, so many along each axis."""
    grid = np.empty((len(parts), len(counts), 2), np.int64)
    grid[:] = parts
    grid = grid.reshape(*counts, len(counts), 2)
    spans = []
    for axis in range(len(counts)):
        along = np.moveaxis(grid[..., axis, :], axis, 0).reshape(counts[axis], -1, 2)
        first = along[:, :1]
        if (along != first).any() or (first[1:, 0, 0] != first[:-1, 0, 1]).any():
            raise _UnknownError
        spans.append((int(first[0, 0, 0]), int(first[-1, 0, 1])))
    return tuple(spans)
