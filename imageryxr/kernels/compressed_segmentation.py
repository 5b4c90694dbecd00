"""Validate and decode ``compressed_segmentation`` chunks.

The format: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation. A channel begins
with a header of 64 bits per block: the offset of the block's table of ids, the number of bits per voxel, and the offset
of these bits. `segmentation_problem` verifies that everything that a decoder reads lies after the headers and within
the channel. To be cheap compared to decoding, it examines voxels only in blocks whose table might extend beyond the
end. `decode_slices` decodes only the blocks that contain the requested slices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.jit import compile_kernel

_FAULTS = (
    "",
    "it ends within the headers of its blocks",
    "the number of bits per voxel in a block is not 0, 1, 2, 4, 8, 16 or 32",
    "an offset of a block points into the headers",
    "the voxels of a block extend beyond the end of the channel",
    "the ids of a block lie beyond the end of the channel",
    "the voxels of a block refer to ids beyond the end of the channel",
)
_LOW = np.uint32(0xFFFFFF)
_HIGH = np.uint32(24)
_LARGEST_BLOCK = 1 << 31
"""Largest number of voxels of a block. Positions of bits in larger blocks may exceed 64-bit integers."""


def segmentation_problem(
    data: bytes, shape: tuple[int, int, int, int], itemsize: int, block: tuple[int, int, int]
) -> str:
    """Return the problem of an encoded chunk as a clause that continues "the chunk is damaged:", or an empty string.

    `data` is the chunk after decompression of gzip and the like, `shape` its shape (x, y, z, channel), `itemsize` the
    size of an id in bytes, 4 or 8, and `block` the shape of a block (x, y, z).
    """
    channels = shape[3]
    if math.prod(block) > _LARGEST_BLOCK:
        return f"its blocks have {math.prod(block):,} voxels; the limit is {_LARGEST_BLOCK:,}"
    if len(data) % 4 or len(data) < 4 * channels:
        return f"its {len(data)} bytes are not a multiple of 4, or too few for the offsets of its channels"
    words = np.frombuffer(data, "<u4")
    begins = words[:channels].astype(np.int64)
    if begins[0] != channels or (np.diff(begins) < 0).any() or begins[-1] > words.size:
        start = f"{begins[:8].tolist()}{' and more' if channels > 8 else ''}"
        return f"it begins with {start}, which are not offsets of channels in {words.size} words"
    return _FAULTS[_find_fault(words, begins, itemsize // 4, shape[:3], block)]


@compile_kernel
def _find_fault(
    words: NDArray[np.uint32],
    begins: NDArray[np.int64],
    width: int,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
) -> int:
    """Return the index in `_FAULTS` of the problem of the first channel with one, 0 if all are valid."""
    for channel in range(begins.size):
        end = begins[channel + 1] if channel + 1 < begins.size else words.size
        fault = _channel_fault(words[begins[channel] : end], width, shape, block)
        if fault:
            return fault
    return 0


@compile_kernel
def _channel_fault(
    words: NDArray[np.uint32], width: int, shape: tuple[int, int, int], block: tuple[int, int, int]
) -> int:
    """Return the index in `_FAULTS` of the problem of a channel, 0 if it is valid; ids have `width` words."""
    size = words.size
    gx, gy, gz = -(-shape[0] // block[0]), -(-shape[1] // block[1]), -(-shape[2] // block[2])
    head = 2 * gx * gy * gz
    if size < head:
        return 1
    place = 0
    for z in range(gz):
        deep = min(block[2], shape[2] - z * block[2])
        for y in range(gy):
            high = min(block[1], shape[1] - y * block[1])
            for x in range(gx):
                wide = min(block[0], shape[0] - x * block[0])
                table = np.int64(words[place] & _LOW)
                bits = np.int64(words[place] >> _HIGH)
                values = np.int64(words[place + 1])
                place += 2
                if bits > 32 or bits & (bits - 1):
                    return 2
                if table < head or (bits and values < head):
                    return 3
                # Decoders do not read the voxels of a block beyond the edge of the chunk, so they may be missing.
                last = wide + block[0] * (high - 1 + block[1] * (deep - 1))
                if bits and values + (bits * last + 31) // 32 > size:
                    return 4
                ids = (size - table) // width
                if ids < 1:
                    return 5
                # The length of a table is not stored. If it might be truncated, check the ids that voxels refer to.
                if bits and ids >> bits == 0 and not _is_within(words, values, bits, ids, (wide, high, deep), block):
                    return 6
    return 0


@compile_kernel
def _is_within(
    words: NDArray[np.uint32],
    values: np.int64,
    bits: np.int64,
    ids: np.int64,
    inside: tuple[int, int, int],
    block: tuple[int, int, int],
) -> bool:
    """Return whether all voxels of a block that lie in the chunk refer to one of the first `ids` ids."""
    mask = (np.int64(1) << bits) - 1
    highest = np.int64(0)
    for z in range(inside[2]):
        for y in range(inside[1]):
            bit = bits * block[0] * (y + block[1] * z)
            for _ in range(inside[0]):
                highest = max(highest, (np.int64(words[values + (bit >> 5)]) >> (bit & 31)) & mask)
                bit += bits
    return bool(highest < ids)


# ---------------------------------------------------------------------------------------------------------
# decoding


def decode_slices(
    data: bytes,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[Any],
    block: tuple[int, int, int],
    channel: int,
    slices: tuple[int, int],
) -> NDArray[Any]:
    """Return slices (z, y, x) of one channel of a chunk, after a check of the whole chunk.

    Parameters
    ----------
    data : bytes
        The chunk, as in `segmentation_problem`.
    shape : tuple of int
        Shape of the chunk (x, y, z, channel).
    dtype : numpy.dtype
        uint32 or uint64.
    block : tuple of int
        Shape of a block (x, y, z).
    channel : int
        Index of the channel.
    slices : tuple of int
        Index of the first slice, and of the one after the last.

    Raises
    ------
    ValueError
        If `segmentation_problem` finds a problem; the error states it.
    """
    problem = segmentation_problem(data, shape, dtype.itemsize, block)
    if problem:
        raise ValueError(problem)
    stored = np.frombuffer(data, "<u4")
    begin, end = int(stored[channel]), int(stored[channel + 1]) if channel + 1 < shape[3] else stored.size
    words = stored[begin:end].astype(np.uint32)
    out = np.empty((slices[1] - slices[0], shape[1], shape[0]), dtype.newbyteorder("="))
    even, odd = (words, words) if out.itemsize == 4 else (_pairs(words), _pairs(words[1:]))
    _decode(words, even, odd, shape[:3], block, slices[0], out)
    return out


def _pairs(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Combine each pair of words into one id."""
    return words[: words.size // 2 * 2].astype("<u4").view("<u8").astype(np.uint64)  # the copy is aligned


@compile_kernel
def _decode(
    words: NDArray[np.uint32],
    even: NDArray[Any],
    odd: NDArray[Any],
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    first: int,
    out: NDArray[Any],
) -> None:
    """Decode the slices from `first` on into `out`; `even` and `odd` are the ids that begin at even and odd words."""
    gx, gy = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    last, width = first + out.shape[0], out.itemsize // 4
    for gz in range(first // block[2], -(-last // block[2])):
        low_z, high_z = max(first, gz * block[2]), min(last, (gz + 1) * block[2])
        for iy in range(gy):
            low_y, high_y = iy * block[1], min(shape[1], (iy + 1) * block[1])
            for ix in range(gx):
                low_x, high_x = ix * block[0], min(shape[0], (ix + 1) * block[0])
                head = 2 * (ix + gx * (iy + gy * gz))
                table, bits = np.int64(words[head] & _LOW), np.int64(words[head] >> _HIGH)
                values, mask = np.int64(words[head + 1]), (np.int64(1) << bits) - 1
                ids, base = odd if width == 2 and table % 2 else even, table // width
                if bits == 0:
                    out[low_z - first : high_z - first, low_y:high_y, low_x:high_x] = ids[base]
                    continue
                for z in range(low_z, high_z):
                    for y in range(low_y, high_y):
                        bit = bits * block[0] * (y - low_y + block[1] * (z - gz * block[2]))
                        for x in range(low_x, high_x):
                            index = (np.int64(words[values + (bit >> 5)]) >> (bit & 31)) & mask
                            out[z - first, y, x] = ids[base + index]
                            bit += bits
