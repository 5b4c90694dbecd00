"""Compare the resampling kernels with exact fractions and NumPy."""

from __future__ import annotations

import math
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imageryxr.core.axis_mapping import LinearMap, OverlapMap
from imageryxr.errors import GridMismatchError, LayerError, OptionError
from imageryxr.kernels.downsample import mean, mean_rgba, mode
from imageryxr.kernels.interpolate import resample_linear, resample_nearest

TOP = 2**64 - 1
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
IMAGES = ["u1", "u2", "u4", "i2", "i4", "i1"]


@st.composite
def images(draw, dtypes=IMAGES):
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    if dtype.kind == "f":
        elements = st.floats(-1000, 1000, width=32)
    else:
        info = np.iinfo(dtype)
        elements = st.sampled_from([int(info.min), 0, 1, 2, 3, 100, int(info.max) - 1, int(info.max)])
    return draw(hnp.arrays(dtype, draw(SHAPES), elements=elements))


@st.composite
def linear_maps(draw, size):
    n = draw(st.integers(1, 6))
    at = st.integers(0, size - 1)
    lower = draw(st.lists(at, min_size=n, max_size=n))
    upper = draw(st.lists(at, min_size=n, max_size=n))
    # Eighths, so that the float64 arithmetic of the kernel is exact and halves occur.
    weight = draw(st.lists(st.sampled_from([0.0, 0.5, 0.25, 0.875]), min_size=n, max_size=n))
    return LinearMap(np.array(lower), np.array(upper), np.array(weight))


@st.composite
def overlap_maps(draw, size):
    first, weights, offsets = [], [], [0]
    for _ in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, size - 1))
        count = draw(st.integers(1, size - begin))
        first.append(begin)
        weights += draw(st.lists(st.sampled_from([1, 2, 3, 4, 1000]), min_size=count, max_size=count))
        offsets.append(len(weights))
    return OverlapMap(np.array(first), np.array(offsets), np.array(weights, np.int64))


def round_half_up(value, dtype):
    info = np.iinfo(dtype)
    return min(max(floor(value + Fraction(1, 2)), int(info.min)), int(info.max))


def voxels(out):
    return np.ndindex(out.shape)


@given(st.data(), st.sampled_from(["u1", "u2", "u4", "u8", "i2", "i8", "f4", "f8", "?", ">u8", ">f4"]))
@settings(max_examples=80, deadline=None)
def test_nearest_equals_numpy_indexing(data, dtype):
    a = data.draw(hnp.arrays(np.dtype(dtype), data.draw(SHAPES)))
    index = [np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5))).astype(np.int64) for n in a.shape]
    index = [np.repeat(i, data.draw(st.sampled_from([1, 2]))) for i in index]
    if data.draw(st.booleans()):
        index[2] = np.arange(a.shape[2])
    got = resample_nearest(a, *index)
    assert got.dtype == a.dtype.newbyteorder("=")
    assert got.shape == tuple(i.size for i in index)
    for z, y, x in voxels(got):
        np.testing.assert_array_equal(got[z, y, x], a[index[0][z], index[1][y], index[2][x]])


def test_nearest_keeps_large_ids():
    a = np.array([[[TOP, TOP - 1, 2**53 + 1]]], np.uint64)
    assert resample_nearest(a, [0], [0], [2, 2, 0, 1]).tolist() == [[[2**53 + 1, 2**53 + 1, TOP, TOP - 1]]]


def interpolate_exactly(a, axes, at):
    value = Fraction(0)
    for corner in np.ndindex(2, 2, 2):
        weight = Fraction(1)
        source = []
        for axis, i, side in zip(axes, at, corner, strict=True):
            w = Fraction(float(axis.weight[i]))
            weight *= w if side else 1 - w
            source.append(axis[side][i])
        if weight:
            value += weight * int(a[tuple(source)])
    return value


@given(st.data(), images())
@settings(max_examples=80, deadline=None)
def test_linear_of_integers_equals_exact_fractions(data, a):
    axes = tuple(data.draw(linear_maps(n)) for n in a.shape)
    got = resample_linear(a, axes)
    assert got.dtype == a.dtype
    for at in voxels(got):
        assert got[at] == round_half_up(interpolate_exactly(a, axes, at), a.dtype)


