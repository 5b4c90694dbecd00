"""Compare the check of compressed_segmentation chunks with a bounds-checking decoder in Python."""

from __future__ import annotations

import numpy as np
import pytest

from imageryxr.kernels.compressed_segmentation import segmentation_problem
from tests.support.segmentation_chunks import CASES, decode_with_checks, encode_chunk

chunks = pytest.importorskip("cloudvolume.chunks")
pytest.importorskip("compressed_segmentation")


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


@pytest.mark.parametrize("block", [(2**31, 2**31, 8), (2**62, 8, 8), (8, 2**32, 1), (10**30, 1, 1)])
@pytest.mark.parametrize("bits", [1, 16])
def test_blocks_whose_bits_have_no_64_bit_positions_fail(block, bits):
    # Positions that wrap around passed the check, and the decoder crashed.
    words = np.zeros(1 << 17, "<u4")
    words[:3] = 1, 2 | bits << 24, 2
    assert "its blocks have" in segmentation_problem(words.tobytes(), (8, 8, 8, 1), 4, block)
