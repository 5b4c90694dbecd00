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

Index3 = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Adjacent chunks and their memory addresses; the table keeps the chunks in memory."""

    chunks: Sequence[NDArray[Any]]
    """Chunks (z, y, x) of one dtype, in C order of their positions."""
    places: NDArray[np.int64]
    """int64[n, 4], the address and the strides of each chunk."""
    edges: tuple[NDArray[np.int64], ...]
    """Along each axis, the start of each chunk and the end of the last one."""


def chunk_table(chunks: Sequence[NDArray[Any]], edges: Sequence[Sequence[int]]) -> ChunkTable:
    """Return the table of chunks (z, y, x) in C order of their positions.

    Along each axis, ``edges`` has the start of each chunk and the end of the last one. A chunk may extend beyond the
    next edge; only its part up to that edge is used.
    """
    if len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError("the chunks of a box must have the same dtype")
    found = tuple(np.array(along, np.int64) for along in edges)
    z, y, x = map(np.diff, found)
    sizes = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1).reshape(-1, 3)
    shapes = np.array([chunk.shape for chunk in chunks], np.int64)
    if shapes.shape != sizes.shape or not ((sizes > 0) & (sizes <= shapes)).all():
        raise ValueError("the chunks do not cover the space between their edges")
    return ChunkTable(chunks, np.array([(c.ctypes.data, *c.strides) for c in chunks], np.int64), found)


def gather(table: ChunkTable, start: Index3, stop: Index3) -> NDArray[Any]:
    """Return the box from ``start`` to ``stop``, which lies within the chunks, in C order."""
    # The kernel reads memory addresses and does not check bounds.
    for edges, low, high in zip(table.edges, start, stop, strict=True):
        if not edges[0] <= low < high <= edges[-1]:
            raise ValueError(f"the box from {start} to {stop} is empty or extends beyond its chunks")
    out = np.empty([high - low for low, high in zip(start, stop, strict=True)], table.chunks[0].dtype)
    kernel: Any = _gather
    kernel(table.places, table.edges, start, stop, out.ctypes.data, out.itemsize)
    return out


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
    places: NDArray[np.int64],
    edges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    start: Index3,
    stop: Index3,
    target: int,
    item: int,
) -> None:
    along_z, along_y, along_x = edges
    width = (stop[2] - start[2]) * item
    number = -1
    for i in range(len(along_z) - 1):
        for j in range(len(along_y) - 1):
            y0, y1 = max(start[1], along_y[j]), min(stop[1], along_y[j + 1])
            for k in range(len(along_x) - 1):
                number += 1
                x0, x1 = max(start[2], along_x[k]), min(stop[2], along_x[k + 1])
                if x0 >= x1:
                    continue
                first, step_z, step_y, step_x = places[number]
                first += (y0 - along_y[j]) * step_y + (x0 - along_x[k]) * step_x
                for z in range(max(start[0], along_z[i]), min(stop[0], along_z[i + 1])):
                    source = first + (z - along_z[i]) * step_z
                    row = (z - start[0]) * (stop[1] - start[1]) + y0 - start[1]
                    place = target + row * width + (x0 - start[2]) * item
                    for y in range(y1 - y0):
                        if step_x == item:
                            _copy_bytes(place + y * width, source + y * step_y, (x1 - x0) * item)
                        else:
                            for x in range(x1 - x0):
                                _copy_bytes(place + y * width + x * item, source + y * step_y + x * step_x, item)
