"""Build the dask array of many boxes of one expression, stacked along a new first axis.

The layer has a task for each batch of blocks that are neighbours in space, which reads the storage chunks of all their
boxes and cuts the boxes out of them, and a task for each block, which takes its boxes from the batch. So the order of
the boxes does not matter. Batches share a `ChunkCache`, and markers between them keep them nearly in order.
The tasks are made when dask culls the layer: an array that is sliced along its first axis reads the chunks of the
remaining boxes only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.fork import cached_property
from imageryxr.graph.cutout_reads import (
    BATCH_BYTES,
    ChunkCache,
    ChunkId,
    PieceIndex,
    chunk_bytes,
    chunk_shape,
    chunks_of,
    morton_codes,
)
from imageryxr.graph.dask_inputs import DaskInputs, Opaque, check_block, touched_blocks
from imageryxr.graph.evaluate import Readings, assemble_box, evaluate, required_boxes
from imageryxr.graph.expr import Array, DaskLeaf, Expr, Leaf, LevelLeaf
from imageryxr.graph.to_dask import check_query_planning

Indexes = npt.NDArray[np.int64]

# Boxes of a block. Few, so that a selection of one box computes few others.
_MAX_ROWS = 8
# Batches that may run at the same time. Dask runs independent tasks in any order, but distant batches share no chunks.
_WINDOW = 16
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
    """Tasks of batches and blocks of cutouts; made when the layer is culled."""

    def __init__(self, name: str, spec: CutoutSpec, blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.name, self.spec = name, spec
        self.blocks = tuple(range(len(spec.rows)) if blocks is None else blocks)

    @cached_property
    def reads(self) -> ReadPlan:
        """The batches of the blocks of the layer, and the chunks that they read."""
        return ReadPlan.of(self.spec, self.blocks)

    @cached_property
    def _tasks(self) -> dict[Any, Any]:
        return dict(self._iter_tasks())

    def _iter_tasks(self) -> Iterator[tuple[Any, Any]]:
        reads = self.reads
        # A cluster identifies values by keys, so a selection of cutouts, which has other batches, needs other keys.
        suffix = tokenize(self.name, self.blocks)
        cache = f"cutout-chunks-{suffix}"
        yield cache, (_make_cache, Opaque(reads))
        for number, batch in enumerate(reads.batches):
            key = (f"cutout-batch-{suffix}", number)
            labels = tuple((leaf, box) for leaf, box, _ in batch.inputs)
            starts = tuple(self.spec.block(block) for block in batch.blocks)
            work = Opaque(BatchWork(number, self.spec.expr, starts, self.spec.shape, batch.chunks, labels))
            before = (f"cutout-order-{suffix}", number - _WINDOW) if number >= _WINDOW else cache
            yield key, (_cut_batch, work, cache, [before, *(k for _, _, k in batch.inputs)])
            previous = (f"cutout-order-{suffix}", number - 1) if number else cache
            yield (f"cutout-order-{suffix}", number), (_mark_done, previous, key)
            for place, block in enumerate(batch.blocks):
                yield self._key(block), (getitem, key, place)

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
        return culled, {key: _required_keys(task) for key, task in culled.items()}

    def __getitem__(self, key: Any) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CutoutLayer, (self.name, self.spec, self.blocks))


@dataclass(frozen=True, eq=False)
class Batch:
    """Blocks that are computed by one task."""

    blocks: list[int]
    chunks: list[ChunkId]
    inputs: list[tuple[DaskLeaf, IndexBox, Any]]
    """Leaf, box and key of the input blocks that the batch needs."""


@dataclass(frozen=True, eq=False)
class ReadPlan:
    """The batches of some blocks of cutouts, and the chunks that several of them need."""

    leaves: tuple[LevelLeaf, ...]
    batches: list[Batch]
    uses: dict[ChunkId, list[int]]
    """The numbers of the batches that need a chunk, for chunks that several batches need."""

    @property
    def chunks(self) -> set[ChunkId]:
        """All chunks that are read."""
        return {chunk for batch in self.batches for chunk in batch.chunks}

    @classmethod
    def of(cls, spec: CutoutSpec, blocks: Sequence[int]) -> ReadPlan:
        """Return the plan for some blocks."""
        needs = [_required_by_block(spec, number) for number in blocks]
        distinct = dict.fromkeys(leaf for need in needs for leaf in need if isinstance(leaf, LevelLeaf))
        leaves = tuple(leaf for leaf in distinct if isinstance(leaf, LevelLeaf))
        chunks = [
            [(n, at) for n, leaf in enumerate(leaves) for at in chunks_of(need.get(leaf, []), chunk_shape(leaf))]
            for need in needs
        ]
        firsts = [spec.block(number)[0] // np.array(spec.shape) for number in blocks]
        if leaves:
            firsts = [min((at for n, at in own if n == 0), default=(0, 0, 0)) for own in chunks]
        order = np.argsort(morton_codes(np.array(firsts, np.int64)), kind="stable").tolist()
        batches = []
        for members in _split_batches(spec, blocks, chunks, leaves, order):
            inputs = {
                key: (leaf, box, key)
                for i in members
                for leaf, boxes in needs[i].items()
                if isinstance(leaf, DaskLeaf)
                for box, key in touched_blocks(leaf, boxes)
            }
            own = sorted({chunk for i in members for chunk in chunks[i]})
            batches.append(Batch([blocks[i] for i in members], own, list(inputs.values())))
        uses: dict[ChunkId, list[int]] = {}
        for number, batch in enumerate(batches):
            for chunk in batch.chunks:
                uses.setdefault(chunk, []).append(number)
        return cls(leaves, batches, {chunk: numbers for chunk, numbers in uses.items() if len(numbers) > 1})


def _required_by_block(spec: CutoutSpec, number: int) -> dict[Leaf, list[IndexBox]]:
    found: dict[Leaf, list[IndexBox]] = {}
    for start in spec.block(number):
        for leaf, boxes in required_boxes(spec.expr, _box_at(start, spec.shape)).items():
            found.setdefault(leaf, []).extend(boxes)
    return found


def _split_batches(
    spec: CutoutSpec,
    blocks: Sequence[int],
    chunks: Sequence[Sequence[ChunkId]],
    leaves: Sequence[LevelLeaf],
    order: Sequence[int],
) -> Iterator[list[int]]:
    """Yield batches of places in ``blocks``, in order, that read and return a limited number of bytes."""
    sizes = [chunk_bytes(leaf) for leaf in leaves]
    cutout = spec.expr.dtype.itemsize * int(np.prod((*spec.shape, *spec.expr.tail)))
    members: list[int] = []
    own: set[ChunkId] = set()
    read = made = 0
    for place in order:
        new = [chunk for chunk in chunks[place] if chunk not in own]
        more, rows = sum(sizes[n] for n, _ in new), spec.rows[blocks[place]] * cutout
        if members and max(read + more, made + rows) > BATCH_BYTES:
            yield members
            members, own, read, made = [], set(), 0, 0
            more = sum(sizes[n] for n, _ in chunks[place])
            new = list(chunks[place])
        members.append(place)
        own.update(new)
        read, made = read + more, made + rows
    if members:
        yield members


def cutout_layers(array: da.Array) -> list[CutoutLayer]:
    """Return the layers of cutouts that an array needs, without the boxes that it does not contain."""
    keys = {(array.name, *index) for index in np.ndindex(*array.numblocks)}
    return [layer for layer in array.dask.cull(keys).layers.values() if isinstance(layer, CutoutLayer)]


def _box_at(start: Any, shape: Index3) -> IndexBox:
    z, y, x = (int(a) for a in start)
    return IndexBox((z, y, x), (z + shape[0], y + shape[1], x + shape[2]))


@dataclass(frozen=True, eq=False)
class BatchWork:
    """The arguments of the task of a batch."""

    number: int
    expr: Expr
    starts: tuple[Indexes, ...]
    """First voxels of the boxes of each block."""
    shape: Index3
    chunks: list[ChunkId]
    labels: tuple[tuple[DaskLeaf, IndexBox], ...]
    """Leaf and box of each input block."""


def _required_keys(task: tuple[Any, ...]) -> set[Any]:
    if task[0] is getitem:
        return {task[1]}
    if task[0] is _mark_done:
        return set(task[1:])
    return {task[2], *task[3]} if task[0] is _cut_batch else set()


def _mark_done(*batches: Any) -> None:
    """Return None: this task only marks that a batch, and all batches before it, are done."""


def _make_cache(opaque: Opaque) -> ChunkCache:
    reads: ReadPlan = opaque.value
    return ChunkCache(reads.leaves, reads.uses)


def _cut_batch(opaque: Opaque, cache: ChunkCache, values: list[Any]) -> list[Array]:
    """Return the cutouts of each block of a batch; the first of ``values`` only orders the batches."""
    work: BatchWork = opaque.value
    pieces: dict[Leaf, list[tuple[IndexBox, Array]]] = {}
    pieces.update(cache.read(work.number, work.chunks).items())
    for (leaf, box), value in zip(work.labels, values[1:], strict=True):
        pieces.setdefault(leaf, []).append((box, check_block(value, leaf, box)))
    near = {leaf: PieceIndex(own) for leaf, own in pieces.items()}
    return [_cut_boxes(work, starts, near) for starts in work.starts]


def _cut_boxes(work: BatchWork, starts: Indexes, pieces: Mapping[Leaf, PieceIndex]) -> Array:
    expr, out = work.expr, np.empty((len(starts), *work.shape, *work.expr.tail), work.expr.dtype)
    for row, start in zip(out, starts, strict=True):
        box = _box_at(start, work.shape)
        given: Readings = {
            leaf: [(target, assemble_box(leaf, target, pieces[leaf].touching(target))) for target in boxes]
            for leaf, boxes in required_boxes(expr, box).items()
            if leaf in pieces
        }
        row[...] = evaluate(expr, box, given)
    return out
