"""Compare the tables and sets of ids with Python dicts and NumPy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imageryxr.errors import LayerError, OptionError
from imageryxr.kernels import color_table as lk
from imageryxr.kernels import isin
from tests.support.color_rows import find_rows

TOP = 2**64 - 1
BIG = [0, 1, 2, 7, 255, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, TOP - 1, TOP]
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
DTYPES = st.sampled_from(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">u8", ">i4"])


@st.composite
def label_arrays(draw):
    dtype = np.dtype(draw(DTYPES))
    pool = [i for i in BIG if i <= np.iinfo(dtype).max]
    if dtype.kind == "i":
        pool += [-1, -2, int(np.iinfo(dtype).min)]
    labels = draw(hnp.arrays(dtype, draw(SHAPES), elements=st.sampled_from(pool)))
    return np.repeat(labels, draw(st.sampled_from([1, 5, 11])), axis=2)


IDS = st.lists(st.sampled_from(BIG), unique=True, max_size=len(BIG))


def as_python_ints(labels):
    """Return labels as Python ints, signed ones modulo 2**64."""
    return np.array([int(v) % 2**64 for v in labels.ravel()], dtype=object).reshape(labels.shape)


def splitmix64(value):
    z = (value + 0x9E3779B97F4A7C15) & TOP
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & TOP
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & TOP
    return z ^ (z >> 31)


@given(label_arrays(), IDS, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_find_rows_equals_a_dict_lookup(labels, ids, m):
    table = lk.build_color_table(ids, np.zeros((len(ids), 4), np.uint8), np.zeros((m, 4), np.uint8))

    def slot(i):
        if i == 0:
            return -1
        if i in ids:
            return ids.index(i)
        return len(ids) + splitmix64(i) % m if m else -1

    expected = np.array([slot(i) for i in as_python_ints(labels).ravel()]).reshape(labels.shape)
    got = find_rows(labels, table)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@given(label_arrays(), IDS)
@settings(max_examples=60, deadline=None)
def test_select_masks_and_is_present_equal_numpy(labels, ids):
    exact = as_python_ints(labels)
    kept = np.isin(exact.astype(np.uint64), np.array(ids, np.uint64))
    got = isin.select(labels, ids)
    assert got.dtype == labels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, np.where(kept, labels, 0))
    each = [exact.astype(np.uint64) == np.uint64(i) for i in ids]
    got = isin.masks(labels, ids)
    assert got.dtype == bool
    assert got.shape == (len(ids), *labels.shape)
    np.testing.assert_array_equal(got, np.array(each).reshape(got.shape))
    assert isin.is_present(labels, ids).tolist() == [bool(m.any()) for m in each]


def test_tables_of_many_ids_find_every_row_and_stay_small():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 2**63, 5000).astype(np.uint64)
    colors = rng.integers(0, 256, (5000, 4)).astype(np.uint8)
    table = lk.build_color_table(ids, colors)
    np.testing.assert_array_equal(find_rows(ids, table), np.arange(5000))
    assert (find_rows(ids + np.uint64(2**63), table) == -1).all()
    assert len(table.keys) <= 4 * 5000


def test_the_last_of_repeated_ids_takes_precedence():
    labels = np.array([[[1, 2, 0]]])
    assert (isin.masks(labels, [2, 2, 1])[:, 0, 0] * 1).tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert isin.is_present(labels, [2, 5, 2]).tolist() == [True, False, True]
    table = lk.build_color_table([1, 1], np.zeros((2, 4), np.uint8))
    assert find_rows(labels, table).tolist() == [[[1, -1, -1]]]


def test_background_is_never_drawn():
    table = lk.build_color_table([0], np.full((1, 4), 9, np.uint8), np.full((3, 4), 9, np.uint8))
    assert find_rows(np.zeros((1, 1, 2), np.uint8), table).tolist() == [[[-1, -1]]]


def test_equal_tables_pickle_to_equal_small_bytes():
    def make():
        return lk.build_color_table(np.arange(1, 301), np.zeros((300, 4), np.uint8), np.ones((5, 4), np.uint8))

    assert pickle.dumps(make()) == pickle.dumps(make())
    assert len(pickle.dumps(make())) < 10_000
    back = pickle.loads(pickle.dumps(make()))
    np.testing.assert_array_equal(find_rows(np.arange(9), back), find_rows(np.arange(9), make()))


@pytest.mark.parametrize("order", ["C", "F"])
def test_select_accepts_any_memory_layout(order):
    labels = np.array(np.arange(24).reshape(2, 3, 4), order=order, dtype=np.uint64)
    expected = np.where(labels.copy() % 2 == 1, labels, 0)
    odd = np.arange(1, 24, 2)
    np.testing.assert_array_equal(isin.select(labels, odd), expected)
    np.testing.assert_array_equal(isin.select(labels[:, ::-1, ::2], odd), expected[:, ::-1, ::2])
    labels.flags.writeable = False
    np.testing.assert_array_equal(isin.select(labels, odd), expected)
    raw = np.frombuffer(b"x" + labels.tobytes(), np.uint8)[1:].view(np.uint64)
    np.testing.assert_array_equal(isin.select(raw, odd), expected.ravel())
    assert isin.select(labels[:0], odd).shape == (0, 3, 4)


def test_bools_are_the_ids_0_and_1():
    labels = np.array([[[True, False]]])
    assert find_rows(labels, lk.build_color_table([1], np.zeros((1, 4), np.uint8))).tolist() == [[[0, -1]]]
    assert isin.select(labels, [1]).dtype == bool


def test_invalid_ids_and_colours_raise():
    with pytest.raises(LayerError, match="float64"):
        isin.select(np.zeros((1, 1, 1)), [1])
    with pytest.raises(LayerError, match=r"1\.5"):
        isin.select(np.zeros((1, 1, 1), int), [1.5])
    with pytest.raises(LayerError, match="float32"):
        isin.select(np.zeros((1, 1, 1), int), np.zeros(2, np.float32))
    with pytest.raises(OptionError, match="2 ids"):
        lk.build_color_table([1, 2], np.zeros((1, 4), np.uint8))
    with pytest.raises(OptionError, match="float64"):
        lk.build_color_table([1], np.zeros((1, 4)))


@pytest.mark.parametrize("low", [0, 16, 32, 40, 48])
def test_ids_that_differ_in_few_bits_have_different_first_probes(low):
    ids = np.arange(1, 4096, dtype=np.uint64) << np.uint64(low)
    for some in (ids, ids * np.uint64(2**32 + 1), ids | np.uint64(1)):
        begin = {lk.first_probe(key, 8192) for key in np.unique(some)}
        assert len(begin) > 0.6 * len(np.unique(some))


@pytest.mark.parametrize("dtype", ["u1", "u8", "i4", ">u8", "?"])
def test_select_of_background_keeps_shape_and_dtype(dtype):
    for shape in [(2, 3, 4), (0, 3), (1,)]:
        got = isin.select(np.zeros(shape, dtype), [1, 0])
        assert got.dtype == np.dtype(dtype).newbyteorder("=")
        assert got.shape == shape
        assert not got.any()