@given(st.data(), images(["f4", "f8", "f2", ">f4"]))
@settings(max_examples=40, deadline=None)
def test_linear_of_floats_equals_numpy(data, a):
    axes = tuple(data.draw(linear_maps(n)) for n in a.shape)
    got = resample_linear(a, axes)
    v = a.astype(np.float64)
    for axis, (lower, upper, weight) in enumerate(axes):
        shape = [1, 1, 1]
        shape[axis] = -1
        v = v.take(lower, axis) * (1 - weight).reshape(shape) + v.take(upper, axis) * weight.reshape(shape)
    assert got.dtype == a.dtype.newbyteorder("=")
    np.testing.assert_allclose(got, v, rtol=1e-3 if a.dtype.itemsize == 2 else 1e-6, atol=1e-3)


def test_linear_gives_nan_only_where_a_nan_is_used():
    a = np.array([[[1.0, np.nan, 3.0]]])
    point = LinearMap(np.array([0]), np.array([0]), np.array([0.0]))
    got = resample_linear(
        a, (point, point, LinearMap(np.array([0, 0, 2]), np.array([1, 1, 1]), np.array([0.0, 0.5, 0.0])))
    )
    np.testing.assert_array_equal(got, [[[1.0, np.nan, 3.0]]])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4"])
