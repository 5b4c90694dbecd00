"""Evaluate expressions: find the boxes to read of each leaf, read each voxel once, and apply the functions."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Array, Expr, Leaf, LevelLeaf, spatial_index
from imageryxr.sources.fetch.threads import run_in_parallel

Readings = dict[Expr, list[tuple[IndexBox, Array]]]

# Number of boxes that are read concurrently.
_WIDTH = 32


def required_boxes(expr: Expr, box: IndexBox) -> dict[Leaf, list[IndexBox]]:
    """Return the boxes that must be read of each leaf to evaluate a box; they contain every required voxel once."""
    found: dict[Leaf, list[IndexBox]] = {}
    _collect_boxes(expr, box, found)
    return found


def core_boxes(expr: Expr, box: IndexBox) -> dict[Leaf, IndexBox]:
    """Return the box of each leaf at the position of a box of the expression, without halos."""
    found = {expr: box} if isinstance(expr, Leaf) else {}
    for child, core in zip(expr.inputs, expr.cores(box), strict=True):
        for leaf, part in core_boxes(child, core).items():
            found[leaf] = found[leaf].hull(part) if leaf in found else part
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
        # The hull of boxes with a gap between them has more voxels than both; most of it would be read for nothing.
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
    readings: Readings = dict(given or {})
    readings |= _read_boxes(
        {leaf: boxes for leaf, boxes in required_boxes(expr, box).items() if leaf not in readings}, read
    )
    return np.ascontiguousarray(_build(expr, box, readings))


def _read_boxes(boxes: dict[Leaf, list[IndexBox]], read: Reader) -> Readings:
    stored = [(leaf, box) for leaf, own in boxes.items() if isinstance(leaf, LevelLeaf) for box in own]
    if len(stored) < 2:
        return {leaf: [(b, read(leaf, b)) for b in own] for leaf, own in boxes.items()}
    # Layers are read concurrently, so that a figure takes as long as its slowest layer. The threads end with this call:
    # the threads of a permanent pool would be dead in a forked child, and Ctrl+C must not wait for them.
    found: Readings = {
        leaf: [] if isinstance(leaf, LevelLeaf) else [(b, read(leaf, b)) for b in own] for leaf, own in boxes.items()
    }
    # Each thread has the context of the caller, which may record missing chunks.
    jobs = [(leaf, box, copy_context()) for leaf, box in stored]
    done = run_in_parallel(lambda job, stop: job[2].run(read, job[0], job[1]), jobs, min(_WIDTH, len(jobs)))
    for (leaf, box), values in zip(stored, done, strict=True):
        found[leaf].append((box, values))
    return found


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
