"""Whether an encoded ``compressed_segmentation`` chunk is whole: decoders follow its offsets wherever they point.

The format: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation. A channel is a
header of 64 bits for each block, which says where the table of the block's ids lies, how many bits a voxel takes to
index it, and where those bits lie. What is asked here is what a decoder reads: that it all lies behind the headers and
within the channel. Only a block whose table might reach over the end has its voxels looked at, so that the check costs
little beside decoding.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["segmentation_problem"]

_LEGAL = np.zeros(256, bool)
_LEGAL[[0, 1, 2, 4, 8, 16, 32]] = True
_BATCH = 256
"""Blocks whose voxels are looked at together, which bounds the memory that they take."""


def segmentation_problem(
    data: bytes | NDArray[np.uint8], shape: tuple[int, int, int, int], itemsize: int, block: tuple[int, int, int]
) -> str:
    """Return what is wrong with an encoded chunk, or an empty string.

    Parameters
    ----------
    data : bytes or numpy.ndarray
        The chunk as stored, gzip and the like taken off.
    shape : tuple of int
        Its voxels (x, y, z, channel).
    itemsize : {4, 8}
        Bytes of an id.
    block : tuple of int
        Voxels of a block (x, y, z).

    Returns
    -------
    str
        Half a sentence that goes on from "the chunk is damaged:".
    """
    if len(data) % 4 or len(data) < 4 * shape[3]:
        return f"its {len(data)} bytes are no whole number of 32-bit words, or too few for the offsets of its channels"
    words = np.frombuffer(data, "<u4")
    begins = [int(w) for w in words[: shape[3]]]
    if begins[0] != shape[3] or begins != sorted(begins) or begins[-1] > words.size:
        return f"the offsets of its {shape[3]} channels are {begins}, in {words.size} words"
    needs = _voxels_needed(shape[:3], block)
    for begin, end in zip(begins, [*begins[1:], words.size], strict=True):
        problem = _channel_problem(words[begin:end], needs, itemsize // 4, shape[:3], block)
        if problem:
            return problem
    return ""


def _channel_problem(
    words: NDArray[np.uint32],
    needs: NDArray[np.int64],
    width: int,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
) -> str:
    count = needs.size
    if words.size < 2 * count:
        return f"it ends within the headers of its {count} blocks"
    headers = words[: 2 * count].reshape(count, 2).astype(np.int64)
    table, bits, values = headers[:, 0] & 0xFFFFFF, headers[:, 0] >> 24, headers[:, 1]
    if not _LEGAL[bits].all():
        return f"a block takes {bits[~_LEGAL[bits]][0]} bits a voxel, which is none of 0, 1, 2, 4, 8, 16 and 32"
    stored = bits > 0
    if table.min() < 2 * count or (stored & (values < 2 * count)).any():
        return "a block points into the headers"
    if (stored & (values + (bits * needs + 31 >> 5) > words.size)).any():
        return "the voxels of a block reach over its end"
    if (table + width > words.size).any():
        return "the ids of a block lie beyond its end"
    # Tables are as long as they need to be, not as the bits allow: of those near the end the voxels tell.
    for some in np.unique(bits[stored]):
        near = np.flatnonzero((bits == some) & (table + (width << some) > words.size))
        for part in np.split(near, range(_BATCH, near.size, _BATCH)):
            highest = _highest_index(words, values[part], int(some), _inside(part, shape, block))
            if (table[part] + (highest + 1) * width > words.size).any():
                return "voxels point beyond the ids of their block, over its end"
    return ""


def _highest_index(
    words: NDArray[np.uint32], values: NDArray[np.int64], bits: int, inside: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the highest index into its table that a voxel of each block holds; `inside` is (block, voxel)."""
    bit = np.arange(inside.shape[1]) * bits
    # The voxels beyond the chunk's edge, which may not be stored, are not looked at.
    place = np.minimum(values[:, None] + (bit >> 5), words.size - 1)
    found = words[place].astype(np.int64) >> (bit & 31) & ((1 << bits) - 1)
    highest: NDArray[np.int64] = np.where(inside, found, 0).max(axis=1, initial=0)
    return highest


def _grid_of(shape: tuple[int, int, int], block: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(-(-n // b) for n, b in zip(shape, block, strict=True))


def _extents(shape: tuple[int, int, int], block: tuple[int, int, int]) -> list[NDArray[np.int64]]:
    grid = _grid_of(shape, block)
    return [np.minimum(b, n - b * np.arange(g)) for n, b, g in zip(shape, block, grid, strict=True)]


@lru_cache(maxsize=64)
def _voxels_needed(shape: tuple[int, int, int], block: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return for each block, x fastest, how many of its stored voxels a decoder must reach."""
    x, y, z = _extents(shape, block)
    last = (x - 1) + block[0] * ((y - 1)[:, None] + block[1] * (z - 1)[:, None, None])
    needed: NDArray[np.int64] = last.ravel() + 1
    needed.flags.writeable = False
    return needed


def _inside(blocks: NDArray[np.int64], shape: tuple[int, int, int], block: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return which voxels of some blocks lie in the chunk: (block, voxel), x fastest."""
    grid = _grid_of(shape, block)
    x, y, z = _extents(shape, block)
    k, j, i = np.unravel_index(blocks, grid[::-1])
    bz, by, bx = np.indices(block[::-1]).reshape(3, -1)
    found: NDArray[np.bool_] = (bx < x[i][:, None]) & (by < y[j][:, None]) & (bz < z[k][:, None])
    return found
