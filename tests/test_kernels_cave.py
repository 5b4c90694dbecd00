"""Kernels of graphene layers: ids of blocks, and chunks that can be decoded."""

from __future__ import annotations

import compressed_segmentation
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.kernels import relabel
from imageryxr.kernels.segcheck import segmentation_problem


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40)),
    st.sampled_from(["uint8", "uint16", "uint32", "uint64", "int64"]),
)
def test_distinct_and_relabel(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    few = rng.integers(0, np.iinfo(dtype).max, int(rng.integers(1, 200)), dtype, endpoint=True)
    few[0] = 0
    labels = np.repeat(rng.choice(few, shape), 3, axis=-1)
    ids = relabel.distinct(labels)
    truth = np.unique(labels).astype(np.uint64)
    np.testing.assert_array_equal(ids, truth[truth > 0])
    values = rng.integers(1, 2**64 - 1, len(ids), np.uint64, endpoint=True)
    table = dict(zip(ids.tolist(), values.tolist(), strict=True))
    expected = [table.get(int(i), 0) for i in labels.astype(np.uint64).ravel()]
    changed = labels.astype(np.uint64)
    relabel.relabel(changed, relabel.build_table(ids[::-1], values[::-1]))
    np.testing.assert_array_equal(changed.ravel(), np.array(expected, np.uint64))


def test_relabel_needs_a_value_for_each():
    with pytest.raises(ix.GridMismatchError, match="2 ids need as many values, got 1"):
        relabel.build_table(np.array([1, 2], np.uint64), np.array([1], np.uint64))


def test_distinct_of_very_many():
    labels = (
        np.random.default_rng(0).permutation(np.arange(2**63, 2**63 + 300_000, dtype=np.uint64)).reshape(3, 100, 1000)
    )
    np.testing.assert_array_equal(relabel.distinct(labels), np.arange(2**63, 2**63 + 300_000, dtype=np.uint64))


def is_sound(body, shape, block, itemsize):
    return not segmentation_problem(body, (*shape, 1), itemsize, block)


def chunk(shape=(20, 17, 9), dtype="uint64", distinct=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(rng.integers(1, np.iinfo(dtype).max, distinct, dtype), shape).astype(dtype)
    labels = np.asfortranarray(labels)
    return labels, bytes(compressed_segmentation.compress(labels, block_size=(8, 8, 8), order="F"))


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("shape", [(8, 8, 8), (20, 17, 9), (1, 1, 1), (64, 3, 8)])
@pytest.mark.parametrize("distinct", [1, 2, 40, 3000])
def test_what_can_be_decoded_is_sound(dtype, shape, distinct):
    labels, body = chunk(shape, dtype, distinct)
    assert is_sound(body, shape, (8, 8, 8), labels.dtype.itemsize)
    found = compressed_segmentation.decompress(body, shape, labels.dtype, (8, 8, 8), order="F")
    np.testing.assert_array_equal(np.asarray(found).reshape(shape, order="F"), labels)


def test_every_prefix_is_not():
    labels, body = chunk()
    for length in range(len(body)):
        if is_sound(body[:length], labels.shape, (8, 8, 8), 8):
            # what was cut off must not have mattered
            found = compressed_segmentation.decompress(body[:length], labels.shape, labels.dtype, (8, 8, 8), order="F")
            np.testing.assert_array_equal(np.asarray(found).reshape(labels.shape, order="F"), labels)
    assert not is_sound(body[: len(body) // 2], labels.shape, (8, 8, 8), 8)


@given(st.binary(max_size=400))
def test_noise_is_never_decoded_out_of_its_bytes(noise):
    if is_sound(noise, (8, 8, 8), (8, 8, 8), 8):
        compressed_segmentation.decompress(noise, (8, 8, 8), "uint64", (8, 8, 8), order="F")


@given(st.integers(0, 2**32 - 1))
def test_flipped_bits_end_no_process(seed):
    rng = np.random.default_rng(seed)
    labels, body = chunk()
    broken = np.frombuffer(body, np.uint8).copy()
    broken[rng.integers(0, len(broken), 3)] ^= rng.integers(1, 255, 3, np.uint8)
    if is_sound(broken.tobytes(), labels.shape, (8, 8, 8), 8):
        compressed_segmentation.decompress(broken.tobytes(), labels.shape, labels.dtype, (8, 8, 8), order="F")
