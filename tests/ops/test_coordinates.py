"""Coordinates and attributes: units, outdated resolutions, other coordinates, order of layers, attrs of results."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import GridMismatchError
from tests.conftest import volume
from tests.support.volumes import as_source

rng = np.random.default_rng(7)
IMAGE = volume(
    rng.integers(1, 255, (4, 8, 8), dtype=np.uint8),
    (8, 8, 40),
    (100, 200, 10),
    layer_type="image",
    voxel_offset=(100, 200, 10),
)
LABELS = volume(rng.integers(0, 5, (4, 8, 8)).astype(np.uint64), (8, 8, 40), (100, 200, 10), layer_type="segmentation")
BOX = ix.BBox((102, 201, 11), (106, 206, 13), resolution=(8, 8, 40))


def in_unit(da: xr.DataArray, unit, nm: float) -> xr.DataArray:
    return da.assign_coords({d: (d, da[d].values / nm, {"units": unit}) for d in "zyx"})


# --- units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "nm"),
    [("nm", 1), ("nanometers", 1), ("um", 1e3), ("µm", 1e3), ("μm", 1e3), ("micrometre", 1e3), ("microns", 1e3), ("mm", 1e6),
     ("m", 1e9), ("Å", 0.1), ("\u212b", 0.1), ("angstrom", 0.1), ("pm", 1e-3)],
)  # fmt: skip
def test_coordinates_in_any_unit_of_length_are_converted_to_nm(unit, nm):
    da = in_unit(IMAGE, unit, nm)
    assert ix.grid_of(da) == ix.grid_of(IMAGE)
    assert ix.open_image(da).attrs["resolution"] == (8, 8, 40)
    np.testing.assert_array_equal(ix.crop(da, BOX).values, ix.crop(IMAGE, BOX).values)
    assert ix.crop(da, BOX).x.attrs["units"] == "nm"
    np.testing.assert_array_equal(ix.crop(da, BOX).x.values, ix.crop(IMAGE, BOX).x.values)
    aligned = ix.align(da, LABELS)
    np.testing.assert_array_equal(aligned.image.values, IMAGE.values)


def test_axes_may_have_different_units():
    da = IMAGE.assign_coords(z=("z", IMAGE.z.values / 1e3, {"units": "um"}))
    assert ix.grid_of(da) == ix.grid_of(IMAGE)


def test_a_pint_unit_is_read_by_its_name():
    class Unit:
        def __str__(self):
            return "micrometer"

    assert ix.grid_of(in_unit(IMAGE, Unit(), 1e3)) == ix.grid_of(IMAGE)


@pytest.mark.parametrize("unit", ["pixel", "furlongs", "s", 5])
def test_an_unknown_unit_raises_with_its_name(unit):
    with pytest.raises(ix.ImageryError, match=str(unit)):
        ix.grid_of(in_unit(IMAGE, unit, 1))


# --- the size of one voxel ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        lambda da: da.coarsen(z=4, y=4, x=4).mean(),
        lambda da: da.coarsen(z=4).mean(),
        lambda da: da.coarsen(z=2).mean().isel(z=[0]).assign_coords(z=da.z[:2].mean().expand_dims("z")),
        lambda da: da[:3].coarsen(z=3, y=2, x=2).mean(),
        lambda da: da[::4, ::4, ::4],
        lambda da: da.isel(z=[1])[:, ::2, ::2],
    ],
)
def test_an_outdated_resolution_attr_does_not_decide_an_axis_of_one_voxel(changed):
    with pytest.raises(ix.errors.GridError, match=r"one voxel.*assign_attrs\(resolution="):
        ix.grid_of(changed(IMAGE.astype(float)))


def test_a_resolution_attr_that_is_set_again_is_used():
    mean = IMAGE.coarsen(z=4, y=4, x=4).mean().assign_attrs(resolution=(32, 32, 160))
    assert ix.grid_of(mean).resolution == (32, 32, 160)
    assert ix.grid_of(mean).bbox.lo_nm == (800, 1600, 400)


@pytest.mark.parametrize("one", [{"z": [2]}, {"z": [2], "y": [3]}, {"z": 2}, {"z": [0], "y": [0], "x": [7]}])
def test_an_axis_of_one_voxel_keeps_the_resolution_of_its_coordinate(one):
    without = (IMAGE * 2).isel(one)
    without.attrs.clear()
    assert ix.grid_of(without) == ix.grid_of(IMAGE.isel(one))
    assert ix.grid_of(without).resolution == (8, 8, 40)


def test_a_selected_section_keeps_its_thickness_for_any_stride_in_plane():
    assert ix.grid_of(IMAGE.isel(z=1)[::2, ::2]).resolution == (16, 16, 40)
    assert ix.to_rgba(IMAGE.isel(z=1)[::2, ::2]).shape == (4, 4, 4)


def test_a_stride_along_one_axis_keeps_the_resolution_of_the_others():
    assert ix.grid_of(IMAGE.isel(z=[1], x=slice(None, None, 2))).resolution == (16, 8, 40)


# --- contrast limits ------------------------------------------------------------------------------------------------


def test_contrast_limits_outside_all_values_warn():
    raw = (IMAGE.astype("uint16") * 100).assign_attrs(IMAGE.attrs, contrast_limits=(3000, 21000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ix.to_rgba(raw).compute()
    scaled = (raw / 65535).assign_attrs(raw.attrs)
    with pytest.warns(ix.errors.ImageryWarning, match="all black"):
        ix.to_rgba(scaled).compute()
    with pytest.warns(ix.errors.ImageryWarning, match="all black"):
        ix.to_rgba(scaled.chunk(x=4)).compute()
    with pytest.warns(ix.errors.ImageryWarning, match="all white"):
        ix.to_rgba(raw.astype("float32") + 1e6, contrast_limits=(0, 1)).compute()
    with pytest.warns(ix.errors.ImageryWarning, match="all black"):
        ix.to_rgba(IMAGE, contrast_limits=(1000, 4000))


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "object", "str"])
def test_values_that_are_not_grey_values_are_an_error_with_or_without_contrast_limits(dtype):
    image = IMAGE.astype(dtype)
    for limits in (None, (0, 255)):
        with pytest.raises(ix.errors.LayerError, match="cannot be shown as grey values"):
            ix.to_rgba(image, contrast_limits=limits)


# --- order of layers ---------------------------------------------------------------------------------------


def test_the_order_of_variables_does_not_change_a_picture(tmp_path):
    ds = xr.Dataset({"image": IMAGE, "segmentation": LABELS})
    expected = ds.imagery.overlay(alpha=0.5).values
    for turned in (ds[["segmentation", "image"]], ds.drop_vars("image").assign(image=IMAGE)):
        np.testing.assert_array_equal(turned.imagery.overlay(alpha=0.5).values, expected)
    ds.to_zarr(tmp_path / "ds.zarr", consolidated=False)
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "ds.zarr", consolidated=False).imagery.overlay(alpha=0.5).values, expected
    )


def test_the_attr_layer_order_may_draw_the_image_on_top():
    ds = xr.Dataset(
        {"image": IMAGE.assign_attrs(opacity=0.5), "segmentation": LABELS},
        attrs={"layer_order": ["segmentation", "image"]},
    )
    below = ix.overlay(None, LABELS, alpha=0.5)
    above = ix.to_rgba(IMAGE).assign_coords()
    above = above.copy(data=np.concatenate([above.values[..., :3], np.full((*above.shape[:3], 1), 128, np.uint8)], -1))
    np.testing.assert_array_equal(ds.imagery.overlay(alpha=0.5).values, ix.composite(below, above).values)


@pytest.mark.parametrize("names", list(itertools.permutations(["em", "cells", "mito"])))
def test_layers_of_one_kind_need_an_order(names):
    layers = {"em": IMAGE, "cells": LABELS, "mito": LABELS.copy(data=LABELS.values // 2)}
    ds = xr.Dataset({name: layers[name] for name in names})
    with pytest.raises(ix.errors.LayerError, match="layer_order"):
        ds.imagery.overlay()
    ds.attrs["layer_order"] = ["em", "cells", "mito"]
    expected = ix.overlay(layers["em"], [layers["cells"], layers["mito"]])
    np.testing.assert_array_equal(ds.imagery.overlay().values, expected.values)


def test_a_mask_in_a_dataset_is_drawn_as_a_segment():
    ds = xr.Dataset({"mask": LABELS > 2, "image": IMAGE})
    np.testing.assert_array_equal(ds.imagery.overlay().values, ix.overlay(IMAGE, LABELS > 2).values)


# --- other coordinates -----------------------------------------------------------------------------------

NAMED = IMAGE.assign_coords(section=("z", list("abcd")), time=5, depth=(("z", "y"), np.arange(32).reshape(4, 8)))


@pytest.mark.parametrize("origin", [lambda da: da, lambda da: da.chunk({"y": 3})])
def test_verbs_keep_other_coordinates_as_xarray_does(origin):
    da = origin(NAMED)
    part = ix.crop(da, BOX)
    plain = NAMED.isel(z=slice(1, 3), y=slice(1, 6), x=slice(2, 6))
    for name in ("section", "time", "depth"):
        assert part[name].variable.equals(plain[name].variable)
        assert ix.to_rgba(da)[name].variable.equals(NAMED[name].variable)
        assert ix.overlay(da, LABELS)[name].variable.equals(NAMED[name].variable)
    coarse = ix.regrid(da, (16, 16, 40))
    assert "section" in coarse.coords
    assert "depth" not in coarse.coords  # its values along y do not fit the coarser voxels
    assert coarse.time == 5
    wide = ix.crop(da, ix.BBox((100, 200, 9), (104, 204, 12), resolution=(8, 8, 40)))
    assert [str(v) for v in wide.section.values] == ["nan", "a", "b"]
    assert set(ix.align(da, LABELS.assign_coords(time=6)).coords) == {"z", "y", "x", "section", "depth"}
    turned = ix.plane(da, (104, 204, 12), (4, 4), resolution=(8, 8, 40), nm_per_pixel=8, normal=(1, 1, 0))
    assert "section" not in turned.coords
    assert turned.time == 5


def test_neighbouring_crops_combine_to_the_crop_of_their_union():
    parts = [
        ix.crop(as_source(IMAGE), ix.BBox((x, 200, 10), (x + 4, 208, 14), resolution=(8, 8, 40))) for x in (100, 104)
    ]
    whole = xr.combine_by_coords([part.to_dataset(name="image") for part in parts])
    xr.testing.assert_identical(whole.image.compute(), ix.crop(as_source(IMAGE), ix.grid_of(IMAGE).bbox).compute())


def test_a_picture_becomes_a_dataset():
    picture = ix.to_rgba(IMAGE)
    assert set(picture.to_dataset().data_vars) == {"picture"}
    assert xr.merge([picture, LABELS.rename("ids")]).sizes["rgba"] == 4


# --- boxes in an array's own voxels ------------------------------------------------------------------------


def test_a_box_around_a_point_counts_the_voxels_of_the_array():
    ds = xr.Dataset({"image": IMAGE, "segmentation": LABELS})
    box = ix.BBox.around((104, 203, 12), (4, 3, 2), resolution=(8, 8, 40))
    for obj in (IMAGE, ds):
        assert obj.imagery.around((104, 203, 12), (4, 3, 2)) == box
        assert obj.imagery.around((832, 1624, 480), (4, 3, 2), resolution=(1, 1, 1)) == box
        xr.testing.assert_identical(obj.imagery.crop(center=(104, 203, 12), size=(4, 3, 2)), obj.imagery.crop(box))
        xr.testing.assert_identical(
            ix.crop(obj, center=(52, 101.5, 12), size=(4, 3, 2), resolution=(16, 16, 40)), ix.crop(obj, box)
        )


@pytest.mark.parametrize(
    "given", [{}, {"center": (1, 2, 3)}, {"size": (4, 4)}, {"bbox": BOX, "center": (1, 2, 3), "size": (4, 4)}]
)
def test_a_crop_needs_one_box(given):
    with pytest.raises(ix.errors.OptionError, match="either a BBox, or center="):
        ix.crop(IMAGE, **given)


# --- signed ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["finest", (16, 16, 40)])
@pytest.mark.parametrize("wrap", [lambda da: da, lambda da: da.chunk(x=3)])
def test_a_section_and_a_volume_align_as_a_volume_of_one_section(wrap, to):
    for image, labels, expected in [
        (IMAGE.isel(z=2), LABELS, ix.align(IMAGE.isel(z=[2]), LABELS, to=to)),
        (IMAGE, LABELS.isel(z=2), ix.align(IMAGE, LABELS.isel(z=[2]), to=to)),
    ]:
        aligned = ix.align(wrap(image), wrap(labels), to=to)
        xr.testing.assert_equal(aligned, expected)
        assert aligned.sizes["z"] == 1


@pytest.mark.parametrize("chunks", ["x", (1, 2), [], 0, 1.5, {"Z": 4}, {"z": "x"}])
def test_chunks_that_dask_rejects_are_an_error_that_names_the_argument(chunks):
    with pytest.raises(ix.errors.OptionError, match="chunks="):
        ix.open_image(IMAGE, chunks=chunks)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ix.grid_of(IMAGE.values),
        lambda: ix.plane(IMAGE.values, (1, 1, 1), (4, 4)),
        lambda: ix.thumbnail(IMAGE.values),
        lambda: ix.plot(IMAGE.values),
        lambda: ix.neuroglancer_link(IMAGE.values),
        lambda: ix.open_annotations(3),
        lambda: ix.open_skeletons(None, [1]),
        lambda: ix.save_figure(ix.to_rgba(IMAGE.isel(z=0)), 3),
        lambda: ix.save_palette([(1, "red")], "palette.json"),
        lambda: ix.inset(ix.to_rgba(IMAGE.isel(z=0)), BOX, zoom="2"),
        lambda: ix.inset(ix.to_rgba(IMAGE.isel(z=0)), BOX, line=1.5),
    ],
)
def test_arguments_of_another_type_are_imagery_errors(call):
    with pytest.raises(ix.ImageryError, match=r"give|must be|not a dict"):
        call()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8])
def test_unique_ids_of_a_signed_segmentation_select_its_segments(dtype):
    seg = volume(np.array([[[-5, 3], [0, 7]]], dtype), (8, 8, 40), (0, 0, 0), layer_type="segmentation")
    ids = ix.unique_ids(seg)
    np.testing.assert_array_equal(ix.select_ids(seg, ids).values, seg.values)
    np.testing.assert_array_equal(ix.select_ids(seg, ids[:1]).values, np.where(seg.values == -5, seg.values, 0))
    one = ix.overlay(None, seg, ids=ids[:1], colors={ids[0]: "red"}, alpha=1)
    assert one.values[0, 0, 0].tolist() == [255, 0, 0, 255]
    assert not one.values[0, 0, 1].any()
    assert len(ix.palette(ids)) == 3
    with pytest.raises(ix.errors.SegmentError, match="-5"):
        ix.select_ids(seg, [-5])


def test_attributes_of_results_are_numbers_text_and_flat_lists(sample, tmp_path):
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [4600.5, 2560.5, 130.5],
        "layers": [
            {"type": "image", "name": "em", "source": sample.image},
            {"type": "segmentation", "name": "cells", "source": sample.segmentation, "segmentColors": {"1": "#ff0000"},
             "segments": ["1", "2"], "equivalences": [["1", "2"], ["3", "4", "5"]]},
            {"type": "annotation", "name": "notes"},
        ],
    }  # fmt: skip
    with pytest.warns(ix.errors.LinkWarning):
        tree = ix.open_neuroglancer(state, allow_local=True)
    ds = tree.imagery.view(size=(16, 12))
    for attrs in (ds.attrs, ds.em.attrs, ds.cells.attrs, ds.imagery.overlay().attrs):
        for name, value in attrs.items():
            assert not isinstance(value, dict | bool), name
            assert not (isinstance(value, list | tuple) and any(isinstance(v, dict | list) for v in value)), name
    ds.to_netcdf(tmp_path / "view.nc", engine="h5netcdf")
    stored = xr.open_dataset(tmp_path / "view.nc", engine="h5netcdf")
    np.testing.assert_array_equal(stored.imagery.overlay().values, ds.imagery.overlay().values)
    tree.imagery.plane((16, 12)).to_netcdf(tmp_path / "plane.nc", engine="h5netcdf")
    link = ix.neuroglancer_link(ds, allow_local=True)
    again = ix.open_neuroglancer(link, allow_local=True, layers=["em", "cells"]).imagery.view(size=(16, 12))
    np.testing.assert_array_equal(again.imagery.overlay().values, ds.imagery.overlay().values)
    assert again.cells.attrs["colors"] == ds.cells.attrs["colors"] == '{"1": "#ff0000"}'


def test_layers_apart_are_an_error_with_their_distance():
    moved = LABELS.assign_coords(x=LABELS.x + 4064)
    with pytest.raises(GridMismatchError, match=r"4,000 nm apart along x; check .* or correct a wrong offset") as error:
        ix.align(IMAGE, moved)
    assert "micrometres" not in str(error.value)
    assert ix.align(IMAGE, moved.assign_coords(x=moved.x - 4064)).sizes == {"z": 4, "y": 8, "x": 8}


def test_layers_apart_by_their_unit_are_an_error_with_the_unit():
    in_um = LABELS.assign_coords({dim: LABELS[dim].values / 1000 for dim in "zyx"}).drop_attrs()
    with pytest.raises(GridMismatchError, match="overlap if the coordinates of the segmentation are in micrometres"):
        ix.align(IMAGE, in_um)
