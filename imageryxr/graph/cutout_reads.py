"""Read the storage chunks that batches of boxes need, each chunk once if memory allows.

Boxes are batched along a space-filling curve. A batch reads all chunks that it needs at once, with many requests in
flight. A chunk that a later batch needs as well is kept until then, as long as all kept chunks fit in a fixed number of
bytes; those that are needed last are dropped first and read again. So memory does not grow with the number of boxes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.evaluate import Pieces, assemble_box, read_leaf, run_reads
from imageryxr.graph.expr import Array, LevelLeaf

# Decoded bytes of the chunks of a batch: enough for dozens of requests in flight, and few enough for one per thread.
BATCH_BYTES = 1 << 26
# Decoded bytes of the chunks that are kept for later batches.
KEPT_BYTES = 1 << 29

Indexes = npt.NDArray[np.int64]
ChunkId = tuple[int, Index3]
"""Number of a leaf, and numbers of one of its chunks along (z, y, x)."""


class _Pending:
    """A chunk that another thread is reading."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.values: Array | None = None


class ChunkCache:
    """The chunks that several batches need, from their first to their last use; thread-safe.

    A pickled instance is empty and keeps nothing: batches that run in other processes read all their chunks.

    Parameters
    ----------
    leaves : sequence of LevelLeaf
        The levels that are read.
    uses : mapping
        The numbers of the batches that need a chunk, for chunks that several batches need.
    """

    def __init__(self, leaves: Sequence[LevelLeaf], uses: Mapping[ChunkId, Sequence[int]]) -> None:
        self.leaves = tuple(leaves)
        self._left = {chunk: set(batches) for chunk, batches in uses.items()}
        self._kept: dict[ChunkId, _Pending] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ChunkCache, (self.leaves, {}))

    def read(self, batch: int, chunks: Sequence[ChunkId]) -> dict[LevelLeaf, list[tuple[IndexBox, Array]]]:
        """Return pieces that cover the chunks of a batch; read those that are not kept."""
        mine: list[ChunkId] = []
        others: dict[ChunkId, _Pending] = {}
        with self._lock:
            for chunk in chunks:
                if chunk in self._kept:
                    others[chunk] = self._kept[chunk]
                else:
                    mine.append(chunk)
                    if chunk in self._left:
                        self._kept[chunk] = _Pending()
        try:
            found = self._read_now(mine)
        finally:
            # After an error, waiting threads read the chunks themselves.
            for chunk in mine:
                if chunk in self._left:
                    self._kept[chunk].done.set()
        for chunk, pending in others.items():
            pending.done.wait()
            leaf = self.leaves[chunk[0]]
            box = _chunk_box(leaf, chunk[1])
            values = leaf.read(box) if pending.values is None else pending.values
            found.setdefault(leaf, []).append((box, values))
        self._release(batch, chunks)
        return found

    def _read_now(self, chunks: Sequence[ChunkId]) -> dict[LevelLeaf, list[tuple[IndexBox, Array]]]:
        jobs = []
        for number, leaf in enumerate(self.leaves):
            own = [IndexBox(at, tuple(c + 1 for c in at)) for n, at in chunks if n == number]  # type: ignore[arg-type]
            jobs += [(leaf, _voxel_box(leaf, box)) for box in merge_boxes(own)]
        found: dict[LevelLeaf, list[tuple[IndexBox, Array]]] = {}
        for (leaf, box), values in zip(jobs, run_reads(read_leaf, jobs), strict=True):
            found.setdefault(leaf, []).append((box, values))
        near = {leaf: PieceIndex(pieces) for leaf, pieces in found.items()}
        for chunk in chunks:
            if chunk in self._left:
                leaf = self.leaves[chunk[0]]
                box = _chunk_box(leaf, chunk[1])
                # A copy, since the piece that contains the chunk is released with the batch.
                self._kept[chunk].values = assemble_box(leaf, box, near[leaf].touching(box)).copy()
        return found

    def _release(self, batch: int, chunks: Sequence[ChunkId]) -> None:
        """Drop the chunks that no later batch needs, and then those that are needed last, down to the limit."""
        with self._lock:
            for chunk in chunks:
                left = self._left.get(chunk)
                if left is not None:
                    left.discard(batch)
                    if not left:
                        del self._left[chunk]
                        self._kept.pop(chunk, None)
            held = {c: p.values.nbytes for c, p in self._kept.items() if p.done.is_set() and p.values is not None}
            surplus = sum(held.values()) - KEPT_BYTES
            failed = [c for c, p in self._kept.items() if p.done.is_set() and p.values is None]
            for chunk in failed:
                del self._kept[chunk]
            if surplus > 0:
                for chunk in sorted(held, key=lambda c: min(self._left[c]), reverse=True):
                    del self._kept[chunk]
                    surplus -= held[chunk]
                    if surplus <= 0:
                        break


class PieceIndex:
    """The pieces of a batch of one leaf; finds those that touch a box without a loop over all of them."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        bounds = np.array([(box.start, box.stop) for box, _ in pieces], np.int64).reshape(-1, 2, 3)
        self._starts, self._stops = bounds[:, 0], bounds[:, 1]

    def touching(self, target: IndexBox) -> Pieces:
        """Return the pieces that have voxels of a box."""
        hits = ((self._starts < target.stop) & (self._stops > target.start)).all(axis=1)
        return [self.pieces[i] for i in np.flatnonzero(hits).tolist()]


def _chunk_box(leaf: LevelLeaf, chunk: Index3) -> IndexBox:
    z, y, x = chunk
    return _voxel_box(leaf, IndexBox(chunk, (z + 1, y + 1, x + 1)))


def _voxel_box(leaf: LevelLeaf, chunks: IndexBox) -> IndexBox:
    """Return the voxels of a box of chunks, within the level."""
    (z0, y0, x0), (z1, y1, x1) = chunks
    z, y, x = chunk_shape(leaf)
    return IndexBox((z0 * z, y0 * y, x0 * x), (z1 * z, y1 * y, x1 * x)).clip(leaf.bounds)


def chunk_bytes(leaf: LevelLeaf) -> int:
    """Return the decoded bytes of a whole chunk."""
    z, y, x = chunk_shape(leaf)
    return z * y * x * leaf.dtype.itemsize


def chunk_shape(leaf: LevelLeaf) -> Index3:
    """Return the shape (z, y, x) of a leaf's storage chunks."""
    return leaf.source.levels[leaf.mip].chunks


def chunks_of(boxes: Iterable[IndexBox], size: Index3) -> set[Index3]:
    """Return the numbers of the chunks of a shape that boxes overlap."""
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
