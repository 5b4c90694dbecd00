"""Evaluate expressions: find the boxes to read of each leaf, read each voxel once, and apply the functions.

Arrays that are computed together share their reads: each box is read once. Each flat layer of `to_dask` depends on one
layer of `SharedReads` per source, with one task per block. That layer's name is a token of the source, the position and
the blocks, so arrays that agree in these depend on the same layer. Dask passes the same `SharedReads` to all their
tasks and releases it, with its voxels, after the last of them. Nothing is kept from one compute to the next. If an
array is computed alone, dask fuses the layer into the tasks of the array.

Plain reads, whose blocks are stored voxels without any change, do not share: their result may be modified in place by
the next task, so every block would have to be copied.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Array, Expr, Leaf, LevelLeaf, spatial_index
from imageryxr.sources.fetch.threads import run_in_parallel

Result = TypeVar("Result")
Readings = dict[Expr, list[tuple[IndexBox, Array]]]
Pieces = Sequence[tuple[IndexBox, Array]]

# Number of concurrent reads; small reads spend most of their time waiting for a server.
_WIDTH = 32


def required_boxes(expr: Expr, box: IndexBox) -> dict[Leaf, list[IndexBox]]:
    """Return the boxes that must be read of each leaf to evaluate a box; they contain every required voxel once."""
    found: dict[Leaf, list[IndexBox]] = {}
    _collect_boxes(expr, box, found)
    return found


def _collect_boxes(expr: Expr, box: IndexBox, found: dict[Leaf, list[IndexBox]]) -> None:
    box = box.clip(expr.bounds)
    if not box.voxels:
        return
    if isinstance(expr, Leaf):
        _merge_box(found.setdefault(expr, []), box)
    for piece in expr.pieces(box):
        for child, need in zip(expr.inputs, expr.needs(piece), strict=True):
            _collect_boxes(child, need, found)


def _merge_box(boxes: list[IndexBox], box: IndexBox) -> None:
    for i, other in enumerate(boxes):
        # The hull of boxes with a gap between them has voxels that are not required, so such boxes are read separately.
        if not other.touches(box):
            continue
        hull = other.hull(box)
        if hull.voxels <= other.voxels + box.voxels:
            boxes[i] = hull
            return
    boxes.append(box)


Reader = Callable[[Leaf, IndexBox], Array]


def read_leaf(leaf: Leaf, box: IndexBox) -> Array:
    """Return the values of a box of a leaf."""
    return leaf.read(box)


def evaluate(expr: Expr, box: IndexBox, given: Readings | None = None, read: Reader = read_leaf) -> Array:
    """Evaluate a box of an expression; read each leaf once, even if several branches require it.

    Parameters
    ----------
    expr : Expr
        The expression.
    box : IndexBox
        Any box; outside the bounds of ``expr`` values are 0.
    given : dict, optional
        Values of leaves that the caller has already.
    read : callable, optional
        Function that returns a box of a leaf. Default: `read_leaf`.

    Returns
    -------
    ndarray
        Shape ``lead + box.shape + tail``, C order.
    """
    if isinstance(expr, Leaf) and not given and expr.bounds.contains(box):
        return np.ascontiguousarray(read(expr, box))
    readings: Readings = dict(given or {})
    readings |= _read_boxes(
        {leaf: boxes for leaf, boxes in required_boxes(expr, box).items() if leaf not in readings}, read
    )
    return np.ascontiguousarray(_build(expr, box, readings))


def _read_boxes(boxes: dict[Leaf, list[IndexBox]], read: Reader) -> Readings:
    # Layers are read concurrently, so that a figure takes as long as its slowest layer.
    stored = [(leaf, box) for leaf, own in boxes.items() if isinstance(leaf, LevelLeaf) for box in own]
    found: Readings = {
        leaf: [] if isinstance(leaf, LevelLeaf) else [(b, read(leaf, b)) for b in own] for leaf, own in boxes.items()
    }
    for (leaf, box), values in zip(stored, run_reads(read, stored), strict=True):
        found[leaf].append((box, values))
    return found


def run_reads(read: Callable[..., Result], jobs: Sequence[tuple[Any, ...]]) -> list[Result]:
    """Return ``read(*job)`` for each job; several jobs run in threads, which end with this call.

    The threads of a permanent pool would be dead in a forked child, and Ctrl+C must not wait for them.
    """
    if len(jobs) < 2:
        return [read(*job) for job in jobs]
    contexts = [copy_context() for _ in jobs]  # the caller's context may record missing chunks
    return run_in_parallel(lambda number, stop: contexts[number].run(read, *jobs[number]), range(len(jobs)), _WIDTH)


def assemble_box(leaf: Leaf, target: IndexBox, pieces: Pieces) -> Array:
    """Return the values of a box, copied from the pieces that cover it."""
    for box, values in pieces:
        if box.contains(target):
            return values[spatial_index(leaf, target.slices(box))]
    out = np.empty((*leaf.lead, *target.shape, *leaf.tail), leaf.dtype)
    for box, values in pieces:
        part = box.clip(target)
        if part.voxels:
            out[spatial_index(leaf, part.slices(target))] = values[spatial_index(leaf, part.slices(box))]
    return out


def _build(expr: Expr, box: IndexBox, readings: Readings) -> Array:
    inside = box.clip(expr.bounds)
    if inside != box or not box.voxels:
        out = np.zeros((*expr.lead, *box.shape, *expr.tail), expr.dtype)
        if inside.voxels:
            out[spatial_index(expr, inside.slices(box))] = _build(expr, inside, readings)
        return out
    if isinstance(expr, Leaf):
        known, values = next((b, v) for b, v in readings[expr] if b.contains(box))
        return values if known == box else values[spatial_index(expr, box.slices(known))]
    pieces = expr.pieces(box)
    if len(pieces) > 1:
        out = np.empty((*expr.lead, *box.shape, *expr.tail), expr.dtype)
        for piece in pieces:
            out[spatial_index(expr, piece.slices(box))] = _apply(expr, piece, readings)
        return out
    return _apply(expr, box, readings)


def _apply(expr: Expr, box: IndexBox, readings: Readings) -> Array:
    arrays = [_build(c, need, readings) for c, need in zip(expr.inputs, expr.needs(box), strict=True)]
    return expr.apply(box, *arrays)


# ---------------------------------------------------------------------------------------------------------
# tables


class TableExpr(Expr):
    """An expression with a table, such as annotations; the values of a box depend only on some of its rows."""

    @abstractmethod
    def restrict(self, box: IndexBox) -> TableExpr:
        """Return the expression with only the rows that a box needs, in which all values are the same."""


def has_tables(expr: Expr) -> bool:
    """Return whether an expression contains a table, which should not be sent with every block."""
    return isinstance(expr, TableExpr) or any(has_tables(child) for child in expr.inputs)


def restrict_tables(expr: Expr, box: IndexBox) -> Expr:
    """Return an expression whose tables have only the rows that a box needs."""
    if not has_tables(expr):
        return expr
    boxes: dict[Expr, IndexBox] = {}
    _collect_tables(expr, box, boxes)
    made: dict[Expr, Expr] = {}

    def rebuild(node: Expr) -> Expr:
        if node not in made:
            new = node.map_inputs(rebuild)
            made[node] = new.restrict(boxes.get(node, _EMPTY)) if isinstance(new, TableExpr) else new
        return made[node]

    return rebuild(expr)


_EMPTY = IndexBox((0, 0, 0), (0, 0, 0))


def _collect_tables(expr: Expr, box: IndexBox, found: dict[Expr, IndexBox]) -> None:
    """Add to `found`, for each expression with a table below ``expr``, the box of it that ``box`` needs."""
    box = box.clip(expr.bounds)
    if not box.voxels or not has_tables(expr):
        return
    if isinstance(expr, TableExpr):
        found[expr] = found[expr].hull(box) if expr in found else box
    for piece in expr.pieces(box):
        for child, need in zip(expr.inputs, expr.needs(piece), strict=True):
            _collect_tables(child, need, found)


# ---------------------------------------------------------------------------------------------------------
# arrays that are computed together


class SharedReads:
    """Cache of the boxes of one leaf that the tasks of a block have read, so that each voxel is read once.

    Instances are thread-safe. A pickled instance is empty.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self._lock = threading.Lock()
        self._stored: list[tuple[IndexBox, Array]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return (SharedReads, (self.leaf,))

    def __repr__(self) -> str:
        return f"<SharedReads {type(self.leaf).__name__}: {len(self._stored)} boxes>"

    def read(self, box: IndexBox) -> Array:
        """Return the values of a box, and read only the voxels that no earlier call has read.

        Concurrent calls wait for each other.
        """
        with self._lock:
            for stored, values in self._stored:
                if stored.contains(box):
                    return values[spatial_index(self.leaf, box.slices(stored))]
            values = self._gather(box, self._stored)
            # The new box usually contains earlier ones, which need not be stored twice.
            self._stored = [pair for pair in self._stored if not box.contains(pair[0])] + [(box, values)]
            return values

    def _gather(self, box: IndexBox, pairs: Sequence[tuple[IndexBox, Array]]) -> Array:
        """Return a box, assembled from stored values and from reads of the rest, which is usually a halo."""
        leaf, best = self.leaf, max(pairs, key=lambda pair: pair[0].clip(box).voxels, default=None)
        if best is None or not best[0].clip(box).voxels:
            return leaf.read(box)
        stored, values = best
        core, others = box.clip(stored), [pair for pair in pairs if pair[0] != stored]
        out = np.empty((*leaf.lead, *box.shape, *leaf.tail), leaf.dtype)
        out[spatial_index(leaf, core.slices(box))] = values[spatial_index(leaf, core.slices(stored))]
        for piece in boxes_around(box, core):
            out[spatial_index(leaf, piece.slices(box))] = self._gather(piece, others)
        return out

    def copy_if_shared(self, result: Array) -> Array:
        """Return the result of a task, copied if it shares memory with the stored values.

        The caller or a later task may modify the result in place.
        """
        with self._lock:
            return result.copy() if any(np.may_share_memory(result, values) for _, values in self._stored) else result


def boxes_around(box: IndexBox, core: IndexBox) -> Iterator[IndexBox]:
    """Yield disjoint boxes that cover ``box`` except for ``core``, which lies within it."""
    for axis in range(3):
        for a, b in ((box.start[axis], core.start[axis]), (core.stop[axis], box.stop[axis])):
            if a < b:
                yield box.with_axis(axis, a, b)
        box = box.with_axis(axis, core.start[axis], core.stop[axis])


def evaluate_shared(expr: Expr, box: IndexBox, given: Readings, reads: Sequence[SharedReads]) -> Array:
    """Evaluate a box; read the leaves of ``reads`` through these caches, which other arrays share."""
    shared = {r.leaf: r for r in reads}

    def read(leaf: Leaf, box: IndexBox) -> Array:
        return shared[leaf].read(box) if leaf in shared else leaf.read(box)

    out = evaluate(expr, box, given, read)
    for one in reads:
        out = one.copy_if_shared(out)
    return out
