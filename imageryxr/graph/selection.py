"""Values at selected indexes of an expression, read from the storage chunks that hold them and from no others.

A selection is taken apart into axes that vary together: each of three lists of indexes by itself selects planes, three
lists along one dim select points, and two of them with a slice select columns. What lies in one chunk is read in one
call, so that each chunk is read once.
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

# Small reads wait for a server most of the time.
_WIDTH = 32


@dataclass(frozen=True)
class AxisGroup:
    """Axes of an expression that are indexed together, and the indexes along each, as many of one as of another."""

    axes: tuple[int, ...]
    indexes: tuple[Indexes, ...]

    @property
    def size(self) -> int:
        """How many places are selected."""
        return len(self.indexes[0])


@dataclass(frozen=True)
class _ReadPart:
    """Places of a `AxisGroup` that one read serves."""

    where: Indexes
    """Which places."""
    low: tuple[int, ...]
    high: tuple[int, ...]
    local: tuple[Indexes, ...]
    """Their indexes from ``low``, along each axis."""


def read_selection(expr: Expr, joints: Sequence[AxisGroup]) -> Array:
    """Return the values at selected indexes; each storage chunk that holds one of them is read once, and no other.

    Parameters
    ----------
    expr : Expr
        What is selected from.
    joints : sequence of Joint
        All axes (z, y, x), each in one of them. All indexes lie within what is shown of the expression.

    Returns
    -------
    ndarray
        One axis for each of ``joints``, then the axes of ``expr`` behind (z, y, x).
    """
    out = np.empty((*(j.size for j in joints), *expr.tail), expr.dtype)
    if not out.size:
        return out
    jobs = [(parts, copy_context()) for parts in product(*_split_groups(expr, joints))]

    def one(job: tuple[tuple[_ReadPart, ...], Any], stop: threading.Event | None = None) -> None:
        job[1].run(_read_part, out, expr, joints, job[0])

    if len(jobs) == 1:
        one(jobs[0])
    else:
        run_in_parallel(one, jobs, min(_WIDTH, len(jobs)))
    return out


def _read_part(out: Array, expr: Expr, joints: Sequence[AxisGroup], parts: tuple[_ReadPart, ...]) -> None:
    start, stop = [0, 0, 0], [0, 0, 0]
    index: list[Any] = [None, None, None]
    slices: list[Any] = [None, None, None]
    for k, (joint, part) in enumerate(zip(joints, parts, strict=True)):
        for axis, low, high, local in zip(joint.axes, part.low, part.high, part.local, strict=True):
            start[axis], stop[axis] = low, high
            index[axis] = local.reshape([-1 if i == k else 1 for i in range(len(joints))])
            slices[axis] = _as_slice(local)
    values = evaluate(expr, IndexBox(tuple(start), tuple(stop)))  # type: ignore[arg-type]
    where = [_as_slice(part.where) for part in parts]
    if [j.axes for j in joints] == [(0,), (1,), (2,)] and None not in where and None not in slices:
        out[tuple(where)] = values[tuple(slices)]
    else:
        out[np.ix_(*(part.where for part in parts))] = values[tuple(index)]


def _as_slice(places: Indexes) -> slice | None:
    """Return the slice that selects places which ascend or descend in equal steps."""
    first, last = int(places[0]), int(places[-1])
    if len(places) == 1:
        return slice(first, first + 1)
    step = int(places[1]) - first
    if not step or (np.diff(places) != step).any():
        return None
    stop = last + (1 if step > 0 else -1)
    return slice(first, None if stop < 0 else stop, step)


def _split_groups(expr: Expr, joints: Sequence[AxisGroup]) -> list[list[_ReadPart]]:
    sorted_ = {j.axes[0]: np.argsort(j.indexes[0], kind="stable") for j in joints if len(j.axes) == 1}
    alone = {j.axes[0]: j.indexes[0][sorted_[j.axes[0]]] for j in joints if len(j.axes) == 1}
    cut = {axis: chunk_runs(expr, axis, places) for axis, places in alone.items()}
    compact = [axis for axis, parts in cut.items() if is_compact(alone[axis], parts)]
    if len(compact) < 3:
        # What lies between sparse indexes is in memory while it is read, so less is read at a time along the others.
        thick = 1
        for axis, parts in cut.items():
            if axis not in compact:
                thick *= max(int(alone[axis][b - 1] - alone[axis][a]) + 1 for a, b in parts)
        most = int((BLOCK_VOXELS / thick) ** (1 / max(1, len(compact))))
        cut |= {axis: chunk_runs(expr, axis, alone[axis], most) for axis in compact}
    found = []
    for joint in joints:
        if len(joint.axes) == 1:
            axis = joint.axes[0]
            found.append([_make_part(joint, sorted_[axis][a:b]) for a, b in cut[axis]])
        else:
            labels = [
                _chunk_numbers(expr, axis, places) for axis, places in zip(joint.axes, joint.indexes, strict=True)
            ]
            found.append([_make_part(joint, where) for where in group_positions(labels)])
    return found


def _chunk_numbers(expr: Expr, axis: int, places: Indexes) -> Indexes:
    """Return which storage chunk along an axis each index lies in."""
    edges = expr.edges(axis, int(places.min()), int(places.max()) + 1) or []
    return np.searchsorted(np.asarray(edges, np.int64), places, "right")


def _make_part(joint: AxisGroup, where: Indexes) -> _ReadPart:
    places = [indexes[where] for indexes in joint.indexes]
    low = tuple(int(p.min()) for p in places)
    high = tuple(int(p.max()) + 1 for p in places)
    return _ReadPart(where, low, high, tuple(p - a for p, a in zip(places, low, strict=True)))


# ---------------------------------------------------------------------------------------------------------
# indexes as numpy broadcasts them


def read_broadcast(expr: Expr, indexes: Sequence[Indexes]) -> Array:
    """Return the values at indexes (z, y, x) that broadcast against each other, as numpy's own indexing does."""
    shape = np.broadcast_shapes(*(i.shape for i in indexes))
    arrays = [i.reshape((1,) * (len(shape) - i.ndim) + i.shape) for i in indexes]
    groups: list[tuple[list[int], set[int]]] = []
    for axis, array in enumerate(arrays):
        axes, dims = [axis], {d for d, n in enumerate(array.shape) if n != 1}
        for other in [g for g in groups if g[1] & dims]:
            axes, dims = other[0] + axes, other[1] | dims
            groups.remove(other)
        groups.append((axes, dims))
    joints, order, sizes = [], [], []
    for axes, dims in groups:
        own = sorted(dims)
        joint_shape = tuple(shape[d] if d in dims else 1 for d in range(len(shape)))
        flat = tuple(np.broadcast_to(arrays[a], joint_shape).ravel() for a in axes)
        joints.append(AxisGroup(tuple(axes), flat))
        order += own
        sizes += [shape[d] for d in own]
    found = read_selection(expr, joints).reshape(sizes)
    found = found.transpose(np.argsort(order)) if order else found
    return found.reshape(shape)
