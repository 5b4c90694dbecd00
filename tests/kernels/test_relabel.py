"""Compare the kernels that find and replace the ids of blocks with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.kernels import relabel


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40)),
    st.sampled_from(["uint8", "uint16", "uint32", "uint64", "int64"]),
)
def test_distinct_ids_and_relabel_equal_numpy(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    few = rng.integers(0, np.iinfo(dtype).max, int(rng.integers(1, 200)), dtype, endpoint=True)
    few[0] = 0
    labels = np.repeat(rng.choice(few, shape), 3, axis=-1)
    ids = relabel.distinct_ids(labels)
    truth = np.unique(labels).astype(np.uint64)
    np.testing.assert_array_equal(ids, truth[truth > 0])
    values = rng.integers(1, 2**64 - 1, len(ids), np.uint64, endpoint=True)
    table = dict(zip(ids.tolist(), values.tolist(), strict=True))
    expected = [table.get(int(i), 0) for i in labels.astype(np.uint64).ravel()]
    changed = labels.astype(np.uint64)
    relabel.relabel(changed, relabel.build_relabel_table(ids[::-1], values[::-1]))
    np.testing.assert_array_equal(changed.ravel(), np.array(expected, np.uint64))


def test_a_missing_value_raises():
    with pytest.raises(ix.errors.GridMismatchError, match="2 ids need as many values, got 1"):
        relabel.build_relabel_table(np.array([1, 2], np.uint64), np.array([1], np.uint64))


def test_distinct_ids_finds_300_000_ids():
    labels = (
        np.random.default_rng(0).permutation(np.arange(2**63, 2**63 + 300_000, dtype=np.uint64)).reshape(3, 100, 1000)
    )
    np.testing.assert_array_equal(relabel.distinct_ids(labels), np.arange(2**63, 2**63 + 300_000, dtype=np.uint64))
