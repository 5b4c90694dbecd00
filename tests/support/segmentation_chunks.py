"""Chunks of compressed_segmentation, encoded by CloudVolume."""

from __future__ import annotations

import numpy as np


def encode_chunk(shape, dtype, block, most, seed=0):
    """Return random ids (x, y, z, channel), of which one half are equal, and the encoded chunk."""
    from cloudvolume import chunks

    values = np.random.default_rng(seed).integers(1, most, shape).astype(dtype)
    values[: shape[0] // 2] = 7
    values = np.asfortranarray(values)
    return values, chunks.encode(values, "compressed_segmentation", block_size=block)


#: Shape of the chunk, data type, shape of a block, and largest id.
CASES = [
    ((9, 8, 5, 1), "uint64", (8, 8, 8), 3),
    ((9, 8, 5, 1), "uint32", (8, 8, 8), 200),
    ((8, 8, 8, 1), "uint64", (4, 4, 2), 2),
    ((16, 11, 3, 1), "uint64", (8, 8, 8), 100_000),
]
