"""Index ranges of an array that remain in a block after slicing, joining and shuffling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from imageryxr.core.bbox import DIMS
from imageryxr.graph.lazy_indexing import Ranges, as_range


@dataclass(frozen=True)
class BlockPart:
    """The part of a base array that a block contains."""

    ranges: Ranges
    """Indexes along each axis of the base array."""
    axes: tuple[int | None, ...]
    """The axis of the base array for each axis of the block; None for an axis that was inserted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        return tuple(1 if axis is None else len(self.ranges[axis]) for axis in self.axes)

    def has_names(self, dims: Sequence[str], tail: Sequence[str]) -> bool:
        """Return whether each axis of a block with given dims has the name of its axis in the base (z, y, x, tail)."""
        names = (*DIMS, *tail)
        for dim, axis in zip(dims, self.axes, strict=True):
            # An inserted axis is allowed if it replaces a dropped one.
            if axis is None and (dim not in DIMS or DIMS.index(dim) in self.axes):
                return False
            if axis is not None and dim != names[axis]:
                return False
        return all(axis in self.axes for axis in range(3, len(names)))


class UnknownMoveError(Exception):
    """Raised for a task that changes values, or whose function is not known."""


def slice_part(part: BlockPart, index: Any) -> BlockPart:
    """Return the part of a block after indexing."""
    if not isinstance(index, tuple) or sum(item is not None for item in index) != len(part.axes):
        raise UnknownMoveError
    ranges, left = list(part.ranges), iter(part.axes)
    axes: list[int | None] = []
    for item in index:
        if item is None:
            axes.append(None)
            continue
        axis = next(left)
        own = range(1) if axis is None else ranges[axis]
        if isinstance(item, slice):
            picked, kept = own[item], True
        elif isinstance(item, int | np.integer):
            picked, kept = own[item : item + 1 or None], False
        else:
            picked, kept = _pick_indexes(own, item), True
        if axis is None and (len(picked) != 1 or not kept):
            if kept:
                raise UnknownMoveError
            continue
        if axis is not None:
            ranges[axis] = picked
        if kept:
            axes.append(axis)
    return BlockPart(tuple(ranges), tuple(axes))


def _pick_indexes(own: range, item: Any) -> range:
    places = np.asarray(item)
    if places.ndim != 1 or places.dtype.kind not in "iu":
        raise UnknownMoveError
    found = as_range(np.asarray(own, np.int64)[places])
    if found is None:
        raise UnknownMoveError
    return found


def shuffle_parts(parts: list[BlockPart], order: Any, v: int) -> BlockPart:
    """Return the part of blocks that are concatenated along axis ``v``, with their planes reordered by ``order``."""
    axis = parts[0].axes[v]
    if axis is None or any(part.axes != parts[0].axes for part in parts):
        raise UnknownMoveError
    places = np.concatenate([np.asarray(part.ranges[axis], np.int64) for part in parts])[order]
    found, others = as_range(places), [[r for a, r in enumerate(p.ranges) if a != axis] for p in parts]
    if found is None or any(other != others[0] for other in others):
        raise UnknownMoveError
    ranges = tuple(found if a == axis else r for a, r in enumerate(parts[0].ranges))
    return BlockPart(ranges, parts[0].axes)


def join_parts(parts: list[BlockPart], counts: tuple[int, ...]) -> BlockPart:
    """Return the part of an array that is assembled from blocks in C order, ``counts`` of them along each axis."""
    axes = parts[0].axes
    if len(axes) != len(counts):
        raise UnknownMoveError
    fixed = {a: r for a, r in enumerate(parts[0].ranges) if a not in axes}
    along: list[dict[int, range]] = [{} for _ in counts]
    for index, part in zip(product(*map(range, counts)), parts, strict=True):
        if part.axes != axes or any(part.ranges[a] != r for a, r in fixed.items()):
            raise UnknownMoveError
        for v, (axis, i) in enumerate(zip(axes, index, strict=True)):
            if axis is None and i:
                raise UnknownMoveError
            if axis is not None and along[v].setdefault(i, part.ranges[axis]) != part.ranges[axis]:
                raise UnknownMoveError
    ranges = list(parts[0].ranges)
    for v, axis in enumerate(axes):
        if axis is not None:
            ranges[axis] = _chain_ranges([along[v][i] for i in range(counts[v])])
    return BlockPart(tuple(ranges), axes)


def _chain_ranges(ranges: list[range]) -> range:
    """Return the range that is the concatenation of several ranges."""
    full = [r for r in ranges if len(r)]
    if len(full) < 2:
        return full[0] if full else ranges[0]
    step = next((r.step for r in full if len(r) > 1), full[1].start - full[0].start)
    for one, two in pairwise(full):
        if two.start != one[-1] + step or (len(two) > 1 and two.step != step):
            raise UnknownMoveError
    if not step or (len(full[0]) > 1 and full[0].step != step):
        raise UnknownMoveError
    return range(full[0].start, full[-1][-1] + step, step)
