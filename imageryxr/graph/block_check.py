"""Blocks of foreign dask arrays, held to what their array says of them.

Dask hands on whatever a function returns. Put to its place it would be repeated, wrapped or left out, and nobody told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask.blockwise import Blockwise, BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.layers import ArraySliceDep
from dask.utils import key_split

from imageryxr.core.bbox import DIMS
from imageryxr.errors import LayerError
from imageryxr.graph.expr import Array


@dataclass(frozen=True)
class BlockSpec:
    """What a dask array says of its blocks."""

    name: str
    type: str
    first: int = 0
    """How many axes there are before (z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self.type)


@dataclass(frozen=True)
class BlockPosition:
    """Where a block lies, or a part of it."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    index: tuple[int, ...] | None = None
    """Which block it is; None for a part."""


def check_block(values: Any, said: BlockSpec, spot: BlockPosition) -> Array:
    """Return a block as what it was said to be, which it must be but for a type that holds all of its values.

    Raises
    ------
    LayerError
        If it is no array, or of another shape, or its values may not fit.
    """
    if isinstance(values, np.ndarray) and values.shape == spot.shape and values.dtype == said.dtype:
        return values
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape is None or dtype is None:
        given = "None" if values is None else f"a {type(values).__name__}"
        advice = "end the function that makes it with `return` and a numpy array"
    elif tuple(shape) != spot.shape:
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            "let the function that makes it return blocks as large as those that it is given, or give map_blocks "
            "chunks=… as large as those that it returns"
        )
    elif not np.can_cast(dtype, said.dtype, "safe"):
        given = f"of shape {tuple(shape)} and dtype {dtype}"
        advice = (
            f"end the function that makes it with .astype('{said.dtype}'), or give map_blocks the dtype=… (and a "
            f"meta=…) that it returns, '{dtype}'"
        )
    else:
        return np.asarray(values).astype(said.dtype, copy=False)
    raise LayerError(
        f"{_describe_block(said, spot)} is {given}, and the array says that it is of shape {spot.shape} and dtype "
        f"{said.dtype}: {advice}"
    )


def _describe_block(said: BlockSpec, spot: BlockPosition) -> str:
    which = "a part" if spot.index is None else f"block {spot.index}"
    where = zip(DIMS, spot.start[said.first :], spot.shape[said.first :], strict=False)
    place = ", ".join(f"{d}={a}:{a + n}" for d, a, n in where)
    return f"{which} of the dask array {key_split(said.name)!r}, at {place},"


class OutputArray:
    """An array that blocks are put into, each once, which dask need not hash."""

    def __init__(self, array: Array, said: BlockSpec, start: Sequence[int]) -> None:
        self.array, self.said = array, said
        self.shape, self.dtype = array.shape, array.dtype
        self.start = tuple(start)
        """Where it lies in the dask array."""
        self.left = array.size
        """How many values are not there yet."""

    def __setitem__(self, index: Any, values: Any) -> None:
        part = self.array[index]
        start = tuple(a + i.start for a, i in zip(self.start, index, strict=True))
        part[...] = check_block(values, self.said, BlockPosition(start, part.shape))
        self.left -= part.size

    def __dask_tokenize__(self) -> object:
        return ("imageryxr.into", id(self))

    def check(self) -> None:
        """Raise `LayerError` if values are missing: of blocks that are empty dask does not tell."""
        if self.left:
            whole = _describe_block(self.said, BlockPosition(self.start, self.shape))
            raise LayerError(
                f"{whole} lacks {self.left:,} of {self.array.size:,} values, as what its blocks are made from gave "
                "none for them: look for what reads them, and whether it gives arrays as large as it is asked for"
            )


# ---------------------------------------------------------------------------------------------------------
# in a graph


@dataclass(frozen=True)
class _PositionDep(BlockwiseDep):
    """Tells each block of a Blockwise layer where it lies."""

    chunks: tuple[tuple[int, ...], ...]
    produces_tasks: bool = False

    @property
    def numblocks(self) -> tuple[int, ...]:  # type: ignore[override]
        """Blocks along each axis."""
        return tuple(map(len, self.chunks))

    @cached_property
    def _starts(self) -> tuple[tuple[int, ...], ...]:
        return tuple((0, *accumulate(sizes)) for sizes in self.chunks)

    def __getitem__(self, idx: tuple[int, ...]) -> BlockPosition:
        start = tuple(s[i] for s, i in zip(self._starts, idx, strict=True))
        shape = tuple(sizes[i] for sizes, i in zip(self.chunks, idx, strict=True))
        return BlockPosition(start, shape, tuple(map(int, idx)))

    def __dask_tokenize__(self) -> object:
        return ("imageryxr._SpotDep", self.chunks)


def _check_task(values: Any, spot: BlockPosition, *, said: BlockSpec) -> Array:
    return check_block(values, said, spot)


def add_block_checks(array: da.Array, said: BlockSpec) -> da.Array:
    """Return a dask array whose blocks are what it says, or are an error that names them.

    Blocks that are only slices of what can be sliced stay as they are, so that no more is read than is wanted of them.
    """
    if _is_only_slices(array):
        return array
    name, axes = f"checked-{array.name}", tuple(range(array.ndim))
    layer = blockwise(
        _check_task, name, axes, array.name, axes, _PositionDep(array.chunks), axes,
        numblocks={array.name: array.numblocks}, said=said,
    )  # fmt: skip
    below = array.dask
    graph = HighLevelGraph({**below.layers, name: layer}, {**below.dependencies, name: {array.name}})
    return da.Array(graph, name, array.chunks, dtype=array.dtype)


def _is_only_slices(array: da.Array) -> bool:
    layer = array.dask.layers.get(array.name)
    if isinstance(layer, Blockwise):
        return any(isinstance(dep, ArraySliceDep) for dep in layer.io_deps.values())
    return isinstance(layer, MaterializedLayer) and all(isinstance(value, np.ndarray) for value in layer.values())
