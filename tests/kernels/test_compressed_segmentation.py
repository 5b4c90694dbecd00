"""Compare the check of compressed_segmentation chunks with a bounds-checking decoder in Python."""

from __future__ import annotations

import numpy as np
import pytest

from imageryxr.kernels.compressed_segmentation import segmentation_problem
from tests.support.segmentation_chunks import CASES, encode_chunk

chunks = pytest.importorskip("cloudvolume.chunks")
pytest.importorskip("compressed_segmentation")


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


@pytest.mark.parametrize(("shape", "dtype", "block", "most"), CASES)
def test_valid_chunks_pass(shape, dtype, block, most):
    values, data = encode_chunk(shape, dtype, block, most)
    assert segmentation_problem(data, shape, np.dtype(dtype).itemsize, block) == ""
    np.testing.assert_array_equal(decode_with_checks(data, shape, dtype, block), values)


@pytest.mark.parametrize(("shape", "dtype", "block", "most"), CASES)
def test_exactly_the_chunks_with_reads_out_of_bounds_fail(shape, dtype, block, most):
    _, data = encode_chunk(shape, dtype, block, most)
    rng = np.random.default_rng(1)
    broken = [data[: int(n)] for n in (*rng.integers(0, len(data), 15), len(data) - 4, len(data) - 8)]
    for _ in range(60):
        changed = bytearray(data)
        changed[int(rng.integers(0, min(len(data), 200)))] ^= 1 << int(rng.integers(0, 8))
        broken.append(bytes(changed))
    broken += [bytes(len(data)), b"\x01" + bytes(len(data) - 1), b"\xff" * len(data), b"", b"<html>no</html>"]
    failed = 0
    for other in broken:
        problem = segmentation_problem(other, shape, np.dtype(dtype).itemsize, block)
        try:
            values = decode_with_checks(other, shape, dtype, block)
        except ValueError:
            assert problem
            failed += 1
        else:
            assert problem == ""
            found = chunks.decode(other, "compressed_segmentation", shape=shape, dtype=dtype, block_size=block)
            np.testing.assert_array_equal(found, values)
    assert 10 < failed < len(broken)


def test_chunks_with_several_channels_are_checked():
    one, data = encode_chunk((8, 8, 8, 1), "uint64", (8, 8, 8), 9)
    words = np.frombuffer(data, "<u4")[1:]
    both = np.concatenate([np.array([2, 2 + words.size], "<u4"), words, words]).tobytes()
    assert segmentation_problem(both, (8, 8, 8, 2), 8, (8, 8, 8)) == ""
    np.testing.assert_array_equal(decode_with_checks(both, (8, 8, 8, 2), "uint64", (8, 8, 8))[..., 1:], one)
    assert "beyond its end" in segmentation_problem(both[:-8], (8, 8, 8, 2), 8, (8, 8, 8))
    assert "not offsets of channels" in segmentation_problem(both, (8, 8, 8, 1), 8, (8, 8, 8))
