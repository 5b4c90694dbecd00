"""Borders of arrays: dropped dims, boxes that extend beyond an array, halos; equal for numpy, dask and sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import imageryxr as ix
from imageryxr.core.bbox import IndexBox
from imageryxr.graph.evaluate import required_boxes
from imageryxr.graph.to_dask import expr_of
from tests.conftest import no_compute, volume

rng = np.random.default_rng(4)
LABELS = (rng.integers(0, 4, (5, 6, 7)).repeat(4, 1).repeat(4, 2) * np.uint64(2**62)).astype(np.uint64)
GREY = rng.integers(1, 255, LABELS.shape).astype(np.uint8)


class RecordingSource:
    """A source that records the boxes that are read."""

    layer_type = "image"
    name = "watched://grey"
    attrs = property(lambda self: {})

    def __init__(self, values):
        self.values, self.boxes = values, []
        self.dtype = values.dtype
        self.levels = (ix.Level(0, ix.Grid(values.shape, (8, 8, 40), (3, -4, 2)), (2, 8, 8)),)

    def check(self, mip):
        pass

    def read(self, mip, box):
        self.boxes.append(box)
        out = np.zeros(box.shape, self.dtype)
        part = box.clip(self.levels[0].grid.box)
        if part.voxels:
            out[part.slices(box)] = self.values[part.slices()]
        return out

    def __dask_tokenize__(self):
        return ("watched", id(self))


def forms(values, **attrs):
    """Return an array three times: of numpy, of dask, and lazily from a source."""
    held = volume(values, (8, 8, 40), (3, -4, 2), **attrs)
    opened = ix.open_image(RecordingSource(values)).assign_attrs(**attrs)
    return {"numpy": held, "dask": held.chunk({"z": 2, "y": 5, "x": 9}), "source": opened}


def test_a_dropped_dim_stays_dropped_after_crop_and_regrid():
    deep = ix.BBox((2, -4, 0), (20, 10, 9), resolution=(8, 8, 40))
    for form, em in forms(GREY).items():
        plane = em.isel(z=3)
        part = ix.crop(plane, deep)
        assert part.dims == ("y", "x"), form
        assert float(part.z) == float(plane.z)
        np.testing.assert_array_equal(part.values[:, 1:], GREY[3, :14, :17])
        finer = ix.regrid(plane, ix.Grid((20, 48, 56), (4, 4, 20), (6, -8, 4)), method="nearest")
        assert finer.dims == ("y", "x")
        np.testing.assert_array_equal(finer.values, GREY[3].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "select",
    [
        lambda em: em.isel(z=2),
        lambda em: em.isel(y=5, x=slice(3, 9)),
        lambda em: em.transpose("x", "y", "z"),
        lambda em: em.isel(z=slice(1, 3)).transpose("y", "x", "z"),
        lambda em: em.sel(x=slice(40, 120)),
    ],
)
def test_building_reads_nothing_and_computing_reads_only_the_selection(select):
    source = RecordingSource(GREY)
    em = select(ix.open_image(source))
    with no_compute():
        pictures = [ix.to_rgba(em), ix.crop(em, ix.grid_of(em).bbox)]
        pictures += [ix.open_image(em)] if em.ndim == 3 else []
    assert source.boxes == []
    expected = select(volume(GREY, (8, 8, 40), (3, -4, 2)))
    order = [d for d in ("z", "y", "x") if d in em.dims]
    np.testing.assert_array_equal(pictures[0].isel(rgba=0).values, expected.transpose(*order).values)
    assert sum(b.voxels for b in source.boxes) <= expected.size
    np.testing.assert_array_equal(pictures[1].values, expected.transpose(*order).values)
    if em.ndim == 3:
        np.testing.assert_array_equal(pictures[2].transpose(*order).values, expected.transpose(*order).values)


def test_crop_of_a_petavoxel_volume_reads_only_the_crop():
    class Huge(RecordingSource):
        def __init__(self):
            self.boxes, self.dtype = [], np.dtype(np.uint8)
            grid = ix.Grid((28_000, 220_000, 240_000), (4, 4, 40), (0, 0, 0))
            self.levels = (ix.Level(0, grid, (64, 512, 512)),)

        def read(self, mip, box):
            self.boxes.append(box)
            return np.full(box.shape, 7, np.uint8)

    source = Huge()
    em = ix.open_image(source)
    box = ix.BBox.around((120_000, 110_000, 10_000), (64, 64), resolution=(4, 4, 40))
    for array in (em.isel(z=10_000), em.transpose("x", "y", "z"), em):
        assert ix.crop(array, box).values.max() == 7
        if array.ndim == 3:
            assert ix.open_image(array, bbox=box).values.max() == 7
    assert all(b.voxels == 64 * 64 for b in source.boxes)
    assert xr.open_dataset(source, engine="imageryxr", chunks=None).image.encoding["preferred_chunks"]["z"][0] < 100


@given(
    st.tuples(*[st.integers(-9, 30)] * 6), st.tuples(*[st.integers(-9, 30)] * 6), st.sampled_from(["view", "regrid"])
)
def test_values_outside_an_array_are_background(first, second, how):
    a, b = (
        ix.BBox(np.minimum(c[:3], c[3:]), np.maximum(c[:3], c[3:]) + 1, resolution=(8, 8, 40)) for c in (first, second)
    )
    results = []
    for em in forms(GREY).values():
        try:
            part = ix.crop(em, a)
        except ix.errors.OutOfVolumeError:
            return
        if how == "view":
            try:
                results.append(ix.crop(part, b))
            except ix.errors.OutOfVolumeError:
                return
        else:
            results.append(
                ix.regrid(part, ix.Grid((3, 9, 11), (12, 4, 40), (b.lo[0], b.lo[1], b.lo[2])), method="nearest")
            )
    shown = [r.values for r in results]
    np.testing.assert_array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[0], shown[2])


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [96, 16, 7, 5])
def test_outlines_at_the_border_of_a_resampled_segmentation_do_not_depend_on_blocks(chunks):
    picture = ix.Grid((5, 96, 112), (4, 4, 40), (-20, -30, 2))
    whole = ix.regrid(volume(LABELS, (8, 8, 40), (3, -4, 2)), picture)
    for side in ("out", "in"):
        expected = ix.outline(whole, width=3, side=side).values
        assert expected.any()
        lazy = ix.regrid(volume(LABELS, (8, 8, 40), (3, -4, 2)).chunk(5), picture)
        np.testing.assert_array_equal(ix.outline(lazy, width=3, side=side).values, expected)
        np.testing.assert_array_equal(ix.outline(lazy.chunk(chunks), width=3, side=side).values, expected)


def test_masks_are_filled_outside_and_stay_masks():
    seg = volume(LABELS, (8, 8, 40), (3, -4, 2), layer_type="segmentation")
    box = ix.BBox((0, -6, 1), (9, 3, 4), resolution=(8, 8, 40))
    for array in (seg, seg.chunk(4)):
        masks = ix.split_masks(array, [2**62, 2**63])
        both = ix.crop(xr.Dataset({"segmentation": array, "masks": masks}), box)
        assert both.masks.dtype == bool
        assert both.masks.shape == (2, 3, 9, 9)
        np.testing.assert_array_equal(both.masks.sel(segment=2**63).values, both.segmentation.values == 2**63)
        assert ix.grid_of(both.masks) == ix.grid_of(both.segmentation)


def test_regrid_to_voxels_without_a_centre_in_the_array_raises():
    slab = volume(GREY, (8, 8, 40), (0, 0, 0)).isel(z=[0])
    with pytest.raises(ix.errors.GridMismatchError, match="has its centre within the array"):
        ix.regrid(slab, (8, 8, 100), method="mean")
    assert ix.regrid(volume(GREY, (8, 8, 40)).isel(z=[1]), (8, 8, 100), method="nearest").values.any()


def test_missing_ids_warn_when_the_whole_array_is_computed():
    seg = ix.open_segmentation(volume(LABELS, (8, 8, 40), (3, -4, 2)).chunk({"z": 1, "y": 9}))
    chosen = ix.select_ids(seg, [2**62, 5])
    with pytest.warns(ix.errors.MissingIdsWarning, match="1 of the 2 requested ids are not in the data: 5"):
        chosen.compute()
    with pytest.warns(ix.errors.MissingIdsWarning, match="not in the data: 5"):
        ix.overlay(None, seg, ids=[5, 2**62], outline=2).compute()
    # Computing a part does not warn.
    ix.select_ids(seg, ix.unique_ids(seg)).isel(z=0, y=slice(0, 2), x=slice(0, 2)).compute()
    ix.crop(ix.select_ids(seg, ix.unique_ids(seg)), ix.BBox((3, -4, 2), (4, -3, 3), resolution=(8, 8, 40))).compute()


@pytest.mark.parametrize("ids", ["4611686018427387904", 4611686018427387904, np.uint64(2**62), [str(2**62)]])
def test_a_single_id_selects_one_segment(ids):
    seg = volume(LABELS, (8, 8, 40), (3, -4, 2), layer_type="segmentation")
    np.testing.assert_array_equal(ix.select_ids(seg, ids).values != 0, LABELS == 2**62)
    assert (ix.overlay(None, seg, ids=ids).values[..., 3] > 0).sum() == (LABELS == 2**62).sum()


@pytest.mark.parametrize("resolution", [32 / 3, 1 / 3, 4.04, 7.98, 4.7, 12.345678])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 2), (7, 3), (-1234567, 2), (-1234567, 3), (-1234567, 1000), (99_999_999, 1000)]
)
def test_grid_of_reads_the_grid_from_coordinates_alone(resolution, offset, size):
    grid = ix.Grid((2, 2, size), (resolution, 8, 40), (offset, 0, 0))
    bare = xr.DataArray(np.zeros(grid.shape, np.uint8), dims=("z", "y", "x"), coords=grid.coords())
    assert ix.grid_of(bare) == grid


def test_mode_regrid_accepts_any_ratio_and_keeps_the_ids():
    seg = volume(LABELS, (8.1234567, 8.1234567, 40.7654321), (0, 0, 0))
    out = ix.regrid(seg, (12.345678, 13.1313131, 77.7777777), method="mode")
    assert set(np.unique(out.values)) <= set(np.unique(LABELS))


@pytest.mark.parametrize("width", [1, 3])
def test_a_block_reads_each_voxel_once_and_a_halo_of_the_outline_width(width):
    image, labels = RecordingSource(GREY), RecordingSource(LABELS)
    labels.layer_type = "segmentation"
    em, seg = (open_(s, chunks=(2, 8, 8)) for open_, s in ((ix.open_image, image), (ix.open_segmentation, labels)))
    lined = ix.overlay(em, seg, outline=ix.Outline(width, side="in"))
    both = ix.composite(lined, ix.outline(seg, width=width), ix.to_rgba(em))
    blocks = both.data.to_delayed()
    for index in [(0, 0, 0, 0), (1, 1, 1, 0)]:
        image.boxes.clear()
        labels.boxes.clear()
        blocks[index].compute(scheduler="synchronous")
        z, y, x = (
            slice(*np.cumsum([0, *sizes])[i : i + 2]) for sizes, i in zip(both.data.chunks[:3], index[:3], strict=True)
        )
        assert [b.voxels for b in image.boxes] == [(z.stop - z.start) * (y.stop - y.start) * (x.stop - x.start)]
        reach = [
            (max(0, s.start - width), min(n, s.stop + width)) for s, n in zip((y, x), LABELS.shape[1:], strict=True)
        ]
        (box,) = labels.boxes
        assert (box.start, box.stop) == tuple(zip((z.start, z.stop), *reach, strict=True))


def test_interpolation_reads_only_planes_with_a_weight(monkeypatch):
    image = RecordingSource(GREY)
    monkeypatch.setattr("imageryxr.graph.to_dask.BLOCK_VOXELS", 1)  # a block for each stored chunk
    coarse = ix.regrid(ix.open_image(image), (12, 16, 40))
    assert min(len(sizes) for sizes in coarse.chunks) > 1
    z = np.cumsum([0, *coarse.chunks[0]])
    expected = sorted(zip(z[:-1].tolist(), z[1:].tolist(), strict=True))
    coarse.compute(scheduler="synchronous")
    assert sorted({(b.start[0], b.stop[0]) for b in image.boxes}) == expected
    # Each voxel along y contributes to one row only.
    read = np.zeros(GREY.shape[1], int)
    for b in image.boxes:
        read[b.start[1] : b.stop[1]] += b.start[0] == 0 and b.start[2] == min(b.start[2] for b in image.boxes)
    assert read.max() == 1


@pytest.mark.parametrize("resolution", [(16, 16, 40), (64, 64, 80), (128, 128, 640), (24, 100, 40), (4, 4, 40)])
def test_a_block_of_a_downsampled_array_reads_a_limited_number_of_voxels(resolution):
    class Made(RecordingSource):
        def __init__(self):
            self.boxes, self.dtype = [], np.dtype("u8")
            self.levels = (ix.Level(0, ix.Grid((1024, 8192, 8192), (8, 8, 40), (0, 0, 0)), (64, 64, 64)),)

        def read(self, mip, box):
            self.boxes.append(box)
            return np.zeros(box.shape, self.dtype)

    made = Made()
    made.layer_type = "segmentation"
    method = "mode" if resolution[0] > 8 else "nearest"
    coarse = ix.regrid(ix.open_segmentation(made), resolution, method=method)
    expr, splits = expr_of(coarse.data)
    (box,) = next(iter(required_boxes(expr, IndexBox((0, 0, 0), tuple(s[0] for s in splits))).values()))
    made_voxels = math.prod(s[0] for s in splits)
    assert 2**20 < max(box.voxels, made_voxels) <= 1.3 * 2**22


def test_ids_of_the_other_byte_order_are_accepted():
    seg = volume(LABELS.astype(">u8"), (8, 8, 40), (3, -4, 2), layer_type="segmentation")
    assert ix.unique_ids(seg).tolist() == np.unique(LABELS)[1:].tolist()
    for colors in ("neuroglancer", None):
        drawn = ix.overlay(None, seg, colors=colors).values
        np.testing.assert_array_equal(drawn, ix.overlay(None, seg.astype("u8"), colors=colors).values)
