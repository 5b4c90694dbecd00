"""Compare decoded slices of compressed_segmentation chunks with the voxels that were encoded."""

from __future__ import annotations

import numpy as np
import pytest

from imageryxr.kernels.compressed_segmentation import segmentation_problem
from imageryxr.kernels.segmentation_decoder import decode_slices
from tests.support.segmentation_chunks import CASES, decode_with_checks, encode_chunk, random_chunk

pytest.importorskip("compressed_segmentation")

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
def test_all_bits_and_shared_tables_are_decoded_according_to_the_specification(seed):
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
