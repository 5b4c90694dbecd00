"""Whether an encoded ``compressed_segmentation`` chunk is whole: decoders follow its offsets wherever they point.

The format: https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation. A channel is a
header of 64 bits for each block, which says where the table of the block's ids lies, how many bits a voxel takes to
index it, and where those bits lie. What is asked here is what a decoder reads: that it all lies behind the headers and
within the channel. Only a block whose table might reach over the end has its voxels looked at, so that the check costs
little beside decoding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.run_length import compiled, frozen

__all__ = ["segmentation_problem"]

_SAYS = (
    "",
    "it ends within the headers of its blocks",
    "a block's voxels take a number of bits that is none of 0, 1, 2, 4, 8, 16 and 32",
    "a block points into the headers",
    "the voxels of a block reach over its end",
    "the ids of a block lie over its end",
    "the voxels of a block point at ids over its end",
    "a block's voxels take 32 bits, which compressed_segmentation 2.3 decodes to one id",
)
_LOW = np.uint32(0xFFFFFF)
_HIGH = np.uint32(24)


def segmentation_problem(
    data: bytes, shape: tuple[int, int, int, int], itemsize: int, block: tuple[int, int, int]
) -> str:
    """Return what is wrong with an encoded chunk, or an empty string.

    Parameters
    ----------
    data : bytes
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
    channels = shape[3]
    if len(data) % 4 or len(data) < 4 * channels:
        return f"its {len(data)} bytes are no whole number of 32-bit words, or too few for the offsets of its channels"
    words = frozen(np.frombuffer(data, "<u4"))
    begins = words[:channels].tolist()
    if begins[0] != channels or begins != sorted(begins) or begins[-1] > words.size:
        return f"it begins with {begins}, which are no offsets of channels in {words.size} words"
    for begin, end in zip(begins, [*begins[1:], words.size], strict=True):
        fault = _fault(words[begin:end], itemsize // 4, shape[:3], block)
        if fault:
            return _SAYS[fault]
    return ""


@compiled
def _fault(words: NDArray[np.uint32], width: int, shape: tuple[int, int, int], block: tuple[int, int, int]) -> int:
    """Return the index into `_SAYS` of what is wrong with a channel; ids are `width` words wide."""
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
                if bits == 32:
                    return 7  # legal, though no block that people store holds more than 65,536 ids
                if table < head or (bits and values < head):
                    return 3
                # The voxels of a block beyond the chunk's edge need not be stored: no decoder reads them.
                last = wide + block[0] * (high - 1 + block[1] * (deep - 1))
                if bits and values + (bits * last + 31) // 32 > size:
                    return 4
                ids = (size - table) // width
                if ids < 1:
                    return 5
                # A table is as long as it needs to be: the voxels tell of one that the end might cut.
                if bits and ids >> bits == 0 and not _is_within(words, values, bits, ids, (wide, high, deep), block):
                    return 6
    return 0


@compiled
def _is_within(
    words: NDArray[np.uint32],
    values: np.int64,
    bits: np.int64,
    ids: np.int64,
    inside: tuple[int, int, int],
    block: tuple[int, int, int],
) -> bool:
    """Tell whether the voxels of a block that lie in the chunk all point at one of so many ids."""
    mask = (np.int64(1) << bits) - 1
    highest = np.int64(0)
    for z in range(inside[2]):
        for y in range(inside[1]):
            bit = bits * block[0] * (y + block[1] * z)
            for _ in range(inside[0]):
                highest = max(highest, (np.int64(words[values + (bit >> 5)]) >> (bit & 31)) & mask)
                bit += bits
    return bool(highest < ids)
