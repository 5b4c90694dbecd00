"""Copy a box of voxels from the chunks that it overlaps, with one call for hundreds of chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from imageryxr.kernels.jit import compile_kernel

Spans = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunks of a box; they stay in memory as long as the table."""

    chunks: Sequence[NDArray[Any]]
    """Chunks of one type, in C order."""
    places: NDArray[np.int64]
    """Address and strides of each chunk."""
    sizes: list[NDArray[np.int64]]
    """Along each axis, the smallest size of the chunks at each position."""


def chunk_table(chunks: Sequence[NDArray[Any]], counts: Sequence[int]) -> ChunkTable:
    """Return the table of chunks in C order; ``counts`` is their number along each axis."""
    if len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError("the chunks of a box have several types")
    shapes = np.array([chunk.shape for chunk in chunks], np.int64).reshape(*counts, len(counts))
    sizes = [np.moveaxis(shapes[..., a], a, 0).reshape(n, -1).min(1) for a, n in enumerate(counts)]
    return ChunkTable(chunks, np.array([(c.ctypes.data, *c.strides) for c in chunks], np.int64), sizes)


def gather(table: ChunkTable, axes: Sequence[Spans], out: NDArray[Any]) -> None:
    """Copy parts of chunks to the box that they cover.

    Parameters
    ----------
    table : ChunkTable
        The chunks, of the type of the box.
    axes : sequence of ndarray
        For each chunk along an axis: the index in the chunk of the first voxel that is copied, that of the one after
        the last, and the index of the first voxel in the box.
    out : ndarray
        The box, in C order; at most three axes are longer than 1.
    """
    # Addresses have no bounds, so these are checked here.
    if out.dtype != table.chunks[0].dtype or not out.flags.c_contiguous:
        raise ValueError(f"chunks of {table.chunks[0].dtype} cannot be copied to a box of {out.dtype}")
    for spans, sizes, size in zip(axes, table.sizes, out.shape, strict=True):
        start, stop, place = spans.T
        is_inside = (start >= 0) & (start < stop) & (place == np.cumsum(stop - start) - (stop - start))
        if len(spans) != len(sizes) or not (is_inside & (stop <= sizes)).all() or (stop - start).sum() != size:
            raise ValueError("parts of chunks lie outside of the chunks, or do not cover the box")
    long = [axis for axis, size in enumerate(out.shape) if size > 1]
    kept = sorted(set([*long, *(axis for axis in range(out.ndim) if axis not in long)][:3]))
    if len(long) > 3:
        raise ValueError(f"{len(long)} axes are longer than 1")
    columns = [table.places[:, 1 + axis] for axis in kept]
    first = table.places[:, 0] + sum(axes[a][0, 0] * table.places[:, 1 + a] for a in range(out.ndim) if a not in kept)
    blank = [np.zeros_like(first)] * (3 - len(kept))
    whole = [np.array([[0, 1, 0]])] * len(blank)
    shape = (1,) * len(blank) + tuple(out.shape[axis] for axis in kept)
    places = np.stack([first, *blank, *columns], axis=1)
    kernel: Any = _gather
    kernel(places, *whole, *(axes[axis] for axis in kept), out.ctypes.data, shape, out.itemsize)


def _typed_copy(context: Any, target: Any, source: Any, size: Any) -> Any:
    """Return the types and the generator of a function that copies bytes from one address to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        utils: Any = cgutils
        copied_to, copied_from = (builder.inttoptr(address, utils.voidptr_t) for address in arguments[:2])
        utils.raw_memcpy(builder, copied_to, copied_from, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


_copy_bytes: Any = intrinsic(_typed_copy)


@compile_kernel
def _gather(
    table: NDArray[np.int64],
    axis_z: Spans,
    axis_y: Spans,
    axis_x: Spans,
    place: int,
    shape: tuple[int, int, int],
    item: int,
) -> None:
    # Row by row of the result: the parts of a row from several chunks share lines of the processor's cache.
    for i in range(len(axis_z)):
        for z in range(axis_z[i, 0], axis_z[i, 1]):
            for j in range(len(axis_y)):
                for y in range(axis_y[j, 0], axis_y[j, 1]):
                    row = (axis_z[i, 2] + z - axis_z[i, 0]) * shape[1] + axis_y[j, 2] + y - axis_y[j, 0]
                    for k in range(len(axis_x)):
                        n = (i * len(axis_y) + j) * len(axis_x) + k
                        start, count, step = axis_x[k, 0], axis_x[k, 1] - axis_x[k, 0], table[n, 3]
                        source = table[n, 0] + z * table[n, 1] + y * table[n, 2] + start * step
                        target = place + (row * shape[2] + axis_x[k, 2]) * item
                        if step == item:
                            _copy_bytes(target, source, count * item)
                        else:
                            for x in range(count):
                                _copy_bytes(target + x * item, source + x * step, item)
