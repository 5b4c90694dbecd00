"""Group the storage chunks that many boxes need, so that each chunk is read once.

Chunks are sorted along a space-filling curve and cut into groups of a fixed number of bytes. One task reads all chunks
of a group, with many requests in flight, and passes them to all boxes that contain a part of them. Boxes that are close
together mostly need the same groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.expr import Array, Leaf, LevelLeaf, spatial_index
from imageryxr.sources.fetch.threads import run_in_parallel

# Decoded bytes of a group of chunks: large enough for dozens of requests in flight, small enough for one per thread.
GROUP_BYTES = 1 << 26
# Number of boxes of a group that are read concurrently.
_WIDTH = 32

Pieces = Sequence[tuple[IndexBox, Array]]
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChunkGroup:
    """Storage chunks of one leaf that one task reads."""

    leaf: LevelLeaf
    chunks: tuple[Index3, ...]
    """Numbers of the chunks along (z, y, x)."""

    @cached_property
    def boxes(self) -> tuple[IndexBox, ...]:
        """Disjoint boxes that cover the chunks, and nothing else, within the level."""
        size, whole = chunk_shape(self.leaf), self.leaf.bounds
        boxes = [IndexBox(chunk, tuple(c + 1 for c in chunk)) for chunk in self.chunks]  # type: ignore[arg-type]
        return tuple(
            IndexBox(
                tuple(a * n for a, n in zip(box.start, size, strict=True)),  # type: ignore[arg-type]
                tuple(b * n for b, n in zip(box.stop, size, strict=True)),  # type: ignore[arg-type]
            ).clip(whole)
            for box in merge_boxes(boxes)
        )

    @property
    def bytes(self) -> int:
        """Decoded bytes of the chunks."""
        return sum(box.voxels for box in self.boxes) * self.leaf.dtype.itemsize

    def read(self) -> Pieces:
        """Read the chunks, several boxes at a time."""
        jobs = [(box, copy_context()) for box in self.boxes]
        if len(jobs) == 1:
            return [(jobs[0][0], self.leaf.read(jobs[0][0]))]
        done = run_in_parallel(lambda job, stop: job[1].run(self.leaf.read, job[0]), jobs, min(_WIDTH, len(jobs)))
        return [(box, values) for (box, _), values in zip(jobs, done, strict=True)]


def group_chunks(leaf: LevelLeaf, boxes: Sequence[Sequence[IndexBox]]) -> tuple[list[ChunkGroup], list[list[int]]]:
    """Return groups of the chunks that boxes of a leaf need, and the numbers of the groups that each item needs.

    Parameters
    ----------
    leaf : LevelLeaf
        A level of a source.
    boxes : sequence of sequences of IndexBox
        The boxes within the level that each item needs.
    """
    size = chunk_shape(leaf)
    needed = [_chunks_of(own, size) for own in boxes]
    distinct = sorted(set().union(*needed))
    if not distinct:
        return [], [[] for _ in boxes]
    order = np.argsort(morton_codes(np.array(distinct)), kind="stable")
    ordered = [distinct[i] for i in order]
    count = max(1, GROUP_BYTES // (size[0] * size[1] * size[2] * leaf.dtype.itemsize))
    groups = [ChunkGroup(leaf, tuple(sorted(ordered[i : i + count]))) for i in range(0, len(ordered), count)]
    number = {chunk: i // count for i, chunk in enumerate(ordered)}
    return groups, [sorted({number[chunk] for chunk in own}) for own in needed]


def chunk_shape(leaf: LevelLeaf) -> Index3:
    """Return the shape (z, y, x) of a leaf's storage chunks."""
    return leaf.source.levels[leaf.mip].chunks


def _chunks_of(boxes: Iterable[IndexBox], size: Index3) -> set[Index3]:
    found: set[Index3] = set()
    for box in boxes:
        z, y, x = (range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, size, strict=True))
        found.update(product(z, y, x))
    return found


def morton_codes(indexes: Indexes) -> npt.NDArray[np.uint64]:
    """Return the positions of indexes (n, 3) along the Z-order curve, counted from their smallest values."""
    relative = (indexes - indexes.min(axis=0)).astype(np.uint64)
    codes = np.zeros(len(relative), np.uint64)
    for bit in range(21):
        for axis in range(3):
            codes |= ((relative[:, 2 - axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return codes


def merge_boxes(boxes: Iterable[IndexBox]) -> list[IndexBox]:
    """Return disjoint boxes that cover the same voxels as other disjoint boxes, merged along x, then y, then z."""
    found = list(boxes)
    for axis in (2, 1, 0):
        others = [a for a in range(3) if a != axis]
        found.sort(key=lambda box: ([(box.start[a], box.stop[a]) for a in others], box.start[axis]))
        merged: list[IndexBox] = []
        for box in found:
            last = merged[-1] if merged else None
            touches = last is not None and last.stop[axis] == box.start[axis]
            if last is not None and touches and all(_extent(last, a) == _extent(box, a) for a in others):
                merged[-1] = IndexBox(last.start, box.stop)
            else:
                merged.append(box)
        found = merged
    return found


def _extent(box: IndexBox, axis: int) -> tuple[int, int]:
    return box.start[axis], box.stop[axis]


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
