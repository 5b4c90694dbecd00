"""Build dask arrays from expressions, and find the expressions in dask graphs.

An expression that reads only sources becomes one flat Blockwise layer. A block's task calls `evaluate` with the box of
that block; the layer stores the expression once and is not materialized until dask schedules it. So a graph of four
million blocks pickles to a few kilobytes, an overlay has as many tasks as one read, and a halo is a larger read.

Below that layer is a layer of empty `SharedReads` for each source. Arrays that are computed together share these layers
and so read each block once. If an array is computed alone, dask fuses both layers into one task per block.

Only if a dask array that imageryxr did not build is among the inputs are the tasks written out: one per block, with the
keys of the input blocks that its box, including the halo, overlaps.

The name of an array is a token of the whole expression and the chunks, so equal calls share work and different calls
never collide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.blockwise import Blockwise, BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph

from imageryxr.core.bbox import Index3, IndexBox, Splits, block_box, block_starts
from imageryxr.core.fork import cached_property
from imageryxr.errors import OptionError, format_value, param
from imageryxr.graph.dask_inputs import DaskInputLayer, input_tasks
from imageryxr.graph.evaluate import (
    SharedReads,
    evaluate_shared,
    has_tables,
    restrict_tables,
)
from imageryxr.graph.expr import Array, ArrayLeaf, DaskLeaf, Expr, Leaf, SameValues

_SPACE = ("z", "y", "x")

# About 4 million voxels per block: CloudVolume needs that many for full speed, and one block per core fits in memory.
BLOCK_VOXELS = 1 << 22


@dataclass(frozen=True)
class BlockBoxDep(BlockwiseDep):
    """Map each block of a Blockwise layer to its box."""

    splits: Splits
    produces_tasks: bool = field(default=False, init=False)

    @property
    def numblocks(self) -> tuple[int, ...]:  # type: ignore[override]
        """Blocks along z, y and x."""
        return tuple(map(len, self.splits))

    def __getitem__(self, idx: tuple[int, ...]) -> Any:
        return block_box(self._starts, idx)

    @cached_property
    def _starts(self) -> Splits:
        return block_starts(self.splits)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.splits,))


@dataclass(frozen=True)
class BoxDep(BlockBoxDep):
    """Map each block of a Blockwise layer to its box; store the expression, so that `expr_of` can recover it."""

    expr: Expr

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.splits, self.expr))

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.BoxDep", tokenize(self.expr), self.splits)


@dataclass(frozen=True)
class _BlockExpr:
    """The box of a block, and the expression with only the rows of its tables that the block needs."""

    box: IndexBox
    expr: Expr


@dataclass(frozen=True)
class TableBoxDep(BoxDep):
    """Map each block to its box and an expression of its own, so that no task contains a whole table."""

    def __getitem__(self, idx: tuple[int, ...]) -> Any:
        box = super().__getitem__(idx)
        return _BlockExpr(box, restrict_tables(self.expr, box))


def _run_block(box: IndexBox, *reads: SharedReads, expr: Expr) -> Array:
    return evaluate_shared(expr, IndexBox(*box), {}, reads)


def _run_own_block(block: _BlockExpr, *reads: SharedReads) -> Array:
    return evaluate_shared(block.expr, block.box, {}, reads)


# ---------------------------------------------------------------------------------------------------------
# shared reads


@dataclass(frozen=True)
class _LeafDep(BlockwiseDep):
    """Pass the leaf to each block of a layer of `SharedReads`."""

    leaf: Leaf
    numblocks: tuple[int, ...]
    produces_tasks: bool = False

    def __getitem__(self, idx: tuple[int, ...]) -> Leaf:
        return self.leaf

    def __dask_tokenize__(self) -> object:
        return ("imageryxr._LeafDep", tokenize(self.leaf), self.numblocks)


def _shared_reads_layers(expr: Expr, shape: Index3, splits: Splits) -> dict[str, Blockwise]:
    """Return a layer of `SharedReads` for each source, under a name that arrays with the same blocks have in common."""
    if _is_plain(expr):
        return {}
    middle: Index3 = tuple(n // 2 for n in shape)  # type: ignore[assignment]
    found = {}
    for leaf, place in expr.leaf_cores(IndexBox(middle, tuple(m + 1 for m in middle))).items():  # type: ignore[arg-type]
        if not isinstance(leaf, ArrayLeaf | DaskLeaf):
            # `place` is the source's box of the middle voxel. It identifies the position of the array in the source.
            name = f"reads-{tokenize(leaf, splits, place)}"
            dep = _LeafDep(leaf, tuple(map(len, splits)))
            found[name] = blockwise(SharedReads, name, _SPACE, dep, _SPACE, numblocks={})
    return found


def _is_plain(expr: Expr) -> bool:
    """Return whether the values are unchanged values of one leaf."""
    return isinstance(expr, Leaf) or (isinstance(expr, SameValues) and _is_plain(expr.child))


def to_dask(
    expr: Expr,
    shape: Index3,
    *,
    dask_inputs: Mapping[str, da.Array] | None = None,
    chunks: Any = None,
    name: str = "block",
) -> da.Array:
    """Build the dask array of an expression, from index 0 over a shape (z, y, x).

    Parameters
    ----------
    expr : Expr
        The expression that each block evaluates.
    shape : tuple of 3 int
        Voxels along (z, y, x).
    dask_inputs : mapping, optional
        The dask arrays behind the `DaskLeaf` leaves of ``expr``, by name.
    chunks : int, tuple, dict or "auto", optional
        Block sizes as dask takes them. Default: several whole storage chunks, about 4 million voxels per block.
    name : str
        Prefix of the array's name, which dask's dashboard displays.
    """
    check_query_planning()
    splits = choose_splits(expr, shape, chunks, group=not dask_inputs)
    key = f"{name}-{tokenize(expr, shape, splits)}"
    all_splits = tuple((n,) for n in expr.lead) + splits + tuple((n,) for n in expr.tail)
    meta = np.empty((0,) * len(all_splits), expr.dtype)
    reads = _shared_reads_layers(expr, shape, splits)
    layers: dict[str, Any] = dict(reads)
    if dask_inputs:
        tasks = dict(input_tasks(key, expr, splits, list(reads)))
        layers[key] = DaskInputLayer(tasks, expr, splits)
    else:
        layers[key] = _flat_layer(key, expr, splits, list(reads))
    below = HighLevelGraph.merge(*(g.dask for g in dask_inputs.values())) if dask_inputs else HighLevelGraph({}, {})
    needed = {*reads, *(g.name for g in dask_inputs.values())} if dask_inputs else set(reads)
    dependencies = {**below.dependencies, **{name: set() for name in reads}, key: needed}
    graph = HighLevelGraph({**below.layers, **layers}, dependencies)
    return da.Array(graph, key, all_splits, meta=meta)


def check_query_planning() -> None:
    """Raise `OptionError` if dask's array query planning is on: its arrays have no graph to build on."""
    if da.array_expr_enabled():
        raise OptionError(
            "dask's option array.query-planning is on, but imageryxr builds dask graphs, which query planning does not "
            "support; set DASK_ARRAY__QUERY_PLANNING=False, or call dask.config.set({'array.query-planning': False}) "
            "before dask.array is first imported"
        )


