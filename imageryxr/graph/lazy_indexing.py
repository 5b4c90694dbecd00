"""Wrap expressions as xarray's lazily indexed arrays, and recover the expression of such an array after indexing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dask.base import normalize_token
from xarray.backends import BackendArray
from xarray.core import indexing

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import Array, Expr, shift_expr, widen_to
from imageryxr.graph.selection import Indexes, Strided, read_broadcast

Ranges = tuple[range, ...]


class LazyExprArray(BackendArray):
    """Backend array of an expression, which reads only what is indexed, and only when it is indexed."""

    def __init__(self, expr: Expr, shape: Index3) -> None:
        self.expr = expr
        self.shape = shape
        self.dtype = expr.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        """Read the selected values, from the storage chunks that contain them and no others."""
        if isinstance(key, indexing.VectorizedIndexer):
            places = _broadcast_key(key.tuple, self.shape)
            shape = np.broadcast_shapes(*(p.shape for p in places))
            found = read_broadcast(self.expr, [_drop_constant_dims(p) for p in places])
            return found if found.shape == shape else np.broadcast_to(found, shape).copy()
        dropped = tuple(axis for axis, item in enumerate(key.tuple) if isinstance(item, int | np.integer))
        ranges = [_axis_range(item, size) for item, size in zip(key.tuple, self.shape, strict=True)]
        if all(r is not None and r.step == 1 for r in ranges):
            start, stop = zip(*((r.start, r.stop) for r in ranges if r is not None), strict=True)
            found = evaluate(self.expr, IndexBox(start, stop))
        else:
            along = [_axis_indexes(item, size) for item, size in zip(key.tuple, self.shape, strict=True)]
            outer = [p.reshape([-1 if i == axis else 1 for i in range(3)]) for axis, p in enumerate(along)]
            found = read_broadcast(self.expr, outer)
        return found.reshape([n for axis, n in enumerate(found.shape) if axis not in dropped])

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.LazyExprArray", normalize_token(self.expr), self.shape)


class IndexedExprArray(indexing.LazilyIndexedArray):
    """Record how a `LazyExprArray` is indexed."""

    __slots__ = ()

    def transpose(self, order: tuple[int, ...]) -> Any:
        """Return the array with its dims in another order."""
        return _PointIndexedExprArray(self.array, self.key).transpose(order)  # type: ignore[no-untyped-call]

    def _vindex_get(self, indexer: indexing.VectorizedIndexer) -> Any:
        return _PointIndexedExprArray(self.array, self.key).vindex[indexer]


class _PointIndexedExprArray(indexing.LazilyVectorizedIndexedArray):
    __slots__ = ()

    def __getitem__(self, indexer: indexing.ExplicitIndexer) -> Any:
        if not all(isinstance(item, int | np.integer) for item in indexer.tuple):
            return super().__getitem__(indexer)
        # xarray (2026.9) indexes each key with all of the integers, but a key has length 1 along dims of other axes.
        keys = (int(key[indexer.tuple]) for key in np.broadcast_arrays(*self.key.tuple))
        return IndexedExprArray(self.array, indexing.BasicIndexer(tuple(keys)))


class CachedExprArray(indexing.MemoryCachedArray):
    """Cache of a lazily indexed array, which also keeps that array, so that loaded values have a known place."""

    __slots__ = ("stored",)

    def __init__(self, array: Any, stored: Any = None) -> None:
        super().__init__(array)  # type: ignore[no-untyped-call]
        self.stored = array if stored is None else stored

    def _oindex_get(self, indexer: indexing.OuterIndexer) -> Any:
        return CachedExprArray(self.array.oindex[indexer], self.stored.oindex[indexer])

    def _vindex_get(self, indexer: indexing.VectorizedIndexer) -> Any:
        return CachedExprArray(self.array.vindex[indexer], self.stored.vindex[indexer])

    def __getitem__(self, indexer: indexing.ExplicitIndexer) -> Any:
        return CachedExprArray(self.array[indexer], self.stored[indexer])


def cached_array(expr: Expr, shape: Index3) -> Any:
    """Return the lazily indexed array of an expression, which xarray caches when it is read."""
    return indexing.CopyOnWriteArray(CachedExprArray(IndexedExprArray(LazyExprArray(expr, shape))))  # type: ignore[arg-type]


def _axis_indexes(item: Any, size: int) -> Indexes:
    if isinstance(item, slice):
        return np.arange(*item.indices(size), dtype=np.int64)
    places = np.atleast_1d(np.asarray(item))
    places = np.flatnonzero(places) if places.dtype == np.bool_ else places.astype(np.int64)
    return np.where(places < 0, places + size, places)


def _axis_range(item: Any, size: int) -> range | None:
    """Return the range of the indexes along an axis, or None if the indexes are not evenly spaced."""
    if not isinstance(item, slice):
        return as_range(_axis_indexes(item, size))
    found = range(*item.indices(size))
    step = found.step if len(found) > 1 else 1
    return range(found[0], found[-1] + step, step) if found else range(0)


def _broadcast_key(key: tuple[Any, ...], shape: Index3) -> list[Indexes]:
    """Return a vectorized key as arrays that broadcast, with the dims of its slices after those of its arrays."""
    slices = [axis for axis, item in enumerate(key) if isinstance(item, slice)]
    before = max((np.ndim(item) for item in key if not isinstance(item, slice)), default=0)
    found = []
    for axis, (item, size) in enumerate(zip(key, shape, strict=True)):
        if isinstance(item, slice):
            after = [-1 if axis == other else 1 for other in slices]
            found.append(_axis_indexes(item, size).reshape([1] * before + after))
        else:
            places = np.asarray(item, dtype=np.int64)
            places = np.where(places < 0, places + size, places)
            found.append(places.reshape((*places.shape, *(1 for _ in slices))))
    return found


def _drop_constant_dims(places: Indexes) -> Indexes:
    """Return indexes with length 1 along constant dims, if they vary along at most one dim.

    xarray broadcasts the keys of a transposed array to its full shape.
    """
    if places.ndim < 2 or not places.size:
        return places
    first = [places[tuple(slice(None) if d == dim else 0 for d in range(places.ndim))] for dim in range(places.ndim)]
    vary = [dim for dim, line in enumerate(first) if (line != line[0]).any()]
    if len(vary) > 1:
        return places
    line = places[tuple(slice(None) if d in vary else slice(0, 1) for d in range(places.ndim))]
    return line if (places == line).all() else places


def as_range(places: Indexes) -> range | None:
    """Return evenly spaced indexes as a range; None for other indexes."""
    if not len(places):
        return range(0)
    first = int(places[0])
    if len(places) == 1:
        return range(first, first + 1)
    step = int(places[1]) - first
    return range(first, int(places[-1]) + step, step) if step and (np.diff(places) == step).all() else None


# ---------------------------------------------------------------------------------------------------------
# recovering the expression


@dataclass(frozen=True)
class ExprView:
    """The part of an expression that an array contains."""

    expr: Expr
    ranges: Ranges
    """Indexes of the expression, along each of its axes."""
    axes: tuple[int | None, ...]
    """The axis of the expression for each axis of the array; None for an inserted axis. Missing axes have one index."""


def unwrap(data: Any) -> Any:
    """Return the array within xarray's wrappers, such as caches, which contain a numpy array once it is loaded."""
    wrappers = (
        indexing.CopyOnWriteArray,
        indexing.MemoryCachedArray,
        indexing.NumpyIndexingAdapter,
        indexing.ImplicitToExplicitIndexingAdapter,
    )
    while isinstance(data, wrappers):
        data = data.array
    return data


