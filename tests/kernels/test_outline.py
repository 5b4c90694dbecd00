"""Compare outlines with their definition, with ImageryClient, and those of blocks with those of the whole."""

from __future__ import annotations

import itertools

import imageryclient as ic
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imageryxr.errors import GridMismatchError, OptionError
from imageryxr.kernels.color_table import build_color_table
from imageryxr.kernels.fill import alpha_over, gray_to_rgba
from imageryxr.kernels.outline import halo_size, paint
from tests.support.color_rows import find_rows

TOP = 2**64 - 1
POOL = np.array([0, 1, 2, 5, 2**63 - 1, 2**63 + 1, TOP - 1, TOP], np.uint64)
SIDES = list(itertools.product(["out", "in"], [True, False]))


def outline(labels, table, **options):
    """Return the outlines alone, on a transparent background."""
    return paint(labels, None, None, table, **options)


def outline_by_definition(labels, table, limit, steps, side, merge):
    """Return the outline of one slice by the definition; `steps` and `limit` are integers."""
    slots = find_rows(labels, table)
    ids = np.where(slots >= 0, labels.astype(np.uint64), np.uint64(0))
    yy, xx = np.indices(labels.shape)
    out = np.zeros((*labels.shape, 4), np.uint8)

    def near(mask):
        hit = np.zeros(mask.shape, bool)
        for y, x in np.argwhere(mask):
            hit |= abs(yy - y) * steps[0] + abs(xx - x) * steps[1] <= limit
        return hit

    for i in np.unique(ids[ids != 0]):
        own = ids == i
        against = ids == 0 if merge else ~own
        layer = np.zeros_like(out)
        layer[own & near(against) if side == "in" else near(own) & against] = table.rgba[slots[own][0]]
        out = alpha_over(out, layer)
    return out


@st.composite
def scenes(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    labels = POOL[draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, draw(st.integers(1, 7)))))]
    labels = labels.repeat(draw(st.integers(1, 3)), 0).repeat(draw(st.integers(1, 3)), 1)
    ids = draw(st.lists(st.sampled_from(POOL[1:].tolist()), unique=True))
    rgba = draw(hnp.arrays(np.uint8, (9, 4), elements=st.sampled_from([0, 1, 60, 128, 200, 255])))
    return labels, build_color_table(ids, rgba[: len(ids)], rgba[7 : 7 + draw(st.integers(0, 2))])


@given(
    scenes(),
    st.sampled_from([0, 1, 2, 3, 6, 11, 1000]),
    st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 4)]),
    st.sampled_from(SIDES),
)
@settings(max_examples=150, deadline=None)
def test_outline_equals_its_definition(scene, limit, steps, options):
    labels, table = scene
    side, merge = options
    got = outline(labels[None], table, limit=limit, steps=steps, side=side, merge=merge)[0]
    np.testing.assert_array_equal(got, outline_by_definition(labels, table, limit, steps, side, merge))


