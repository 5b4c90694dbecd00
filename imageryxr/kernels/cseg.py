"""Whether bytes are a compressed_segmentation chunk, before a decoder that does not look takes them for one.

The decoder that CloudVolume uses follows offsets wherever they lead: in a chunk that was cut short, out of its bytes,
and the process ends. The format: Neuroglancer's ``compressed_segmentation/README.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.runs import compiled, frozen

__all__ = ["is_sound"]


@compiled
def _sound(
    words: NDArray[np.uint32], start: int, size: NDArray[np.int64], block: NDArray[np.int64], label_words: int
) -> bool:
    blocks = (size + block - 1) // block
    total = words.size
    if start + 2 * blocks[0] * blocks[1] * blocks[2] > total:
        return False
    volume = block[0] * block[1] * block[2]
    for number in range(blocks[0] * blocks[1] * blocks[2]):
        bx = number % blocks[0]
        by = number // blocks[0] % blocks[1]
        bz = number // (blocks[0] * blocks[1])
        table = start + np.int64(words[start + 2 * number] & np.uint32(0xFFFFFF))
        bits = np.int64(words[start + 2 * number] >> np.uint32(24))
        values = start + np.int64(words[start + 2 * number + 1])
        if not (bits == 0 or bits == 1 or bits == 2 or bits == 4 or bits == 8 or bits == 16 or bits == 32):
            return False
        if values + (bits * volume + 31) // 32 > total:
            return False
        highest = np.int64(0)
        # Only where the largest index that these bits can hold would lead out are the indexes looked at.
        if bits > 0 and (bits > 16 or table + (np.int64(1) << bits) * label_words > total):
            mask = np.int64((1 << bits) - 1)
            nx = min(block[0], size[0] - bx * block[0])
            for z in range(min(block[2], size[2] - bz * block[2])):
                for y in range(min(block[1], size[1] - by * block[1])):
                    first = block[0] * (y + block[1] * z)
                    for place in range(first, first + nx):
                        at = place * bits
                        index = (np.int64(words[values + at // 32]) >> (at % 32)) & mask
                        highest = max(highest, index)
        if table + (highest + 1) * label_words > total:
            return False
    return True


def is_sound(
    body: bytes, shape: tuple[int, int, int], block: tuple[int, int, int], label_bytes: int, channels: int = 1
) -> bool:
    """Tell whether every offset and index of a chunk leads to a place within its bytes.

    Parameters
    ----------
    body
        The chunk, decompressed of all but its own encoding.
    shape, block
        Voxels of the chunk and of its blocks, (x, y, z).
    label_bytes
        4 or 8.
    channels
        How many channels it holds.
    """
    if len(body) % 4 or len(body) < 4 * channels or min(block) < 1:
        return False
    words = frozen(np.frombuffer(body, "<u4").astype(np.uint32, copy=False))
    size, blocks = np.array(shape, np.int64), np.array(block, np.int64)
    return all(_sound(words, int(words[c]), size, blocks, label_bytes // 4) for c in range(channels))
