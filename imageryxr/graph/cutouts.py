"""Build the dask array of many boxes of one expression, stacked along a new first axis.

The layer has two kinds of tasks: tasks that read groups of storage chunks, and one task per block of boxes, which
evaluates the expression on chunks that were read already. So each storage chunk is read once, however many boxes
contain a part of it and in whatever order the boxes are. The tasks are made when dask culls the layer: an array that is
sliced along its first axis reads the chunks of the remaining boxes only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.graph.block_check import check_block
from imageryxr.graph.cutout_reads import ChunkGroup, Pieces, assemble_box, group_chunks, morton_codes
from imageryxr.graph.evaluate import Readings, evaluate, required_boxes
from imageryxr.graph.expr import Array, DaskLeaf, Expr, Leaf, LevelLeaf
from imageryxr.graph.to_dask import (
    DaskInputs,
    Opaque,
    block_position,
    block_spec,
    check_query_planning,
    touched_blocks,
)

Indexes = npt.NDArray[np.int64]

# Boxes of a block. Few, so that a selection of one box computes few others.
_MAX_ROWS = 8
# Bytes of the boxes that count as neighbours.
_NEIGHBOUR_BYTES = 1 << 26


def evaluate_cutouts(expr: Expr, starts: Indexes, shape: Index3) -> Array:
    """Return the values of boxes of an expression in memory, stacked along the first axis."""
    out = np.empty((len(starts), *shape, *expr.tail), expr.dtype)
    for row, start in zip(out, starts, strict=True):
        row[...] = evaluate(expr, _box_at(start, shape))
    return out


def cutouts_to_dask(
    expr: Expr, starts: Indexes, shape: Index3, *, dask_inputs: DaskInputs | None = None, rows: Sequence[int]
) -> da.Array:
    """Return the dask array of boxes of an expression, stacked along the first axis.

    Parameters
    ----------
    expr : Expr
        Expression without leading axes.
    starts : ndarray of shape (n, 3)
        First voxel (z, y, x) of each box.
    shape : tuple of 3 int
        Voxels of each box along (z, y, x).
    dask_inputs : mapping, optional
        The dask arrays behind the `DaskLeaf` leaves of ``expr``, by name.
    rows : sequence of int
        Number of boxes of each block; see `split_rows`.
    """
    check_query_planning()
    inputs = dict(dask_inputs or {})
    name = f"cutouts-{tokenize(expr, starts, shape, tuple(rows))}"
    below = HighLevelGraph.merge(*(array.dask for array in inputs.values())) if inputs else HighLevelGraph({}, {})
    layer = CutoutLayer(name, CutoutSpec(expr, starts, shape, tuple(rows)))
    dependencies = {**below.dependencies, name: {array.name for array in inputs.values()}}
    graph = HighLevelGraph({**below.layers, name: layer}, dependencies)
    chunks = (tuple(rows), *((n,) for n in (*shape, *expr.tail)))
    return da.Array(graph, name, chunks, meta=np.empty((0,) * len(chunks), expr.dtype))


def split_rows(exprs: Sequence[Expr], starts: Indexes, shape: Index3) -> list[int]:
    """Return the number of boxes of each block: runs of boxes that are neighbours in space.

    Parameters
    ----------
    exprs : sequence of Expr
        The expressions that the boxes are cut from.
    starts, shape
        As in `cutouts_to_dask`.
    """
    size = sum(expr.dtype.itemsize * int(np.prod((*shape, *expr.tail))) for expr in exprs)
    count = max(1, _NEIGHBOUR_BYTES // max(1, size))
    order = np.argsort(morton_codes(starts // np.array(shape)), kind="stable")
    neighbours = np.empty(len(starts), np.int64)
    neighbours[order] = np.arange(len(starts)) // count
    most = min(_MAX_ROWS, count)
    rows: list[int] = []
    for i, group in enumerate(neighbours):
        if rows and group == neighbours[i - 1] and rows[-1] < most:
            rows[-1] += 1
        else:
            rows.append(1)
    return rows


@dataclass(frozen=True, eq=False)
class CutoutSpec:
    """Boxes of an expression and their distribution over blocks."""

    expr: Expr
    starts: Indexes
    shape: Index3
    rows: tuple[int, ...]

    @cached_property
    def edges(self) -> Indexes:
        """Number of the first box of each block, and the number of boxes."""
        return np.cumsum((0, *self.rows))

    def block(self, number: int) -> Indexes:
        """Return the first voxels of the boxes of a block."""
        return self.starts[self.edges[number] : self.edges[number + 1]]


class CutoutLayer(Layer):
    """Tasks that read groups of chunks, and tasks that cut boxes out of them; made when the layer is culled."""

    def __init__(self, name: str, spec: CutoutSpec, blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.name, self.spec = name, spec
        self.blocks = tuple(range(len(spec.rows)) if blocks is None else blocks)

    @cached_property
    def reads(self) -> BlockReads:
        """What the blocks of the layer read."""
        return BlockReads.of(self.spec, self.blocks)

    @cached_property
    def _tasks(self) -> dict[Any, Any]:
        return dict(self._iter_tasks())

    def _iter_tasks(self) -> Iterator[tuple[Any, Any]]:
        reads = self.reads
        # A selection reads fewer chunks, so the key contains what a task reads: a cluster keeps values by key.
        keys = [(f"cutout-reads-{tokenize(group)}", 0) for group in reads.groups]
        for key, group in zip(keys, reads.groups, strict=True):
            yield key, (_read_group, Opaque(group))
        for number, groups, inputs in zip(self.blocks, reads.of_block, reads.inputs, strict=True):
            labels: list[Any] = [reads.groups[g].leaf for g in groups]
            labels += [(leaf, box) for leaf, box, _ in inputs]
            values = [*(keys[g] for g in groups), *(key for _, _, key in inputs)]
            work = Opaque((self.spec.expr, self.spec.block(number), self.spec.shape, tuple(labels)))
            yield self._key(number), (_cut_boxes, work, values)

    def _key(self, number: int) -> tuple[Any, ...]:
        return (self.name, number, 0, 0, 0, *(0 for _ in self.spec.expr.tail))

    def is_materialized(self) -> bool:
        """Return whether the tasks have been made."""
        return "_tasks" in vars(self)

    def get_output_keys(self) -> Set[Any]:
        """Return the keys of the blocks."""
        return {self._key(number) for number in self.blocks}

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Return the layer of some of the blocks, and the keys that each of its tasks requires."""
        needed = sorted(key[1] for key in keys if key[0] == self.name)
        culled = self if tuple(needed) == self.blocks else CutoutLayer(self.name, self.spec, needed)
        return culled, {key: set(task[2]) if len(task) > 2 else set() for key, task in culled.items()}

    def __getitem__(self, key: Any) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CutoutLayer, (self.name, self.spec, self.blocks))