@given(
    scenes(), st.sampled_from([0, 1, 2, 3, 4, 5, 7, 12, 1000]), st.sampled_from([(1, 1), (3, 3), (1, 2)]), st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_opaque_outlines_equal_their_definition(scene, limit, steps, merge):
    labels, table = scene
    solid = table._replace(rgba=np.column_stack([table.rgba[:, :3], np.full(len(table.rgba), 255, np.uint8)]))
    got = outline(labels[None], solid, limit=limit, steps=steps, merge=merge)[0]
    np.testing.assert_array_equal(got, outline_by_definition(labels, solid, limit, steps, "out", merge))


def test_outlines_of_more_segments_than_ranks_equal_those_drawn_in_parts():
    labels = np.arange(1, 300 * 300 + 1, dtype=np.uint64).reshape(1, 300, 300) * np.uint64(2**40 + 1)
    labels[0, 100:140, 100:140] = 0
    colors = np.random.default_rng(3).integers(0, 256, (7, 4)).astype(np.uint8)
    colors[:, 3] = 255
    got = outline(labels, build_color_table(fallback=colors), limit=6)
    part = (slice(None), slice(90, 150), slice(90, 150))
    assert (outline(labels[part], build_color_table(fallback=colors), limit=6) == got[part]).all()


def blobs(shape, seeds, rng, background=0.25):
    """Return labels that are the nearest of random seeds, some of them background."""
    points = rng.random((seeds, 2)) * shape
    yy, xx = np.indices(shape)
    cell = ((yy[..., None] - points[:, 0]) ** 2 + (xx[..., None] - points[:, 1]) ** 2).argmin(-1)
    ids = rng.permutation(np.arange(1, seeds + 1))
    ids[: int(background * seeds)] = 0
    return ids[cell]


@pytest.mark.fast_forms(16)
@pytest.mark.parametrize(("side", "merge"), SIDES)
@pytest.mark.parametrize("width", [1, 2, 5, 10])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_outline_equals_imageryclient_within_rounding(side, merge, width, alpha):
    rng = np.random.default_rng(width)
    labels = blobs((90, 110), 30, rng)
    labels[40:44, 50:53] = 31
    ids = [int(i) for i in np.unique(labels) if i]
    colors = {i: tuple(rng.random(3)) for i in ids}
    masks = {i: (labels == i).T.astype(int) for i in ids}
    there = ic.composite_overlay(masks, colors, alpha=alpha, outline=True, width=width, side=side, merge_outline=merge)
    rgba = [[int(255 * c) for c in colors[i]] + [int(alpha * 255)] for i in ids]
    table = build_color_table(ids, np.array(rgba, np.uint8))
    got = outline(labels[None], table, limit=width, side=side, merge=merge)[0]
    inside = (slice(width, -width),) * 2
    expected, got = np.asarray(there)[inside].astype(int), got[inside].astype(int)
    drawn = expected[..., 3] > 0
    assert drawn.any()
    np.testing.assert_array_equal(got[..., 3] > 0, drawn)
    assert np.abs(got - expected)[drawn].max() <= 2


@pytest.mark.parametrize(("side", "merge"), SIDES)
def test_outlines_of_blocks_equal_the_outline_of_the_whole(side, merge):
    rng = np.random.default_rng(5)
    rgba = rng.integers(0, 256, (6, 4)).astype(np.uint8)
    table = build_color_table([3, 4], np.array([[1, 2, 3, 90], [9, 8, 7, 0]], np.uint8), rgba)
    cells = np.stack([blobs((170, 190), 60, rng), blobs((170, 190), 8, rng)]).astype(np.uint64)
    pictures = [
        cells * np.uint64(2**58 + 1),
        rng.integers(0, 5, (2, 170, 190)).astype(np.uint8),
        (rng.random((2, 170, 190)) < 0.03).astype(np.uint16),
    ]
    for labels, (limit, steps) in itertools.product(pictures, [(6, (1, 1)), (40, (8.5, 4.7)), (3.5, (1, 2))]):
        options = {"limit": limit, "steps": steps, "side": side, "merge": merge}
        whole = outline(labels, table, **options)
        hy, hx = halo_size(limit, steps)
        for _ in range(8):
            (y0, y1), (x0, x1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in labels.shape[1:])
            ya, xa = max(0, y0 - hy), max(0, x0 - hx)
            block = labels[:, ya : y1 + hy, xa : x1 + hx]
            inner = (slice(1, 2), slice(y0 - ya, y1 - ya), slice(x0 - xa, x1 - xa))
            got = outline(block, table, inner=inner, **options)
            np.testing.assert_array_equal(got, whole[1:2, y0:y1, x0:x1])


@given(scenes(), st.sampled_from(SIDES), st.integers(0, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_paint_equals_fill_and_outline(scene, options, limit, data):
    labels, lines = scene
    side, merge = options
    labels = np.stack([labels, labels[::-1]])
    colors = data.draw(hnp.arrays(np.uint8, (2, 4)))
    areas = build_color_table([1, TOP], colors)
    rows = slice(0, data.draw(st.integers(1, labels.shape[1])))
    inner = (slice(1, None), rows, slice(labels.shape[2] // 2, None))
    part = labels[inner]
    image = data.draw(hnp.arrays(np.uint8, part.shape))
    layer = outline(labels, lines, limit=limit, side=side, merge=merge, inner=inner)
    for under, area, line in itertools.product([None, image], [None, areas], [None, lines]):
        expected = np.zeros((*part.shape, 4), np.uint8) if under is None else gray_to_rgba(under)
        if area is not None:
            expected = paint(part, under, area, None)
        if line is not None:
            expected = alpha_over(expected, layer)
        got = paint(labels, under, area, line, limit=limit, side=side, merge=merge, inner=inner)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4", "i8", ">u8"])
def test_outline_accepts_any_dtype_and_layout(dtype):
    rng = np.random.default_rng(2)
    labels = np.stack([blobs((20, 30), 9, rng)])
    table = build_color_table((), (), rng.integers(0, 256, (9, 4)).astype(np.uint8))
    expected = outline(labels.astype(np.uint64), table, limit=2)
    np.testing.assert_array_equal(outline(labels.astype(dtype), table, limit=2), expected)
    np.testing.assert_array_equal(outline(np.asfortranarray(labels.astype(dtype)), table, limit=2), expected)


def test_the_edge_of_the_array_does_not_produce_a_line():
    labels, table = np.ones((1, 5, 6), np.uint64), build_color_table([1], np.full((1, 4), 255, np.uint8))
    for side, merge in SIDES:
        assert not outline(labels, table, limit=3, side=side, merge=merge).any()


def test_voxel_sizes_are_compared_as_decimal_fractions():
    # 3 * 4.7 is 14.100000000000001 and 0.1 + 0.2 is not 0.3; neither may change the number of pixels.
    assert halo_size(14.1, (4.7, 4.7)) == (3, 3)
    assert halo_size(3 * 4.7, (4.7, 4.7)) == (3, 3)
    assert halo_size(0.3, (0.1, 0.1 + 0.2)) == (3, 1)
    assert halo_size(0) == (0, 0)
    labels, table = np.zeros((1, 1, 9), np.uint64), build_color_table([1], np.full((1, 4), 255, np.uint8))
    labels[0, 0, 0] = 1
    assert (outline(labels, table, limit=14.1, steps=(4.7, 4.7)) > 0)[0, 0, :, 3].sum() == 3


@pytest.mark.slow
def test_a_huge_width_does_not_overflow():
    labels, table = np.ones((1, 3, 4), np.uint64), build_color_table([1], np.full((1, 4), 255, np.uint8))
    labels[0, 1, 1] = 0
    for side, merge in SIDES:
        drawn = outline(labels, table, limit=1e15, steps=(1e6, 0.0001), side=side, merge=merge)[..., 3] > 0
        np.testing.assert_array_equal(drawn, labels == (0 if side == "out" else 1))


def test_empty_arrays_give_empty_outlines():
    table = build_color_table((), (), np.full((2, 4), 255, np.uint8))
    for side, merge in SIDES:
        options = {"limit": 2, "side": side, "merge": merge}
        assert outline(np.zeros((0, 3, 4), np.uint64), table, **options).shape == (0, 3, 4, 4)
        assert outline(np.zeros((2, 0, 4), np.uint64), table, **options).shape == (2, 0, 4, 4)
        inner = (slice(0, 1), slice(2, 2), slice(None))
        assert outline(np.ones((2, 3, 4), np.uint64), table, inner=inner, **options).shape == (1, 0, 4, 4)
        assert not outline(np.ones((2, 3, 4), np.uint64), build_color_table(), **options).any()


def test_invalid_arguments_raise():
    labels, table = np.ones((1, 3, 4), np.uint64), build_color_table((), (), np.full((2, 4), 255, np.uint8))
    with pytest.raises(OptionError, match="-1"):
        outline(labels, table, limit=-1)
    with pytest.raises(OptionError, match="nan"):
        outline(labels, table, limit=float("nan"))
    with pytest.raises(OptionError, match="0, 1"):
        outline(labels, table, limit=1, steps=(0, 1))
    with pytest.raises(OptionError, match="both"):
        outline(labels, table, limit=1, side="both")
    with pytest.raises(OptionError, match="step 1"):
        outline(labels, table, limit=1, inner=(slice(None), slice(None), slice(None, None, 2)))
    with pytest.raises(GridMismatchError, match=r"\(3, 4\)"):
        outline(labels[0], table, limit=1)
    with pytest.raises(GridMismatchError, match=r"\(1, 1, 1\)"):
        paint(labels, np.zeros((1, 1, 1), np.uint8), table, None)
