"""Chunks of compressed_segmentation, and a slow reference decoder that checks each read for bounds."""

from __future__ import annotations

import numpy as np


def encode_chunk(shape, dtype, block, most, seed=0):
    """Return ids (x, y, z, channel), half of them random and half 7, and the chunk that CloudVolume encodes."""
    from cloudvolume import chunks

    values = np.random.default_rng(seed).integers(1, most, shape).astype(dtype)
    values[: shape[0] // 2] = 7
    values = np.asfortranarray(values)
    return values, chunks.encode(values, "compressed_segmentation", block_size=block)


# Shape of the chunk, data type, shape of a block, and upper limit of ids.
CASES = [
    ((9, 8, 5, 1), "uint64", (8, 8, 8), 3),
    ((9, 8, 5, 1), "uint32", (8, 8, 8), 200),
    ((8, 8, 8, 1), "uint64", (4, 4, 2), 2),
    ((16, 11, 3, 1), "uint64", (8, 8, 8), 100_000),
]


def decode_with_checks(data: bytes, shape, dtype, block) -> np.ndarray:
    """Decode a chunk voxel by voxel according to the specification; raise ValueError for reads out of bounds."""
    if len(data) % 4:
        raise ValueError("words")
    words = np.frombuffer(data, "<u4").astype(object)
    channels, width = shape[3], np.dtype(dtype).itemsize // 4
    if words.size < channels or words[0] != channels:
        raise ValueError("channels")
    begins = [*words[:channels], words.size]
    if begins != sorted(begins):
        raise ValueError("channels")
    out = np.zeros(shape, dtype)
    grid = [-(-n // b) for n, b in zip(shape, block, strict=False)]
    for x, y, z, c in np.ndindex(*shape):
        part, head = words[begins[c] : begins[c + 1]], 2 * grid[0] * grid[1] * grid[2]

        def word(i, part=part):
            if not 0 <= i < part.size:
                raise ValueError("beyond")
            return int(part[i])

        number = x // block[0] + grid[0] * (y // block[1] + grid[1] * (z // block[2]))
        first, values = word(2 * number), word(2 * number + 1)
        table, bits = first & 0xFFFFFF, first >> 24
        if bits not in (0, 1, 2, 4, 8, 16, 32) or table < head or (bits and values < head):
            raise ValueError("header")
        bit = bits * (x % block[0] + block[0] * (y % block[1] + block[1] * (z % block[2])))
        index = (word(values + bit // 32) >> bit % 32) & ((1 << bits) - 1) if bits else 0
        out[x, y, z, c] = sum(word(table + index * width + k) << 32 * k for k in range(width))
    return out


def random_chunk(shape, dtype, block, rng) -> bytes:
    """Return a valid chunk with indexes of every width, whose tables of ids may be shared or start at odd words."""
    grid = [-(-n // b) for n, b in zip(shape, block, strict=False)]
    channels = [_random_channel(int(np.prod(grid)), int(np.prod(block)), np.dtype(dtype), rng) for _ in range(shape[3])]
    begins = shape[3] + np.cumsum([0, *(words.size for words in channels[:-1])])
    return np.concatenate([begins.astype("<u4"), *channels]).tobytes()


def _random_channel(blocks, voxels, dtype, rng) -> np.ndarray:
    headers, words, tables = [], [], []

    def add(more) -> int:
        words.append(np.asarray(more, "<u4"))
        return 2 * blocks + sum(part.size for part in words[:-1])

    for _ in range(blocks):
        bits = int(rng.choice([0, 1, 2, 4, 8, 16, 32]))
        if not tables or rng.random() < 0.7:
            add(np.zeros(rng.integers(0, 3)))
            count = int(rng.integers(1, 1 + min(1 << bits, 300)))
            ids = rng.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
            tables.append((add(ids.astype(dtype.newbyteorder("<")).view("<u4")), count))
        table, count = tables[rng.integers(len(tables))]
        values = int(rng.integers(0, 1 << 32))  # a random offset of indexes, which blocks of 0 bits do not use
        if bits:
            indexes = rng.integers(0, min(count, 1 << bits), voxels, np.uint64)
            padded = np.append(indexes, np.zeros(-voxels % (32 // bits), np.uint64)).reshape(-1, 32 // bits)
            values = add((padded << (bits * np.arange(32 // bits, dtype=np.uint64))).sum(axis=1, dtype=np.uint64))
        headers += [table | bits << 24, values]
    return np.concatenate([np.array(headers, "<u4"), *words])
