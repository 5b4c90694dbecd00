"""Attributes can be written to netCDF and Zarr files, and functions accept the types that these files return."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.core.array_labels import LargeIds, list_from_attr, parse_json_attr, plain_attrs
from tests.support.slow import slow_except

ENGINES = ["h5netcdf", "netcdf4"]


def write_and_read(obj, path, engine):
    """Write a Dataset or tree to a file and read it back."""
    if engine == "netcdf4" and importlib.util.find_spec("netCDF4") is None:
        pytest.skip("netCDF4 is not installed")
    is_tree = isinstance(obj, xr.DataTree)
    if engine == "zarr":
        obj.to_zarr(path, consolidated=False)
        return (xr.open_datatree if is_tree else xr.open_dataset)(path, engine="zarr", consolidated=False)
    obj.to_netcdf(path, engine=engine)
    return (xr.open_datatree if is_tree else xr.open_dataset)(path, engine=engine)


@pytest.fixture
def tree(sample):
    state = {
        "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        "position": [4600.5, 2560.5, 130.5],
        "crossSectionScale": 2,
        "displayDimensions": ["x", "z", "y"],
        "layers": [
            {"type": "image", "name": "em", "source": sample.image},
            {"type": "segmentation", "name": "cells", "source": sample.segmentation, "segmentColors": {"1": "#ff0000"},
             "segments": ["1"], "equivalences": [["1", "2"], ["3", "4", "5"]]},
            {"type": "annotation", "name": "notes"},
        ],
    }  # fmt: skip
    with pytest.warns(ix.errors.LinkWarning):
        opened = ix.open_neuroglancer(state, allow_local=True)
    # Crop the layers, so that their files are small.
    nodes = {f"/{name}": ix.crop(node.to_dataset(), ix.BBox.around((4600, 2560, 130), (64, 48, 12), resolution=(8, 8, 40)))
             for name, node in opened.children.items()}  # fmt: skip
    return xr.DataTree.from_dict({"/": opened.to_dataset(), **nodes}), opened


@pytest.mark.fast_forms(1)
@pytest.mark.parametrize("engine", [*ENGINES, "zarr"])
def test_the_tree_of_a_link_survives_a_file(tree, tmp_path, engine):
    cropped, _ = tree
    again = write_and_read(cropped, tmp_path / "tree.nc", engine)
    assert ix.neuroglancer_link(again, allow_local=True) == ix.neuroglancer_link(cropped, allow_local=True)
    with pytest.warns(ix.errors.LinkWarning, match="displayDimensions"):
        before, after = cropped.imagery.view(size=(16, 12)), again.imagery.view(size=(16, 12))
    np.testing.assert_array_equal(after.imagery.overlay().values, before.imagery.overlay().values)
    before, after = (t.imagery.plane((16, 6), nm_per_pixel=8) for t in (cropped, again))
    np.testing.assert_array_equal(after.imagery.overlay().values, before.imagery.overlay().values)


@pytest.mark.parametrize("engine", [*ENGINES, "zarr"])
@pytest.mark.parametrize("verb", slow_except(["view", "plane", "turned"], "turned"))
def test_view_and_plane_survive_a_file(tree, tmp_path, engine, verb):
    _, opened = tree
    if verb == "view":
        del opened.attrs["display_dimensions"]
    if verb == "turned":
        opened.attrs["orientation"] = [0, 0, 0.6, 0.8]
    ds = opened.imagery.view((16, 6)) if verb == "view" else opened.imagery.plane((16, 6))
    again = write_and_read(ds, tmp_path / "cut.nc", engine)
    np.testing.assert_array_equal(again.imagery.overlay().values, ds.imagery.overlay().values)
    assert ix.neuroglancer_link(again, allow_local=True) == ix.neuroglancer_link(ds, allow_local=True)


def test_all_returned_attrs_can_be_written_to_any_file(tree):
    cropped, opened = tree
    ds = cropped.imagery.plane((16, 6))
    held = [node.attrs for node in opened.subtree] + [
        v.attrs for node in opened.subtree for v in node.variables.values()
    ]
    held += [ds.attrs, ds.em.attrs, ds.imagery.overlay().attrs, ix.select_ids(ds.cells, [1, 2**64 - 1]).attrs]
    for attrs in held:
        assert plain_attrs(attrs) == attrs
        for name, value in attrs.items():
            assert not isinstance(value, dict | bool | None), name
            if isinstance(value, list | tuple):
                array = np.asarray(value)
                assert (array.dtype.kind in "iufU", array.ndim) == (True, 1), name


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "json"])
def test_nested_attrs_of_earlier_versions_are_accepted(tree, nested):
    cropped, _ = tree
    ds = cropped.imagery.plane((16, 6))
    link = ix.neuroglancer_link(ds, allow_local=True)
    axes = np.reshape(ds.em.attrs["plane_axes"], (3, 3)).tolist()
    ds.em.attrs["plane_axes"] = axes if nested else json.dumps(axes)
    ds.cells.attrs["colors"] = {"1": "#ff0000"} if nested else '{"1": "#ff0000"}'
    ds.attrs["dimensions"] = parse_json_attr(ds.attrs["dimensions"]) if nested else ds.attrs["dimensions"]
    assert ix.neuroglancer_link(ds, allow_local=True) == link


@pytest.mark.parametrize("engine", ENGINES)
def test_ids_of_any_size_survive_a_file(tmp_path, engine):
    ids = [1, 2**53 + 1, 2**63, 2**64 - 1]
    grid = ix.Grid((1, 1, 4), (8, 8, 40), (0, 0, 0))
    values = np.array(ids, np.uint64).reshape(1, 1, 4)
    seg = xr.DataArray(
        values, dims=("z", "y", "x"), coords=grid.coords(), attrs={"source": "precomputed://https://a.b/c"}
    )
    kept = ix.select_ids(seg, ids).to_dataset(name="segmentation")
    kept.segmentation.attrs["layer_type"] = "segmentation"
    again = write_and_read(kept, tmp_path / "ids.nc", engine)
    assert [int(i) for i in list_from_attr(again.segmentation.attrs["ids"])] == ids
    assert ix.neuroglancer_link(again) == ix.neuroglancer_link(kept)
    looked = seg.assign_attrs(selected_ids=ids[2:], layer_type="segmentation").to_dataset(name="segmentation")
    again = write_and_read(looked, tmp_path / "looked.nc", engine)
    np.testing.assert_array_equal(
        ix.overlay(None, again.segmentation).values, ix.overlay(None, looked.segmentation).values
    )


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": [1, "b"]}, '{"a": [1, "b"]}'),
        ([[1, 2], [3]], "[[1, 2], [3]]"),
        ([[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
        ([True, False], [1, 0]),
        ((np.float32(0.5), 1), (0.5, 1)),
        ([1, "a"], '[1, "a"]'),
        ([1, 2**64 - 1], [1, 2**64 - 1]),
        ([2**64 - 1], [2**64 - 1]),
        (np.uint64(7), 7),
        ([], []),
    ],
)
def test_plain_attrs_converts_values(value, plain):
    found = plain_attrs({"k": value})["k"]
    assert found == plain
    assert type(found) is type(plain) or isinstance(found, LargeIds)
