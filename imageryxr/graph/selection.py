"""Select voxels of an expression: every n-th along each axis, or those at given indexes.

Only the storage chunks that contain selected voxels are read.

A selection is split into groups of axes that are indexed together. Three independent lists of indexes select planes
(orthogonal indexing), three lists along one dim select points, and two such lists with a slice select columns. All
selected voxels of one chunk are read in one call, so that each chunk is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.evaluate import evaluate, run_reads
from imageryxr.graph.expr import Array, Expr, SameValues
from imageryxr.graph.to_dask import BLOCK_VOXELS

Indexes = npt.NDArray[np.int64]

# One call reads parts in neighbouring chunks if it reads at most this many times the voxels of separate calls.
_SLACK = 1.25


@dataclass(frozen=True)
class Strided(SameValues):
    """Every n-th voxel of the child: index ``i`` here is index ``by + i * step`` of the child."""

    by: Index3
    step: Index3
    """Positive."""

    @property
    def bounds(self) -> IndexBox:
        """The indexes whose voxels lie within the child's bounds."""
        return self.box_from_child(self.child.bounds)

    def box_from_child(self, box: IndexBox) -> IndexBox:
        """Return the indexes whose voxels lie within a box of the child."""
        start = tuple(-((b - a) // s) for a, b, s in zip(box.start, self.by, self.step, strict=True))
        stop = tuple(-((b - a) // s) for a, b, s in zip(box.stop, self.by, self.step, strict=True))
        return IndexBox(start, stop)  # type: ignore[arg-type]

    @property
    def density(self) -> float:
        """The number of child voxels per voxel: voxels in between are read, but chunks without an index are not."""
        most = 1.0
        for axis, (first, step) in enumerate(zip(self.by, self.step, strict=True)):
            edges = self.child.edges(axis, first, first + step + 1)
            most *= step if not edges else min(step, _largest_gap(edges, first, first + step))
        return max(1.0, self.child.density * most)

    def needs(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the child's box from the first to the last selected voxel."""
        start = tuple(b + a * s for b, a, s in zip(self.by, box.start, self.step, strict=True))
        stop = tuple(b + (a - 1) * s + 1 for b, a, s in zip(self.by, box.stop, self.step, strict=True))
        return (IndexBox(start, stop),)  # type: ignore[arg-type]

    def pieces(self, box: IndexBox) -> tuple[IndexBox, ...]:
        """Return the parts that are read separately, so that chunks between them are not read."""
        (need,) = self.needs(box)
        if any(n <= 1 for n in box.shape) and all(n <= 1 for n in box.shape):
            return (box,)
        cuts = []
        for axis in range(3):
            places = np.arange(need.start[axis], need.stop[axis], self.step[axis], dtype=np.int64)
            first = box.start[axis]
            cuts.append([(first + a, first + b) for a, b in chunk_runs(self.child, axis, places)])
        boxes = (tuple(zip(*spans, strict=True)) for spans in product(*cuts))
        return tuple(IndexBox(start, stop) for start, stop in boxes)

    def apply(self, box: IndexBox, *arrays: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return every n-th value of the child."""
        every = tuple(slice(None, None, step) for step in self.step)
        return arrays[0][(slice(None),) * len(self.lead) + every]

    def edges(self, axis: int, start: int, stop: int) -> list[int] | None:
        """Return the child's chunk edges, in the indexes of this expression."""
        by, step = self.by[axis], self.step[axis]
        found = self.child.edges(axis, by + start * step, by + (stop - 1) * step + 1)
        return None if found is None else sorted({e for e in (-((by - e) // step) for e in found) if start < e < stop})


def _largest_gap(edges: list[int], first: int, last: int) -> int:
    cuts = [first, *edges, last]
    return max(b - a for a, b in pairwise(cuts))


def chunk_runs(expr: Expr, axis: int, indexes: Indexes, most: int | None = None) -> list[tuple[int, int]]:
    """Cut ascending indexes along an axis into parts that are read in one call; no two parts share a storage chunk.

    Parameters
    ----------
    expr : Expr
        The expression whose storage chunks decide.
    axis : int
        0, 1 or 2.
    indexes : ndarray
        Indexes in ascending order.
    most : int, optional
        Maximum extent of a part of several chunks; a chunk is never cut.

    Returns
    -------
    list of (int, int)
        Half-open ranges of positions in ``indexes``.
    """
    if not len(indexes):
        return []
    edges = expr.edges(axis, int(indexes[0]), int(indexes[-1]) + 1)
    if not edges:
        return [(0, len(indexes))]
    cuts = np.searchsorted(indexes, np.asarray(edges, np.int64))
    cuts = np.unique(np.concatenate([[0], cuts, [len(indexes)]]))
    found: list[tuple[int, int]] = []
    for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        if found and _can_merge(indexes, found[-1], (a, b), most):
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return found


def _can_merge(indexes: Indexes, one: tuple[int, int], two: tuple[int, int], most: int | None) -> bool:
    whole = _extent(indexes, (one[0], two[1]))
    if most is not None and whole > most:
        return False
    return whole <= _SLACK * (_extent(indexes, one) + _extent(indexes, two))


def _extent(indexes: Indexes, part: tuple[int, int]) -> int:
    return int(indexes[part[1] - 1] - indexes[part[0]]) + 1


def is_compact(indexes: Indexes, parts: list[tuple[int, int]]) -> bool:
    """Return whether parts have few unselected voxels between their indexes."""
    return sum(_extent(indexes, p) for p in parts) <= _SLACK * len(indexes)


def group_positions(labels: list[Indexes]) -> Iterator[Indexes]:
    """Yield groups of positions that have equal labels."""
    order = np.lexsort(labels[::-1])
    changes = np.zeros(len(order) - 1, bool) if len(order) else np.zeros(0, bool)
    for label in labels:
        changes |= np.diff(label[order]) != 0
    yield from np.split(order, np.flatnonzero(changes) + 1)


# ---------------------------------------------------------------------------------------------------------
# given indexes


@dataclass(frozen=True)
class AxisGroup:
    """Axes of an expression that are indexed together, and the indexes along each, in lists of equal length."""

    axes: tuple[int, ...]
    indexes: tuple[Indexes, ...]

    @property
    def size(self) -> int:
        """Number of selected positions."""
        return len(self.indexes[0])


@dataclass(frozen=True)
class _ReadPart:
    """A part of the selection of an `AxisGroup` that is read in one call."""

    where: Indexes
    """Where the part lies in ``AxisGroup.indexes``."""
    low: tuple[int, ...]
    high: tuple[int, ...]
    local: tuple[Indexes, ...]
    """The selected indexes relative to ``low``, along each axis."""


def read_selection(expr: Expr, groups: Sequence[AxisGroup]) -> Array:
    """Return the values at selected indexes; read each storage chunk that contains one of them once, and no others.

    Parameters
    ----------
    expr : Expr
        The expression to select from.
    groups : sequence of AxisGroup
        Groups that contain each of the axes (z, y, x) once. All indexes lie within the array of the expression.

    Returns
    -------
    ndarray
        One axis for each of ``groups``, then the axes of ``expr`` after (z, y, x).
    """
    out = np.empty((*(g.size for g in groups), *expr.tail), expr.dtype)
    if not out.size:
        return out
    run_reads(partial(_read_part, out, expr, groups), list(product(*_split_groups(expr, groups))))
    return out


def _read_part(out: Array, expr: Expr, groups: Sequence[AxisGroup], *parts: _ReadPart) -> None:
    start, stop = [0, 0, 0], [0, 0, 0]
    index: list[Any] = [None, None, None]
    slices: list[Any] = [None, None, None]
    for k, (group, part) in enumerate(zip(groups, parts, strict=True)):
        for axis, low, high, local in zip(group.axes, part.low, part.high, part.local, strict=True):
            start[axis], stop[axis] = low, high
            index[axis] = local.reshape([-1 if i == k else 1 for i in range(len(groups))])
            slices[axis] = _as_slice(local)
    values = evaluate(expr, IndexBox(tuple(start), tuple(stop)))  # type: ignore[arg-type]
    where = [_as_slice(part.where) for part in parts]
    if [g.axes for g in groups] == [(0,), (1,), (2,)] and None not in where and None not in slices:
        out[tuple(where)] = values[tuple(slices)]
    else:
        out[np.ix_(*(part.where for part in parts))] = values[tuple(index)]


def _as_slice(places: Indexes) -> slice | None:
    """Return evenly spaced indexes as a slice; None for other indexes."""
    first, last = int(places[0]), int(places[-1])
    if len(places) == 1:
        return slice(first, first + 1)
    step = int(places[1]) - first
    if not step or (np.diff(places) != step).any():
        return None
    stop = last + (1 if step > 0 else -1)
    return slice(first, None if stop < 0 else stop, step)


def _split_groups(expr: Expr, groups: Sequence[AxisGroup]) -> list[list[_ReadPart]]:
    sorted_ = {g.axes[0]: np.argsort(g.indexes[0], kind="stable") for g in groups if len(g.axes) == 1}
    alone = {g.axes[0]: g.indexes[0][sorted_[g.axes[0]]] for g in groups if len(g.axes) == 1}
    cut = {axis: chunk_runs(expr, axis, places) for axis, places in alone.items()}
    compact = [axis for axis, parts in cut.items() if is_compact(alone[axis], parts)]
    if len(compact) < 3:
        # Voxels between sparse indexes are in memory during a read, so parts are shorter along the compact axes.
        thick = 1
        for axis, parts in cut.items():
            if axis not in compact:
                thick *= max(int(alone[axis][b - 1] - alone[axis][a]) + 1 for a, b in parts)
        most = int((BLOCK_VOXELS / thick) ** (1 / max(1, len(compact))))
        cut |= {axis: chunk_runs(expr, axis, alone[axis], most) for axis in compact}
    found = []
    for group in groups:
        if len(group.axes) == 1:
            axis = group.axes[0]
            found.append([_make_part(group, sorted_[axis][a:b]) for a, b in cut[axis]])
        else:
            labels = [
                _chunk_numbers(expr, axis, places) for axis, places in zip(group.axes, group.indexes, strict=True)
            ]
            found.append([_make_part(group, where) for where in group_positions(labels)])
    return found


def _chunk_numbers(expr: Expr, axis: int, places: Indexes) -> Indexes:
    """Return the number of the storage chunk that contains each index along an axis; without chunks, chunks of 64."""
    low, high = int(places.min()), int(places.max()) + 1
    edges = expr.edges(axis, low, high)
    if edges is None:
        edges = list(range(low - low % 64 + 64, high, 64))
    return np.searchsorted(np.asarray(edges, np.int64), places, "right")


def _make_part(group: AxisGroup, where: Indexes) -> _ReadPart:
    places = [indexes[where] for indexes in group.indexes]
    low = tuple(int(p.min()) for p in places)
    high = tuple(int(p.max()) + 1 for p in places)
    return _ReadPart(where, low, high, tuple(p - a for p, a in zip(places, low, strict=True)))


# ---------------------------------------------------------------------------------------------------------
# indexes that broadcast


def read_broadcast(expr: Expr, indexes: Sequence[Indexes]) -> Array:
    """Return the values at indexes (z, y, x) that broadcast against each other, as in numpy's advanced indexing."""
    shape = np.broadcast_shapes(*(i.shape for i in indexes))
    arrays = [i.reshape((1,) * (len(shape) - i.ndim) + i.shape) for i in indexes]
    shared: list[tuple[list[int], set[int]]] = []
    for axis, array in enumerate(arrays):
        axes, dims = [axis], {d for d, n in enumerate(array.shape) if n != 1}
        for other in [g for g in shared if g[1] & dims]:
            axes, dims = other[0] + axes, other[1] | dims
            shared.remove(other)
        shared.append((axes, dims))
    groups, order, sizes = [], [], []
    for axes, dims in shared:
        own = sorted(dims)
        group_shape = tuple(shape[d] if d in dims else 1 for d in range(len(shape)))
        flat = tuple(np.broadcast_to(arrays[a], group_shape).ravel() for a in axes)
        groups.append(AxisGroup(tuple(axes), flat))
        order += own
        sizes += [shape[d] for d in own]
    found = read_selection(expr, groups).reshape(sizes)
    found = found.transpose(np.argsort(order)) if order else found
    return found.reshape(shape)
