"""Check the blocks of input dask arrays against the shape and dtype that their array declares.

Dask does not check what a function returns: without this check numpy would silently broadcast or cast a wrong block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask.blockwise import Blockwise, BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArraySliceDep
from dask.utils import key_split

from imageryxr.core.bbox import DIMS, IndexBox, block_box, block_starts
from imageryxr.core.fork import cached_property
from imageryxr.errors import LayerError
from imageryxr.graph.expr import Array, DaskLeaf

Splits = tuple[tuple[int, ...], ...]


def check_block(values: Any, leaf: DaskLeaf, box: IndexBox) -> Array:
    """Return the values of a box of a dask array with its dtype; a narrower dtype is cast if all of its values fit.

    Raises `LayerError` if they are not an array, have another shape, or have a dtype whose values may not fit.
    """
    expected = (*leaf.lead, *box.shape, *leaf.tail)
    if isinstance(values, np.ndarray) and values.shape == expected and values.dtype == leaf.dtype:
        return values
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape is None or dtype is None:
        given = "None" if values is None else f"a {type(values).__name__}"
        advice = "end the function that makes the block with `return` and a numpy array"
    elif tuple(shape) != expected:
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            "return blocks of the same shape as the input blocks from the function that makes them, or pass map_blocks "
            "the sizes that it returns as chunks=…"
        )
    elif not np.can_cast(dtype, leaf.dtype, "safe"):
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            f"end the function that makes the block with .astype('{leaf.dtype}'), or pass map_blocks dtype=… and "
            f"meta=… of the type that the function returns, '{dtype}'"
        )
    else:
        return np.asarray(values).astype(leaf.dtype, copy=False)
    raise LayerError(
        f"{_describe_box(leaf, box)} is {given}, but the array declares shape {expected} and dtype {leaf.dtype}: "
        f"{advice}"
    )


def _describe_box(leaf: DaskLeaf, box: IndexBox) -> str:
    starts = block_starts(leaf.splits)
    index = tuple(int(np.searchsorted(s, a, "right")) - 1 for s, a in zip(starts, box.start, strict=True))
    which = f"block {index}" if block_box(starts, index) == box else "a part"
    place = ", ".join(f"{d}={a}:{b}" for d, a, b in zip(DIMS, box.start, box.stop, strict=True))
    return f"{which} of the dask array {key_split(leaf.name)!r}, at {place},"


class OutputArray:
    """Target of `dask.array.store`: an array that checks each block on assignment and has a token of its own."""

    def __init__(self, leaf: DaskLeaf, box: IndexBox) -> None:
        self.leaf, self.box = leaf, box
        self.array = np.empty((*leaf.lead, *box.shape, *leaf.tail), leaf.dtype)
        self.shape, self.dtype = self.array.shape, leaf.dtype
        self.missing = self.array.size
        """Number of values that no block has filled yet."""

    def __setitem__(self, index: Sequence[slice], values: Any) -> None:
        part = self.array[tuple(index)]
        first = len(self.leaf.lead)
        z, y, x = (a + i.start for a, i in zip(self.box.start, index[first : first + 3], strict=True))
        box = IndexBox.of_shape(part.shape[first : first + 3]).shift((z, y, x))
        part[...] = check_block(values, self.leaf, box)
        self.missing -= part.size

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.into", id(self))

    def check(self) -> None:
        """Raise `LayerError` if values are missing: `dask.array.store` silently skips empty blocks."""
        if self.missing:
            raise LayerError(
                f"{_describe_box(self.leaf, self.box)} lacks {self.missing:,} of {self.array.size:,} values, because "
                "some of its blocks are empty: check that the function that reads them returns arrays of the requested "
                "size"
            )


# ---------------------------------------------------------------------------------------------------------
# checks in a graph


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


def _check_task(values: Any, box: IndexBox, *, leaf: DaskLeaf) -> Array:
    return check_block(values, leaf, IndexBox(*box))


def add_block_checks(array: da.Array, leaf: DaskLeaf) -> da.Array:
    """Return a dask array that raises an error, which names the block, if a block has a wrong shape or dtype.

    Arrays that dask makes by slicing one object are returned unchanged, so that dask can still fuse further slicing.
    """
    if _is_only_slices(array):
        return array
    name, axes, first = f"checked-{array.name}", tuple(range(array.ndim)), len(leaf.lead)
    layer = blockwise(
        _check_task, name, axes, array.name, axes, BlockBoxDep(leaf.splits), axes[first : first + 3],
        numblocks={array.name: array.numblocks}, leaf=leaf,
    )  # fmt: skip
    below = array.dask
    graph = HighLevelGraph({**below.layers, name: layer}, {**below.dependencies, name: {array.name}})
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


def _is_only_slices(array: da.Array) -> bool:
    layer = array.dask.layers.get(array.name)
    if isinstance(layer, Blockwise):
        return any(isinstance(dep, ArraySliceDep) for dep in layer.io_deps.values())
    return isinstance(layer, MaterializedLayer) and all(isinstance(value, np.ndarray) for value in layer.values())
