"""Boxes, grids, coordinates, and the mapping between two axes."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.axis_mapping import AxisMap, GridMap
from imageryxr.core.bbox import IndexBox, to_fraction
from imageryxr.core.grid import Axis
from tests.conftest import volume
from tests.support.omezarr import axes_of, level, write_ome

RESOLUTIONS = st.sampled_from([1.0, 4.0, 4.04, 4.7, 7.98, 8.0, 8.08, 10.666666666666666, 16.0, 30.0, 40.0])
OFFSETS = st.integers(-(10**7), 10**7)


@given(RESOLUTIONS, OFFSETS, st.integers(1, 40), st.integers(-20, 20), st.integers(1, 40))
def test_a_box_of_n_voxel_sizes_selects_n_voxels(resolution, offset, size, start, count):
    axis = Axis(size, resolution, offset)
    lo = to_fraction(offset + start) * to_fraction(resolution)
    assert axis.select(lo, lo + count * to_fraction(resolution)) == (start, start + count)


@given(RESOLUTIONS, OFFSETS, st.integers(1, 40), st.floats(-30, 30), st.floats(1.01, 30))
def test_a_box_selects_the_voxels_whose_centre_it_contains(resolution, offset, size, start, length):
    axis = Axis(size, resolution, offset)
    r, o = to_fraction(resolution), to_fraction(offset)
    lo = (o + Fraction(start)) * r
    hi = lo + Fraction(length) * r
    first, last = axis.select(lo, hi)
    inside = [i for i in range(-80, 120) if lo <= (o + i + Fraction(1, 2)) * r < hi]
    near = min(abs((o + i + Fraction(1, 2)) * r - e) for i in range(-80, 120) for e in (lo, hi))
    if near > r / 1000 and abs(Fraction(length) - round(length)) > Fraction(1, 1000):
        assert list(range(first, last)) == inside


@given(RESOLUTIONS, OFFSETS, st.integers(0, 63), st.integers(1, 64))
def test_sel_between_the_edges_of_a_box_equals_crop(resolution, offset, start, count):
    grid = ix.Grid((1, 1, 64), (resolution, 8, 40), (offset, 0, 0))
    da = volume(np.arange(64, dtype=np.uint8).reshape(1, 1, 64), grid.resolution, grid.voxel_offset)
    stop = min(64, start + count)
    lo, hi = offset + start, offset + stop
    picked = da.sel(x=slice(lo * resolution, hi * resolution))
    cropped = ix.crop(da, ix.BBox((lo, 0, 0), (hi, 1, 1), resolution=(resolution, 8, 40)))
    assert picked.values.tolist() == cropped.values.tolist() == [[list(range(start, stop))]]
    assert cropped.x.values.tolist() == da.x.values[start:stop].tolist()


def test_a_thin_box_selects_the_voxel_that_contains_its_centre():
    axis = Axis(10, 40.0, 0)
    assert axis.select(Fraction(81), Fraction(82)) == (2, 3)
    assert axis.select(Fraction(119), Fraction(120)) == (2, 3)
    assert axis.select(Fraction(100), Fraction(121)) == (2, 3)


def test_around_equals_imageryclients_bounds():
    import imageryclient

    for center, size in [((5319, 8677, 1201), (400, 400, 1)), ((10, 11, 12), (3, 4, 5)), ((-7, 0, 5), (8, 7, 2))]:
        width, height, depth = size
        lo, hi = imageryclient.bounds_from_center(center, width, height, depth)
        box = ix.BBox.around(center, size, resolution=(4, 4, 40))
        assert (box.lo, box.hi) == (tuple(lo), tuple(hi))


@given(RESOLUTIONS, OFFSETS, st.integers(2, 200), st.integers(1, 4))
def test_grid_of_reads_coordinates_back(resolution, offset, size, step):
    grid = ix.Grid((1, 2, size), (resolution, 8, 40), (offset, -3, 0))
    da = xr.DataArray(
        np.zeros(grid.shape), dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution}
    )
    assert ix.grid_of(da) == grid
    part = da.isel(x=slice(size // 2, None))
    assert ix.grid_of(part).voxel_offset == (offset + size // 2, -3, 0)
    strided = da.isel(x=slice(0, None, step))
    if strided.sizes["x"] > 1:
        assert ix.grid_of(strided).resolution[0] == pytest.approx(resolution * step)
        assert np.allclose(ix.grid_of(strided).coords()["x"], strided.x)


@given(RESOLUTIONS, RESOLUTIONS, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 30), st.integers(-40, 40))
def test_nearest_linear_and_overlap_equal_their_definitions(target, source, o_t, o_s, count, start):
    t, s = Axis(60, target, o_t), Axis(50, source, o_s)
    m = AxisMap.from_axes(t, s)
    stop, valid = start + count, (0, 50)
    first, last = m.target_range(*valid)
    nearest = m.nearest(start, stop)
    mapped = range(max(start, first), min(stop, last))
    if mapped:
        linear = m.linear(mapped[0], mapped[-1] + 1, valid)
        overlap = m.overlap(mapped[0], mapped[-1] + 1, valid)
    for k in range(count):
        center = (to_fraction(o_t) + start + k + Fraction(1, 2)) * to_fraction(target)
        place = center / to_fraction(source) - o_s
        inside = 0 <= place < 50
        holds = place.numerator // place.denominator
        assert nearest[k] == holds
        assert inside == (start + k in mapped)
        if inside:
            at = start + k - mapped[0]
            low = (place - Fraction(1, 2)).numerator // (place - Fraction(1, 2)).denominator
            assert linear.lower[at] == min(max(low, 0), 49)
            assert linear.upper[at] == min(max(low + 1, 0), 49)
            assert linear.weight[at] == pytest.approx(float(place - Fraction(1, 2) - low))
            half = to_fraction(target) / to_fraction(source) / 2
            a, b = max(place - half, 0), min(place + half, 50)
            weights = overlap.weights[overlap.offsets[at] : overlap.offsets[at + 1]]
            assert overlap.first[at] == a.numerator // a.denominator
            shares = [
                min(i + 1, b) - max(i, a) for i in range(int(overlap.first[at]), int(overlap.first[at]) + len(weights))
            ]
            assert [Fraction(int(w), int(weights.sum())) for w in weights] == [x / (b - a) for x in shares]
        lo, hi = m.source_range(start + k, start + k + 1, "nearest")
        assert (lo, hi) == (holds, holds + 1)


def test_a_grid_map_finds_the_boxes_of_one_grid_in_another():
    target = ix.Grid((40, 60, 50), (8, 8, 40), (3, 5, 0))
    source = ix.Grid((20, 30, 25), (32, 16, 40), (1, 0, 2))
    found = GridMap.from_grids(target, source)
    assert found.scale == 1 / 8
    box = IndexBox((1, 4, 3), (11, 22, 12))
    part = found.target_box(box)
    fine, coarse = (grid.coords() for grid in (target, source))
    for axis, dim in enumerate("zyx"):
        size = coarse[dim].attrs["resolution"]
        edges = coarse[dim].values[[box.start[axis], box.stop[axis] - 1]] + [-size / 2, size / 2]
        inside = np.flatnonzero((edges[0] <= fine[dim].values) & (fine[dim].values < edges[1]))
        assert (part.start[axis], part.stop[axis]) == (inside[0], inside[-1] + 1)
    assert found.source_box(part, "nearest") == box
    assert found.relative_to(box.start).source_box(part, "nearest") == IndexBox.of_shape(box.shape)


@pytest.mark.parametrize(
    ("lo", "hi", "word"),
    [
        ((0, 0, 0), (1, -1, 1), "inverted along y"),
        ((0, 0, 0), (1, 1, 0), "empty along z"),
        ((0, 0), (1, 1, 1), "is not 3 numbers"),
        ((0, 0, float("nan")), (1, 1, 1), "not a finite number"),
        ("abc", (1, 1, 1), "is not 3 numbers"),
    ],
)
def test_invalid_boxes_raise_with_a_reason(lo, hi, word):
    with pytest.raises(ix.errors.BoxError, match=word):
        ix.BBox(lo, hi)


def test_the_error_for_a_box_outside_states_the_volume_in_the_unit_of_the_box():
    grid = ix.Grid((64, 192, 192), (10, 10, 10), (640, 512, 320))
    da = xr.DataArray(
        np.zeros(grid.shape, "uint8"), dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": (10, 10, 10)}
    )
    box = ix.BBox((9162, 1026, 1472), (9542, 1406, 1473), resolution=(5, 5, 10))
    with pytest.raises(ix.errors.OutOfVolumeError) as caught:
        ix.crop(da, box)
    message = str(caught.value)
    assert "which is (1,280, 1,024, 320) to (1,664, 1,408, 384) in voxels of 5 × 5 × 10 nm" in message
    assert "give corners inside it, in the unit of the box" in message
    assert "resolution=(10, 10, 10)" not in message
    own = ix.BBox((0, 0, 0), (9, 9, 9), resolution=(10, 10, 10))
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"384\) in voxels of 10 × 10 × 10 nm; give"):
        ix.crop(da, own)


def test_the_error_for_a_box_outside_prefers_the_unit_in_which_the_whole_box_fits():
    zeros = np.broadcast_to(np.uint8(0), (40, 4000, 4000))
    da = volume(zeros, (4.04, 4.04, 40), (1000, 1000, 0))  # 4,040 to 20,200 nm
    lo, hi = (3900, 4100, 0), (4200, 4300, 30)
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"fit if they are voxels .* resolution=\(4\.04, 4\.04, 40\)"):
        ix.crop(da, ix.BBox(lo, hi, resolution=(8, 8, 40)))
    with pytest.raises(ix.errors.OutOfVolumeError, match="other way round: points"):
        ix.crop(da, ix.BBox(lo[::-1], hi[::-1], resolution=(4.04, 4.04, 40)))
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"fit if they are nanometres: give resolution=\(1, 1, 1\)"):
        ix.crop(da, ix.BBox((15000, 15000, 0), (30000, 30000, 30), resolution=(8, 8, 40)))  # no unit fits all of it


def test_the_error_for_a_box_outside_suggests_the_voxels_of_another_level(sample):
    em, seg = ix.open_image(sample.image, mip=1), ix.open_segmentation(sample.segmentation)
    box = ix.BBox((2100, 1100, 110), (2200, 1200, 120), resolution=(8, 8, 40))
    match = r"voxels of 16 × 16 × 40 nm: give resolution=\(16, 16, 40\)"
    for call in (
        lambda: ix.crop(ix.open_image(sample.image), box),
        lambda: ix.align(ix.open_image(sample.image), seg, bbox=box),
        lambda: ix.plane(ix.open_image(sample.image), (2100, 1100, 110), (9, 9), resolution=(8, 8, 40)),
        lambda: ix.sample_points(ix.open_image(sample.image), [(2100, 1100, 110)], resolution=(8, 8, 40)),
    ):
        with pytest.raises(ix.errors.OutOfVolumeError, match=match):
            call()
    voxels = ix.BBox((4300, 2200, 110), (4400, 2300, 120), resolution=(16, 16, 40))
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"give resolution=\(8, 8, 40\)"):
        ix.crop(em, voxels)
    with pytest.raises(ix.errors.OutOfVolumeError, match=r"give resolution=\(8, 8, 40\)"):
        ix.sample_points(em, [(4300, 2200, 110)], resolution=(16, 16, 40))


def test_uneven_and_descending_coordinates_raise():
    grid = ix.Grid((1, 1, 4), (8, 8, 40), (0, 0, 0))
    da = xr.DataArray(
        np.zeros(grid.shape), dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": (8, 8, 40)}
    )
    with pytest.raises(ix.errors.GridError, match="not evenly spaced"):
        ix.grid_of(da.isel(x=[0, 1, 3]))
    with pytest.raises(ix.errors.GridError, match="does not ascend"):
        ix.grid_of(da.isel(x=slice(None, None, -1)))


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-12])
def test_a_tiny_voxel_size_raises_before_it_overflows(size):
    with pytest.raises(ix.errors.BoxError, match="too small for a voxel size"):
        ix.BBox((0, 0, 0), (1, 1, 1), resolution=(size, 8, 8))
    with pytest.raises(ix.ImageryError, match="too small for a voxel size"):
        ix.Grid((1, 1, 1), (8, size, 8), (0, 0, 0))


# ---------------------------------------------------------------------------------------------------------
# grids half a voxel apart

SHAPE = (4, 16, 16)


def precomputed_like(offset=(3, 4, 1)) -> xr.DataArray:
    grid = ix.Grid(SHAPE, (8, 8, 40), offset)
    attrs = {"source": "precomputed://gs://bucket/em", "layer_type": "image"}
    return xr.DataArray(np.zeros(SHAPE, "uint8"), coords=grid.coords(), dims=("z", "y", "x"), attrs=attrs, name="image")


@pytest.fixture
def labels(tmp_path):
    ids = np.arange(np.prod(SHAPE), dtype="uint64").reshape(SHAPE)
    multiscale = {"axes": axes_of("zyx"), "datasets": [level("0", (40, 8, 8))]}
    write_ome(tmp_path / "cells", [ids], multiscale, more={"image-label": {}})
    return tmp_path / "cells"


def test_labels_half_a_voxel_away_from_the_image_warn(labels):
    image, cells = precomputed_like((0, 0, 0)), ix.open_segmentation(labels)
    with pytest.warns(ix.ImageryWarning, match=r"exactly half a voxel \(4 × 4 × 20 nm\).*open it with assume='corner'"):
        ix.align(image, cells)
    with pytest.warns(ix.ImageryWarning, match="assume='corner'"):
        ix.regrid(cells, like=image)
    with pytest.raises(
        ix.errors.GridMismatchError, match="half a voxel apart, so if one is an OME-Zarr.*assume='corner'"
    ):
        ix.overlay(image, cells)


def test_labels_opened_by_their_corner_align_with_the_image_and_do_not_warn(labels):
    cells = ix.open_segmentation(labels, assume="corner")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = ix.align(precomputed_like((0, 0, 0)), cells)
    np.testing.assert_array_equal(both.segmentation.values, cells.values)


def test_a_crop_warns_like_the_whole_array(labels):
    cells = ix.open_segmentation(labels).isel(z=slice(1, 3), x=slice(2, 9))
    with pytest.warns(ix.ImageryWarning, match="assume='corner'"):
        ix.align(precomputed_like(), cells)


def test_grids_with_other_differences_do_not_warn(labels):
    cells = ix.open_segmentation(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.align(precomputed_like((0.25, 0.25, 0)), cells)
        ix.align(precomputed_like((0.5, 0.5, 0.5)), cells)


def test_a_grid_without_an_offset_begins_at_zero():
    assert ix.Grid((2, 3, 4), (8, 8, 40)) == ix.Grid((2, 3, 4), (8, 8, 40), (0, 0, 0))
