"""Boxes of a source that the tasks of one compute have read, so that arrays computed together read each box once.

Each flat layer of `to_dask` depends on one layer of `SharedReads` per source, with one task per block. That layer's
name is a token of the source, the position and the blocks, so arrays that agree in these depend on the same layer. Dask
passes the same `SharedReads` to all their tasks and releases it, with its voxels, after the last of them. Nothing is
kept from one compute to the next. If an array is computed alone, dask fuses the layer into the tasks of the array.

Plain reads, whose blocks are stored voxels without any change, do not share: their result may be modified in place by
the next task, so every block would have to be copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from imageryxr.core.bbox import IndexBox
from imageryxr.graph.expr import Array, Leaf, spatial_index


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
