"""Check the blocks of input dask arrays against the shape and dtype that their array declares.

Dask does not check what a function returns: without this check numpy would silently broadcast or cast a wrong block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask.blockwise import Blockwise, BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArraySliceDep
from dask.utils import key_split

from imageryxr.core.bbox import DIMS, block_starts
from imageryxr.errors import LayerError
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class BlockSpec:
    """Name, dtype and leading axes that a dask array declares for its blocks."""

    name: str
    type: str
    first: int = 0
    """Number of axes before (z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Declared dtype."""
        return np.dtype(self.type)


@dataclass(frozen=True)
class BlockPosition:
    """Position of a block, or of a part of one, in its dask array."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    index: tuple[int, ...] | None = None
    """Index of the block; None for a part of a block."""


def check_block(values: Any, spec: BlockSpec, position: BlockPosition) -> Array:
    """Return a block with the declared dtype; a narrower dtype is cast if all of its values fit.

    Raises `LayerError` if the block is not an array, has another shape, or has a dtype whose values may not fit.
    """
    if isinstance(values, np.ndarray) and values.shape == position.shape and values.dtype == spec.dtype:
        return values
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape is None or dtype is None:
        given = "None" if values is None else f"a {type(values).__name__}"
        advice = "end the function that makes the block with `return` and a numpy array"
    elif tuple(shape) != position.shape:
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            "return blocks of the same shape as the input blocks from the function that makes them, or pass map_blocks "
            "the sizes that it returns as chunks=…"
        )
    elif not np.can_cast(dtype, spec.dtype, "safe"):
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            f"end the function that makes the block with .astype('{spec.dtype}'), or pass map_blocks dtype=… and "
            f"meta=… of the type that the function returns, '{dtype}'"
        )
    else:
        return np.asarray(values).astype(spec.dtype, copy=False)
    raise LayerError(
        f"{_describe_block(spec, position)} is {given}, but the array declares shape {position.shape} and dtype "
        f"{spec.dtype}: {advice}"
    )


def _describe_block(spec: BlockSpec, position: BlockPosition) -> str:
    which = "a part" if position.index is None else f"block {position.index}"
    where = zip(DIMS, position.start[spec.first :], position.shape[spec.first :], strict=False)
    place = ", ".join(f"{d}={a}:{a + n}" for d, a, n in where)
    return f"{which} of the dask array {key_split(spec.name)!r}, at {place},"


class OutputArray:
    """Target of `dask.array.store`: an array that checks each block on assignment and has a token of its own."""

    def __init__(self, array: Array, spec: BlockSpec, start: Sequence[int]) -> None:
        self.array, self.spec = array, spec
        self.shape, self.dtype = array.shape, array.dtype
        self.start = tuple(start)
        """Position of the array in the dask array."""
        self.missing = array.size
        """Number of values that no block has filled yet."""

    def __setitem__(self, index: Any, values: Any) -> None:
        part = self.array[index]
        start = tuple(a + i.start for a, i in zip(self.start, index, strict=True))
        part[...] = check_block(values, self.spec, BlockPosition(start, part.shape))
        self.missing -= part.size

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.into", id(self))

    def check(self) -> None:
        """Raise `LayerError` if values are missing: `dask.array.store` silently skips empty blocks."""
        if self.missing:
            whole = _describe_block(self.spec, BlockPosition(self.start, self.shape))
            raise LayerError(
                f"{whole} lacks {self.missing:,} of {self.array.size:,} values, because some of its blocks are empty: "
                "check that the function that reads them returns arrays of the requested size"
            )


# ---------------------------------------------------------------------------------------------------------
# in a graph


@dataclass(frozen=True)
class _PositionDep(BlockwiseDep):
    """Map each block of a Blockwise layer to its position."""

    chunks: tuple[tuple[int, ...], ...]
    produces_tasks: bool = False

    @property
    def numblocks(self) -> tuple[int, ...]:  # type: ignore[override]
        """Blocks along each axis."""
        return tuple(map(len, self.chunks))

    @cached_property
    def _starts(self) -> tuple[tuple[int, ...], ...]:
        return block_starts(self.chunks)

    def __getitem__(self, idx: tuple[int, ...]) -> BlockPosition:
        start = tuple(s[i] for s, i in zip(self._starts, idx, strict=True))
        shape = tuple(sizes[i] for sizes, i in zip(self.chunks, idx, strict=True))
        return BlockPosition(start, shape, tuple(map(int, idx)))

    def __dask_tokenize__(self) -> object:
        return ("imageryxr._SpotDep", self.chunks)


def _check_task(values: Any, position: BlockPosition, *, spec: BlockSpec) -> Array:
    return check_block(values, spec, position)


def add_block_checks(array: da.Array, spec: BlockSpec) -> da.Array:
    """Return a dask array that raises an error, which names the block, if a block has a wrong shape or dtype.

    Arrays that dask makes by slicing one object are returned unchanged, so that dask can still fuse further slicing.
    """
    if _is_only_slices(array):
        return array
    name, axes = f"checked-{array.name}", tuple(range(array.ndim))
    layer = blockwise(
        _check_task, name, axes, array.name, axes, _PositionDep(array.chunks), axes,
        numblocks={array.name: array.numblocks}, spec=spec,
    )  # fmt: skip
    below = array.dask
    graph = HighLevelGraph({**below.layers, name: layer}, {**below.dependencies, name: {array.name}})
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


def _is_only_slices(array: da.Array) -> bool:
    layer = array.dask.layers.get(array.name)
    if isinstance(layer, Blockwise):
        return any(isinstance(dep, ArraySliceDep) for dep in layer.io_deps.values())
    return isinstance(layer, MaterializedLayer) and all(isinstance(value, np.ndarray) for value in layer.values())