def _flat_layer(key: str, expr: Expr, splits: Splits, reads: Sequence[str]) -> Blockwise:
    lead = tuple(f"lead{i}" for i in range(len(expr.lead)))
    tail = tuple(f"tail{i}" for i in range(len(expr.tail)))
    own = has_tables(expr)
    layer: Blockwise = blockwise(
        _run_own_block if own else _run_block,
        key,
        (*lead, *_SPACE, *tail),
        TableBoxDep(splits, expr) if own else BoxDep(splits, expr),
        _SPACE,
        *(part for name in reads for part in (name, _SPACE)),
        new_axes=dict.fromkeys((*lead, *tail), 1),
        numblocks=dict.fromkeys(reads, tuple(map(len, splits))),
        **({} if own else {"expr": expr}),
    )
    return layer


def expr_of(array: da.Array) -> tuple[Expr, Splits] | None:
    """Return the expression and block sizes (z, y, x) of a dask array that is a flat layer of `to_dask`, or None.

    The result is None if dask has persisted or rechunked the array after `to_dask` made it.
    """
    layer = array.dask.layers.get(array.name)
    for dep in getattr(layer, "io_deps", {}).values():
        if isinstance(dep, BoxDep):
            return dep.expr, dep.splits
    return None


def blocks_below(array: da.Array) -> list[tuple[Expr, Splits]]:
    """Return all expressions in the graph of a dask array, with the sizes (z, y, x) of their blocks."""
    deps = [d for layer in array.dask.layers.values() for d in getattr(layer, "io_deps", {}).values()]
    return [(dep.expr, dep.splits) for dep in deps if isinstance(dep, BoxDep)]


