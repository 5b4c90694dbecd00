"""Compare fills, contrast and blending with exact fractions, Pillow and ImageryClient."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import imageryclient as ic
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.color_table import build_color_table
from imageryxr.kernels.fill import alpha_over, gray_to_rgba, to_uint8
from imageryxr.kernels.outline import paint
from tests.support.color_rows import find_rows

TOP = 2**64 - 1
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
COLORS = hnp.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 51, 100, 127, 128, 254, 255]))


def blend_exactly(bottom, top):
    """Blend two pixels by the definition, in exact fractions."""
    s, d = int(top[3]), int(bottom[3])
    if s == 0:
        return tuple(int(v) for v in bottom)
    rest = Fraction(d * (255 - s), 255)
    mixed = [(int(t) * s + int(b) * rest) / (s + rest) for t, b in zip(top[:3], bottom[:3], strict=True)]
    return tuple(floor(v + Fraction(1, 2)) for v in [*mixed, s + rest])


@given(hnp.arrays(np.uint8, (40, 2, 4)))
@settings(max_examples=40, deadline=None)
def test_alpha_over_is_exact(pixels):
    bottom, top = pixels[:, 0], pixels[:, 1]
    got = alpha_over(bottom, top)
    assert [tuple(p) for p in got.tolist()] == [blend_exactly(b, t) for b, t in zip(bottom, top, strict=True)]


def test_alpha_over_equals_pillow_within_rounding():
    rng = np.random.default_rng(0)
    bottom, top = rng.integers(0, 256, (2, 500, 500, 4)).astype(np.uint8)
    bottom[:50, :, 3], top[50:100, :, 3] = 255, 255
    bottom[100:150, :, 3], top[150:200, :, 3] = 0, 0
    expected = np.asarray(Image.alpha_composite(Image.fromarray(bottom), Image.fromarray(top)))
    got = alpha_over(bottom, top)
    assert got.shape == bottom.shape
    assert np.abs(got.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(got[150:200], bottom[150:200])


@st.composite
def pictures(draw):
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64]))
    ids = [1, 2, 2**63 + 1, TOP] if dtype == np.uint64 else [1, 2, 3, 100]
    shape = draw(SHAPES)
    labels = draw(hnp.arrays(dtype, shape, elements=st.sampled_from([0, *ids])))
    stretch = draw(st.sampled_from([1, 20]))
    image = draw(hnp.arrays(np.uint8, shape))
    table = build_color_table(ids[1:], draw(COLORS), draw(COLORS)[: draw(st.integers(0, 2))])
    return np.repeat(labels, stretch, 2), np.repeat(image, stretch, 2), table


@given(pictures())
@settings(max_examples=60, deadline=None)
def test_fill_equals_a_colour_lookup_and_alpha_blending(picture):
    labels, image, table = picture
    slots = find_rows(labels, table)
    expected = np.zeros((*labels.shape, 4), np.uint8)
    expected[slots >= 0] = table.rgba[slots[slots >= 0]]
    got = paint(labels, None, table, None)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(paint(labels, image, table, None), alpha_over(gray_to_rgba(image), expected))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_fill_equals_imageryclient_within_rounding(alpha):
    rng = np.random.default_rng(1)
    labels = np.kron(rng.integers(0, 6, (8, 9)), np.ones((7, 5), int)).astype(np.uint64)
    image = rng.integers(0, 256, labels.shape).astype(np.uint8)
    ids = range(1, 6)
    colors = {i: tuple(rng.random(3)) for i in ids}
    masks = {i: (labels == i).T.astype(int) for i in ids}
    rgba = [[int(255 * c) for c in colors[i]] + [int(alpha * 255)] for i in ids]
    table = build_color_table(list(ids), np.array(rgba, np.uint8))
    for under in (None, image):
        there = ic.composite_overlay(masks, colors, alpha=alpha, imagery=None if under is None else under.T)
        expected = np.asarray(there).astype(int)
        got = paint(labels[None], None if under is None else under[None], table, None)[0]
        assert np.abs(got - expected).max() <= 2


@given(
    st.sampled_from(["u1", "u2", "u4", "i2", "f4", "f8", "i4", "u8", ">u2", ">f4", "f2", "i1"]),
    st.floats(-300, 300, width=16),
    st.floats(-300, 300, width=16),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_to_uint8_equals_numpy(dtype, lo, hi, data):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        values = st.floats(-400, 400, width=16) | st.sampled_from([np.nan, np.inf, -np.inf])
    else:
        info = np.iinfo(dtype)
        values = st.integers(max(-400, int(info.min)), min(400, int(info.max)))
    image = data.draw(hnp.arrays(dtype, (2, 3, 4), elements=values))
    # Enough voxels that images of small integers are mapped with a table.
    image = np.tile(image, (1, 1, 32))
    v = image.astype(np.float64)
    if lo == hi:
        expected = np.where(v > lo, 255, 0)
    else:
        with np.errstate(invalid="ignore"):
            scaled = np.nan_to_num((v - lo) / (hi - lo) * 255, posinf=1e9, neginf=-1e9)
        expected = np.floor(np.clip(scaled, 0, 255) + 0.5)
    got = to_uint8(image, lo, hi)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_to_uint8_of_all_16_bit_values_equals_that_of_floats():
    for dtype in (np.uint16, np.int16):
        every = np.arange(70000).astype(np.uint16).view(dtype).reshape(7, 100, 100)
        expected = to_uint8(every.astype(np.float64), 100, 20000)
        np.testing.assert_array_equal(to_uint8(every, 100, 20000), expected)


def test_to_uint8_with_the_full_range_keeps_or_inverts_bytes():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(to_uint8(image, 0, 255), image)
    np.testing.assert_array_equal(to_uint8(image, 255, 0), 255 - image)


def test_gray_to_rgba_is_opaque_grey():
    image = np.array([[[0, 9, 255]]], np.uint8)
    assert gray_to_rgba(image).tolist() == [[[[0, 0, 0, 255], [9, 9, 9, 255], [255, 255, 255, 255]]]]


def test_empty_arrays_give_empty_pictures():
    table = build_color_table()
    assert paint(np.zeros((0, 3, 4), np.uint64), None, table, None).shape == (0, 3, 4, 4)
    assert paint(np.zeros((0, 3, 4), np.uint64), np.zeros((0, 3, 4), np.uint8), table, None).shape == (0, 3, 4, 4)
    assert gray_to_rgba(np.zeros((0, 3), np.uint8)).shape == (0, 3, 4)
    assert to_uint8(np.zeros((0, 3), np.uint8), 0, 1).shape == (0, 3)
    assert alpha_over(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)).shape == (0, 4)


def test_invalid_arguments_raise():
    labels, table = np.ones((1, 2, 3), np.uint64), build_color_table()
    with pytest.raises(GridMismatchError, match=r"\(1, 2, 2\)"):
        paint(labels, np.zeros((1, 2, 2), np.uint8), table, None)
    with pytest.raises(LayerError, match="uint16"):
        paint(labels, np.zeros((1, 2, 3), np.uint16), table, None)
    with pytest.raises(LayerError, match="float64"):
        paint(labels.astype(float), None, table, None)
    with pytest.raises(OptionError, match="nan"):
        to_uint8(labels, 0, np.nan)
    with pytest.raises(OptionError, match="too far apart"):
        to_uint8(labels, -1e308, 1e308)
    with pytest.raises(LayerError, match="complex"):
        to_uint8(labels.astype(complex), 0, 1)
    with pytest.raises(LayerError, match=r"\(2, 3\)"):
        alpha_over(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(GridMismatchError, match=r"\(2, 4\)"):
        alpha_over(np.zeros((2, 4), np.uint8), np.zeros((1, 4), np.uint8))