def stored_view(data: Any) -> ExprView | None:
    """Return the part of an expression that an array contains as `expr_view`, also if its values have been cached."""
    data = data.array if isinstance(data, indexing.CopyOnWriteArray) else data
    return expr_view(data.stored if isinstance(data, CachedExprArray) else data)


def expr_view(data: Any) -> ExprView | None:
    """Return the part of an expression that a lazily indexed array contains; None for any other array.

    Ranges may have any step, including negative ones.
    """
    data = unwrap(data)
    inner = getattr(data, "array", None)
    if not isinstance(data, indexing.LazilyIndexedArray | indexing.LazilyVectorizedIndexedArray):
        return None
    if not isinstance(inner, LazyExprArray):
        return None
    if isinstance(data.key, indexing.VectorizedIndexer):
        return _vectorized_view(inner, data.key.tuple)
    found = [_axis_range(item, n) for item, n in zip(data.key.tuple, inner.shape, strict=True)]
    ranges = tuple(r for r in found if r is not None)
    if len(ranges) < 3:
        return None
    axes = tuple(a for a, item in enumerate(data.key.tuple) if not isinstance(item, int | np.integer))
    return ExprView(inner.expr, ranges, axes)


def _vectorized_view(inner: LazyExprArray, key: tuple[Any, ...]) -> ExprView | None:
    # The keys of a transposed array broadcast to its shape, and each of them varies along one dim.
    arrays = [_drop_constant_dims(places) for places in _broadcast_key(key, inner.shape)]
    ndim = max(a.ndim for a in arrays)
    axes: list[int | None] = [None] * ndim
    ranges = []
    for axis, array in enumerate(arrays):
        along = [ndim - array.ndim + d for d, n in enumerate(array.shape) if n != 1]
        found = as_range(array.ravel()) if len(along) < 2 else None
        if found is None or any(axes[d] is not None for d in along):
            return None
        for d in along:
            axes[d] = axis
        ranges.append(found)
    return ExprView(inner.expr, tuple(ranges), tuple(axes))


def expr_at_ranges(expr: Expr, ranges: Ranges) -> Expr | None:
    """Return the part of an expression at index ranges (z, y, x); None if a range is empty or descends.

    Halos of the result can read the data beyond the ranges.
    """
    if any(r.step < 1 or not len(r) for r in ranges):
        return None
    z, y, x = ranges
    start, step = (z.start, y.start, x.start), (z.step, y.step, x.step)
    moved = shift_expr(expr, start) if step == (1, 1, 1) else Strided(expr, start, step)
    return widen_to(moved, IndexBox((0, 0, 0), (len(z), len(y), len(x))))


@normalize_token.register(xr.Variable)  # type: ignore[untyped-decorator]
def _variable_token(variable: xr.Variable) -> object:
    """Return the token of a variable; xarray's own would read all voxels of a lazy array."""
    data = variable._data
    inner = getattr(unwrap(data), "array", None)
    if isinstance(inner, LazyExprArray):
        key = unwrap(data).key.tuple
        return normalize_token(("imageryxr.variable", variable._dims, inner, key, variable._attrs))
    return variable.__dask_tokenize__()