def test_linear_rounds_halves_up_whatever_the_weights(dtype):
    rng = np.random.default_rng(1)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for parts in [(3, 5, 7), (7, 7, 6), (9, 11, 10), (1, 3, 14)]:
        a = rng.integers(low, high, (2, 2, 64), dtype=dtype, endpoint=True)
        numbers = [np.arange(n) for n in parts[:2]] + [np.arange(63 * parts[2]) % parts[2]]
        firsts = [np.zeros(n, np.int64) for n in parts[:2]] + [np.arange(63 * parts[2]) // parts[2]]
        axes = tuple(LinearMap(f, f + 1, n / p) for f, n, p in zip(firsts, numbers, parts, strict=True))
        exact = a.astype(object)
        for axis, (first, number, part) in enumerate(zip(firsts, numbers, parts, strict=True)):
            shape = [-1 if i == axis else 1 for i in range(3)]
            whole = number.astype(object).reshape(shape)
            exact = exact.take(first, axis) * (part - whole) + exact.take(first + 1, axis) * whole
        count = math.prod(parts)
        np.testing.assert_array_equal(resample_linear(a, axes), ((2 * exact + count) // (2 * count)).astype(dtype))


def test_upper_voxels_without_weight_may_lie_outside():
    a = np.arange(12, dtype=np.uint8).reshape(1, 2, 6)
    alone = LinearMap(np.array([0]), np.array([1]), np.array([0.0]))
    along_y = LinearMap(np.array([0, 1]), np.array([1, 2]), np.zeros(2))
    along_x = LinearMap(np.array([0, 5]), np.array([1, 6]), np.array([0.5, 0.0]))
    assert resample_linear(a, (alone, along_y, along_x)).tolist() == [[[1, 5], [7, 11]]]


def covered_voxels(a, axes, at):
    """Yield (label or value, weight) of all voxels that an output voxel covers."""
    spans = [range(axis.offsets[i], axis.offsets[i + 1]) for axis, i in zip(axes, at, strict=True)]
    for ks in np.ndindex(*(len(s) for s in spans)):
        source = tuple(int(axis.first[i]) + k for axis, i, k in zip(axes, at, ks, strict=True))
        weight = 1
        for axis, span, k in zip(axes, spans, ks, strict=True):
            weight *= int(axis.weights[span[k]])
        yield a[source], weight


@given(st.data(), images())
@settings(max_examples=80, deadline=None)
def test_mean_of_integers_equals_exact_fractions(data, a):
    axes = tuple(data.draw(overlap_maps(n)) for n in a.shape)
    got = mean(a, axes)
    assert got.dtype == a.dtype
    for at in voxels(got):
        cell = list(covered_voxels(a, axes, at))
        exact = Fraction(sum(int(v) * w for v, w in cell), sum(w for _, w in cell))
        assert got[at] == round_half_up(exact, a.dtype)


@given(st.data(), images(["f4", "f8"]))
@settings(max_examples=40, deadline=None)
def test_mean_of_floats_equals_a_loop(data, a):
    a[0, 0, 0] = np.nan
    axes = tuple(data.draw(overlap_maps(n)) for n in a.shape)
    got = mean(a, axes)
    for at in voxels(got):
        cell = list(covered_voxels(a, axes, at))
        expected = sum(float(v) * w for v, w in cell) / sum(w for _, w in cell)
        np.testing.assert_allclose(got[at], expected, rtol=1e-5, atol=1e-3)


BYTES = st.sampled_from([0, 1, 2, 127, 128, 254, 255]) | st.integers(0, 255)


@pytest.mark.slow
@given(st.data(), SHAPES, st.booleans())
@settings(max_examples=100, deadline=None)
def test_mean_of_colours_equals_exact_fractions(data, shape, turned):
    a = data.draw(hnp.arrays(np.uint8, (*shape, 4), elements=BYTES))
    a = np.asfortranarray(a) if turned else a
    axes = tuple(data.draw(overlap_maps(n)) for n in shape)
    got = mean_rgba(a, axes)
    assert (got.dtype, got.shape) == (np.uint8, (*(axis.first.size for axis in axes), 4))
    for at in np.ndindex(got.shape[:3]):
        cell = [(list(map(int, pixel)), w) for pixel, w in covered_voxels(a, axes, at)]
        opaque = sum(pixel[3] * w for pixel, w in cell)
        if not opaque:
            assert got[at].tolist() == [0, 0, 0, 0]
            continue
        expected = [Fraction(sum(pixel[i] * pixel[3] * w for pixel, w in cell), opaque) for i in range(3)]
        expected.append(Fraction(opaque, sum(w for _, w in cell)))
        assert got[at].tolist() == [round_half_up(value, np.uint8) for value in expected]


def test_mean_of_colours_in_wide_rows_equals_numpy():
    """Rows are wider than the vectors of a processor."""
    a = np.random.default_rng(0).integers(0, 256, (4, 6, 402, 4), dtype=np.uint8)
    a[:, :3, ::3, 3] = 0
    got = mean_rgba(a, tuple(halves(n) for n in a.shape[:3]))
    blocks = a.astype(np.int64).reshape(2, 2, 3, 2, 201, 2, 4)
    alpha = blocks[..., 3:]
    opaque = alpha.sum((1, 3, 5))
    color = (2 * (blocks[..., :3] * alpha).sum((1, 3, 5)) + opaque) // np.maximum(2 * opaque, 1)
    np.testing.assert_array_equal(got[..., :3], color)
    np.testing.assert_array_equal(got[..., 3:], (2 * opaque + 8) // 16)


@given(st.data(), st.sampled_from(["u1", "u2", "u4", "u8", "i8", "i4", ">u8"]))
@settings(max_examples=100, deadline=None)
def test_mode_equals_a_loop(data, dtype):
    dtype = np.dtype(dtype)
    pool = [0, 1, 2, 3] + ([2**63, TOP - 1, TOP] if dtype.itemsize == 8 and dtype.kind == "u" else [])
    pool += [-1] if dtype.kind == "i" else []
    a = data.draw(hnp.arrays(dtype, data.draw(SHAPES), elements=st.sampled_from(pool)))
    axes = tuple(data.draw(overlap_maps(n)) for n in a.shape)
    got = mode(a, axes)
    assert got.dtype == dtype.newbyteorder("=")
    for at in voxels(got):
        sums = {}
        for label, weight in covered_voxels(a, axes, at):
            sums[int(label)] = sums.get(int(label), 0) + weight
        expected = min(sums, key=lambda i: (-sums[i], i == 0, i % 2**64))
        assert int(got[at]) == expected


def halves(n):
    return OverlapMap(np.arange(0, n, 2), np.arange(0, n + 1, 2), np.ones(n, np.int64))


def test_mode_of_many_labels_equals_numpy():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 400, (4, 16, 16)).astype(np.uint64) + np.uint64(2**63)
    whole = tuple(OverlapMap(np.array([0]), np.array([0, n]), np.ones(n, np.int64)) for n in a.shape)
    ids, counts = np.unique(a, return_counts=True)
    assert mode(a, whole).item() == ids[counts.argmax()]


def test_a_common_factor_of_weights_has_no_effect():
    a = np.random.default_rng(0).integers(0, 4, (4, 6, 8)).astype(np.uint8)
    axes = tuple(halves(n) for n in a.shape)
    large = tuple(OverlapMap(o.first, o.offsets, o.weights * 10**15) for o in axes)
    np.testing.assert_array_equal(mode(a, large), mode(a, axes))
    np.testing.assert_array_equal(mean(a, large), mean(a, axes))
    rgba = np.stack([a, a * 80, a + 1, 255 - a * 40], axis=-1)
    np.testing.assert_array_equal(mean_rgba(rgba, large), mean_rgba(rgba, axes))


def threes(n):
    return OverlapMap(np.arange(n), np.arange(n + 1) * 3, np.tile([1, 5, 2], n))


def test_resampled_blocks_equal_the_resampled_whole():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 256, (3, 20, 30)).astype(np.uint8)
    f = rng.random((3, 20, 30))
    n = 40
    lower = [np.sort(rng.integers(0, s, n)) for s in a.shape]
    axes = [LinearMap(i, np.minimum(i + 1, s - 1), rng.random(n)) for i, s in zip(lower, a.shape, strict=True)]
    for image in (a, f):
        whole = resample_linear(image, tuple(axes))
        low, high = axes[2].lower[11], axes[2].upper[:30].max() + 1
        part = LinearMap(axes[2].lower[11:30] - low, axes[2].upper[11:30] - low, axes[2].weight[11:30])
        np.testing.assert_array_equal(resample_linear(image[..., low:high], (*axes[:2], part)), whole[..., 11:30])
        covers = tuple(threes(s // 3) for s in image.shape)
        part = (*covers[:2], threes(3))
        np.testing.assert_array_equal(mean(image[..., 4:], part), mean(image, covers)[..., 4:7])


def test_large_integers_stay_in_range():
    a = np.full((1, 1, 2), TOP, np.uint64)
    point = LinearMap(np.array([0]), np.array([0]), np.array([0.0]))
    middle = LinearMap(np.array([0]), np.array([1]), np.array([0.5]))
    assert resample_linear(a, (point, point, middle)).item() >= TOP - 2**11
    b = np.full((1, 1, 2), 2**63 - 1, np.int64)
    assert resample_linear(b, (point, point, middle)).item() >= 2**63 - 2**11


def test_empty_maps_give_empty_arrays():
    a, some, none = np.zeros((2, 3, 0), np.uint8), np.array([0]), np.array([], np.int64)
    assert resample_nearest(a, some, some, none).shape == (1, 1, 0)
    point, gap = LinearMap(some, some, np.zeros(1)), LinearMap(none, none, np.zeros(0))
    assert resample_linear(a, (point, point, gap)).shape == (1, 1, 0)
    run, bare = OverlapMap(some, np.array([0, 1]), np.array([1])), OverlapMap(none, np.array([0]), none)
    assert mean(a, (run, run, bare)).shape == mode(a, (run, run, bare)).shape == (1, 1, 0)
    assert mean_rgba(np.zeros((2, 3, 0, 4), np.uint8), (run, run, bare)).shape == (1, 1, 0, 4)


def test_invalid_arguments_raise():
    a, good = np.zeros((2, 2, 2), np.uint8), np.array([0, 1])
    axis = halves(2)
    with pytest.raises(GridMismatchError, match="2"):
        resample_nearest(a, good, good, np.array([2]))
    with pytest.raises(GridMismatchError, match="-1"):
        resample_nearest(a, good, good, np.array([-1]))
    with pytest.raises(GridMismatchError, match="-1"):
        resample_linear(a, (LinearMap(good - 1, good, np.zeros(2)),) * 3)
    with pytest.raises(GridMismatchError, match=r"\(2, 2\)"):
        resample_nearest(a[0], good, good, good)
    with pytest.raises(LayerError, match="complex128"):
        resample_nearest(a.astype(complex), good, good, good)
    with pytest.raises(GridMismatchError, match="upper"):
        resample_linear(a, (LinearMap(good, good, np.zeros(1)),) * 3)
    with pytest.raises(LayerError, match="complex64"):
        resample_linear(a.astype(np.complex64), (LinearMap(good, good, np.zeros(2)),) * 3)
    with pytest.raises(GridMismatchError, match=r"must lie in \[0, 2\)"):
        mean(a, (axis, axis, OverlapMap(np.array([1]), np.array([0, 2]), np.array([1, 1]))))
    with pytest.raises(GridMismatchError, match="offsets"):
        mean(a, (axis, axis, OverlapMap(np.array([0]), np.array([0, 0]), np.array([], np.int64))))
    with pytest.raises(GridMismatchError, match="offsets"):
        mean(a, (axis, axis, OverlapMap(np.array([1]), np.array([0, 2]), np.array([1]))))
    with pytest.raises(OptionError, match="positive"):
        mode(a, (axis, axis, OverlapMap(np.array([0]), np.array([0, 2]), np.array([1, 0]))))
    with pytest.raises(OptionError, match="coarser"):
        mode(a, (OverlapMap(np.array([0]), np.array([0, 2]), np.array([2**40, 1])),) * 3)
    with pytest.raises(LayerError, match="float64"):
        mode(a.astype(float), (axis, axis, axis))
    for wrong in (a, np.zeros((2, 2, 2, 3), np.uint8), np.zeros((2, 2, 2, 4))):
        with pytest.raises(LayerError, match=r"uint8 \(z, y, x, 4\), got"):
            mean_rgba(wrong, (axis, axis, axis))
    with pytest.raises(GridMismatchError, match="must lie in"):
        mean_rgba(np.zeros((2, 2, 1, 4), np.uint8), (axis, axis, axis))
