"""Compare the check and the decoder of compressed_segmentation chunks with a bounds-checking decoder in Python."""

from __future__ import annotations

import numpy as np
import pytest

from imageryxr.kernels.compressed_segmentation import decode_slices, segmentation_problem
from tests.support.segmentation_chunks import CASES, decode_with_checks, encode_chunk, random_chunk

chunks = pytest.importorskip("cloudvolume.chunks")
pytest.importorskip("compressed_segmentation")


@pytest.mark.parametrize(("shape", "dtype", "block", "most"), CASES)
def test_the_check_accepts_valid_chunks(shape, dtype, block, most):
    values, data = encode_chunk(shape, dtype, block, most)
    assert segmentation_problem(data, shape, np.dtype(dtype).itemsize, block) == ""
    np.testing.assert_array_equal(decode_with_checks(data, shape, dtype, block), values)


@pytest.mark.parametrize(("shape", "dtype", "block", "most"), CASES)
def test_the_check_rejects_exactly_the_chunks_with_reads_out_of_bounds(shape, dtype, block, most):
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
    assert "beyond the end of the channel" in segmentation_problem(both[:-8], (8, 8, 8, 2), 8, (8, 8, 8))
    assert "not offsets of channels" in segmentation_problem(both, (8, 8, 8, 1), 8, (8, 8, 8))


@pytest.mark.parametrize("block", [(2**31, 2**31, 8), (2**62, 8, 8), (8, 2**32, 1), (10**30, 1, 1)])
@pytest.mark.parametrize("bits", [1, 16])
def test_the_check_rejects_blocks_whose_bit_positions_exceed_64_bits(block, bits):
    # Bit positions that overflow 64 bits once passed the check, and the decoder crashed.
    words = np.zeros(1 << 17, "<u4")
    words[:3] = 1, 2 | bits << 24, 2
    assert "its blocks have" in segmentation_problem(words.tobytes(), (8, 8, 8, 1), 4, block)


MORE = [
    ((1, 1, 1, 1), "uint32", (8, 8, 8), 3),
    ((7, 9, 13, 1), "uint64", (3, 5, 4), 40),
    ((16, 16, 16, 1), "uint64", (16, 16, 16), 5000),
    ((40, 5, 3, 1), "uint32", (64, 64, 64), 1000),
]


@pytest.mark.parametrize(("shape", "dtype", "block", "most"), [*CASES, *MORE])
def test_slices_equal_those_of_the_encoded_chunk(shape, dtype, block, most):
    values, data = encode_chunk(shape, dtype, block, most)
    expected = values[..., 0].T
    for first in range(shape[2]):
        for last in range(first + 1, shape[2] + 1):
            found = decode_slices(data, shape, np.dtype(dtype), block, 0, (first, last))
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected[first:last])


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_each_channel_is_decoded_from_its_own_words(dtype):
    pairs = [encode_chunk((9, 8, 5, 1), dtype, (4, 4, 4), most, seed) for seed, most in enumerate((3, 90, 2))]
    channels = [np.frombuffer(data, "<u4")[1:] for _, data in pairs]
    begins = 3 + np.cumsum([0, *(words.size for words in channels[:-1])])
    data = np.concatenate([begins.astype("<u4"), *channels]).tobytes()
    assert segmentation_problem(data, (9, 8, 5, 3), np.dtype(dtype).itemsize, (4, 4, 4)) == ""
    for channel, (values, _) in enumerate(pairs):
        found = decode_slices(data, (9, 8, 5, 3), np.dtype(dtype), (4, 4, 4), channel, (1, 5))
        np.testing.assert_array_equal(found, values[..., 0].T[1:5])


@pytest.mark.parametrize("seed", range(12))
def test_indexes_of_every_width_and_shared_tables_are_decoded_according_to_the_specification(seed):
    rng = np.random.default_rng(seed)
    block = tuple(int(n) for n in rng.integers(1, 6, 3))
    shape, dtype = (*(int(n) for n in rng.integers(1, 8, 3)), int(rng.integers(1, 4))), f"uint{32 << seed % 2}"
    data = random_chunk(shape, dtype, block, rng)
    assert segmentation_problem(data, shape, np.dtype(dtype).itemsize, block) == ""
    expected = decode_with_checks(data, shape, dtype, block)
    for channel in range(shape[3]):
        for first in range(shape[2]):
            found = decode_slices(data, shape, np.dtype(dtype), block, channel, (first, shape[2]))
            np.testing.assert_array_equal(found, expected[..., channel].T[first:])