# ---------------------------------------------------------------------------------------------------------
# block sizes


def choose_splits(expr: Expr | Sequence[Expr], shape: Index3, chunks: Any = None, *, group: bool = True) -> Splits:
    """Return block sizes along z, y and x: those requested, or several whole storage chunks of 4 million voxels in all.

    If the expression downsamples, the limit applies to the voxels that a block reads.

    Parameters
    ----------
    expr : Expr or sequence of Expr
        The expression whose storage chunks to follow; of several, the one with the largest chunks.
    shape : tuple of 3 int
        Voxels along (z, y, x).
    chunks : int, tuple, dict or "auto", optional
        As dask takes them. A dict is keyed by dim; the sizes of omitted dims are chosen.
    group : bool
        Whether a block may contain several storage chunks.
    """
    exprs = [expr] if isinstance(expr, Expr) else list(expr)
    dtype = exprs[0].dtype
    if chunks is not None and not (isinstance(chunks, str) and chunks == "auto") and not isinstance(chunks, Mapping):
        return _normalize_chunks(chunks, chunks, shape, dtype)
    stored = [_chunk_sizes(exprs, axis, n) for axis, n in enumerate(shape)]
    chosen = _group_chunks(stored, shape, max(e.density for e in exprs)) if group else tuple(tuple(s) for s in stored)
    if not isinstance(chunks, Mapping):
        return chosen
    requested = [chunks.get(dim, own) for dim, own in zip(("z", "y", "x"), chosen, strict=True)]
    unknown = [dim for dim in chunks if dim not in ("z", "y", "x")]
    if unknown:
        raise OptionError(
            param("chunks", chunks), f" has the dim {format_value(unknown[0])}; the dims are 'z', 'y' and 'x'"
        )
    return _normalize_chunks(tuple(requested), chunks, shape, dtype)


def _normalize_chunks(requested: Any, chunks: Any, shape: Index3, dtype: np.dtype[Any]) -> Splits:
    """Return block sizes in dask's form, or raise `OptionError` for the argument ``chunks``."""
    try:
        sizes = requested if isinstance(requested, tuple | list) else [requested]
        if isinstance(requested, Set) or any(isinstance(size, bool | np.bool_) or size == "" for size in sizes):
            raise ValueError("not a size")
        return tuple(da.core.normalize_chunks(requested, shape, dtype=dtype))
    except Exception as error:  # dask raises whatever fails first
        raise OptionError(
            param("chunks", chunks),
            f" does not divide {shape} voxels (z, y, x) into blocks; give a size, three sizes (z, y, x), a dict of "
            f"sizes by dim, or 'auto' ({str(error)[:100]})",
        ) from None


def _chunk_sizes(exprs: Sequence[Expr], axis: int, n: int) -> list[int]:
    found = [e for e in (expr.edges(axis, 0, n) for expr in exprs) if e is not None]
    cuts = [0, *(min(found, key=len) if found else range(512, n, 512)), n]
    return [b - a for a, b in pairwise(cuts)]


def _group_chunks(stored: list[list[int]], shape: Index3, density: float) -> Splits:
    count = [1, 1, 1]
    largest = [max(s) for s in stored]

    def extent(axis: int) -> int:
        return min(shape[axis], count[axis] * largest[axis])

    # Grow blocks in the plane first, the shorter side first: figures are planes, and rows are contiguous in memory.
    while True:
        # Compare counts, since a box may overlap more chunks than its size fills.
        growable = [axis for axis in (2, 1) if count[axis] < len(stored[axis])]
        growable = growable or [axis for axis in (0,) if count[axis] < len(stored[axis])]
        if not growable:
            break
        axis = min(growable, key=extent)
        # The limit applies to the voxels that a block reads: a voxel that is downsampled by 8 is made from 512.
        if extent(0) * extent(1) * extent(2) * density * 2 > BLOCK_VOXELS:
            break
        count[axis] *= 2
    return tuple(
        tuple(sum(sizes[i : i + k]) for i in range(0, len(sizes), k)) for sizes, k in zip(stored, count, strict=True)
    )