@dataclass(frozen=True)
class BlockReads:
    """The chunks and the blocks of input arrays that some blocks need."""

    groups: list[ChunkGroup]
    of_block: list[list[int]]
    """Numbers of the groups that each block needs."""
    inputs: list[list[tuple[DaskLeaf, IndexBox, Any]]]
    """For each block: leaf, box and key of the input blocks that it needs."""

    @classmethod
    def of(cls, spec: CutoutSpec, blocks: Sequence[int]) -> BlockReads:
        """Return what blocks of cutouts need."""
        needs: list[dict[Leaf, list[IndexBox]]] = []
        for number in blocks:
            found: dict[Leaf, list[IndexBox]] = {}
            for start in spec.block(number):
                for leaf, boxes in required_boxes(spec.expr, _box_at(start, spec.shape)).items():
                    found.setdefault(leaf, []).extend(boxes)
            needs.append(found)
        groups: list[ChunkGroup] = []
        of_block: list[list[int]] = [[] for _ in blocks]
        for leaf in dict.fromkeys(leaf for need in needs for leaf in need):
            if isinstance(leaf, LevelLeaf):
                own, numbers = group_chunks(leaf, [need.get(leaf, []) for need in needs])
                for mine, found_numbers in zip(of_block, numbers, strict=True):
                    mine.extend(len(groups) + n for n in found_numbers)
                groups += own
        inputs = [
            [
                (leaf, box, key)
                for leaf, boxes in need.items()
                if isinstance(leaf, DaskLeaf)
                for box, key in touched_blocks(leaf, boxes)
            ]
            for need in needs
        ]
        return cls(groups, of_block, inputs)


def cutout_layers(array: da.Array) -> list[CutoutLayer]:
    """Return the layers of cutouts that an array needs, without the boxes that it does not contain."""
    keys = {(array.name, *index) for index in np.ndindex(*array.numblocks)}
    return [layer for layer in array.dask.cull(keys).layers.values() if isinstance(layer, CutoutLayer)]


def _box_at(start: Any, shape: Index3) -> IndexBox:
    z, y, x = (int(a) for a in start)
    return IndexBox((z, y, x), (z + shape[0], y + shape[1], x + shape[2]))


def _read_group(group: Opaque) -> Pieces:
    pieces: Pieces = group.value.read()
    return pieces


def _cut_boxes(work: Opaque, values: list[Any]) -> Array:
    expr, starts, shape, labels = work.value
    pieces: dict[Leaf, list[tuple[IndexBox, Array]]] = {}
    for label, value in zip(labels, values, strict=True):
        if isinstance(label, Leaf):
            pieces.setdefault(label, []).extend(value)
        else:
            leaf, box = label
            checked = check_block(value, block_spec(leaf), block_position(leaf, box))
            pieces.setdefault(leaf, []).append((box, checked))
    out = np.empty((len(starts), *shape, *expr.tail), expr.dtype)
    for row, start in zip(out, starts, strict=True):
        box = _box_at(start, shape)
        given: Readings = {
            leaf: [(target, assemble_box(leaf, target, pieces[leaf])) for target in boxes]
            for leaf, boxes in required_boxes(expr, box).items()
            if leaf in pieces
        }
        row[...] = evaluate(expr, box, given)
    return out
