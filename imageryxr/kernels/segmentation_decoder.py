"""Decode slices of ``compressed_segmentation`` chunks.

A slice needs only one layer of the blocks of a chunk, which takes a fraction of the time and memory of the whole chunk.
The format and the check that must precede decoding are in `imageryxr.kernels.compressed_segmentation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.jit import compile_kernel

_LOW = np.uint32(0xFFFFFF)
_HIGH = np.uint32(24)


def decode_slices(
    data: bytes,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[Any],
    block: tuple[int, int, int],
    channel: int,
    slices: tuple[int, int],
) -> NDArray[Any]:
    """Return slices (z, y, x) of one channel of a valid chunk.

    Parameters
    ----------
    data : bytes
        A chunk in which `segmentation_problem` finds no problem.
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
    """
    stored = np.frombuffer(data, "<u4")
    begin, end = int(stored[channel]), int(stored[channel + 1]) if channel + 1 < shape[3] else stored.size
    words = stored[begin:end].astype(np.uint32)
    out = np.empty((slices[1] - slices[0], shape[1], shape[0]), dtype.newbyteorder("="))
    even, odd = (words, words) if out.itemsize == 4 else (_pairs(words), _pairs(words[1:]))
    _decode(words, even, odd, shape[:3], block, slices[0], out)
    return out


def _pairs(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return each two words as one id."""
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
    """Decode as many slices as the output has, from `first`; `even` and `odd` are the ids that begin at such words."""
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
