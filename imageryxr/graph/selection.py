"""Read the values at selected indexes of an expression, from the storage chunks that contain them and no others.

A selection is split into groups of axes that are indexed together. Three independent lists of indexes select planes
(orthogonal indexing), three lists along one dim select points, and two such lists with a slice select columns. All
selected voxels of one chunk are read in one call, so that each chunk is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import Array, Expr
from imageryxr.graph.strides import Indexes, chunk_runs, group_positions, is_compact
from imageryxr.graph.to_dask import BLOCK_VOXELS
from imageryxr.sources.fetch.threads import run_in_parallel

# Number of concurrent reads; small reads spend most of their time waiting for a server.
_WIDTH = 32


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
    """Positions of an `AxisGroup` that are read in one call."""

    where: Indexes
    """Their indexes in the lists of the group."""
    low: tuple[int, ...]
    high: tuple[int, ...]
    local: tuple[Indexes, ...]
    """Their indexes relative to ``low``, along each axis."""


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
    jobs = [(parts, copy_context()) for parts in product(*_split_groups(expr, groups))]

    def one(job: tuple[tuple[_ReadPart, ...], Any], stop: threading.Event | None = None) -> None:
        job[1].run(_read_part, out, expr, groups, job[0])

    if len(jobs) == 1:
        one(jobs[0])
    else:
        run_in_parallel(one, jobs, min(_WIDTH, len(jobs)))
    return out


def _read_part(out: Array, expr: Expr, groups: Sequence[AxisGroup], parts: tuple[_ReadPart, ...]) -> None:
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
    """Return the slice of indexes that have equal steps, or None."""
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
    """Return the number of the storage chunk that contains each index along an axis; 64 voxels if there are none."""
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
