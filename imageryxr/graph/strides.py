"""Expression of every n-th voxel of another, and the rule for which indexes along an axis are read in one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.expr import Expr, SameValues

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
