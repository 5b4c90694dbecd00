"""The engine of `xarray.open_dataset` returns lazily indexed arrays that equal those of imageryxr's open functions."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.graph.expr import LevelLeaf
from tests.conftest import no_compute

BOX = ix.BBox((4300, 2300, 110), (4400, 2400, 114), resolution=(8, 8, 40))


@pytest.fixture
def reads(monkeypatch):
    """Count the reads of sources."""
    counted = []
    read = LevelLeaf.read
    monkeypatch.setattr(LevelLeaf, "read", lambda self, box: counted.append(box) or read(self, box))
    return counted


def test_a_tree_has_a_group_for_each_level(sample):
    with no_compute():
        tree = xr.open_datatree(sample.image, engine="imageryxr")
        groups = xr.open_groups(sample.image, engine="imageryxr")
    assert sorted(tree.children) == ["0", "1", "2"]
    assert sorted(groups) == ["/", "/0", "/1", "/2"]
    expected = ix.open_image(sample.image, mip=1)
    xr.testing.assert_identical(tree["1/image"][:2, :9, :9].compute(), expected[:2, :9, :9].compute())
    assert tree.attrs["layer_type"] == "image"
    chunked = xr.open_datatree(sample.image, engine="imageryxr", chunks={})
    assert isinstance(chunked["2/image"].data, da.Array)


@pytest.mark.parametrize("choice", [{"group": "/1"}, {"group": "1"}, {"mip": 1}, {"mip": (16, 16, 40)}])
def test_a_group_is_a_level(sample, choice):
    ds = xr.open_dataset(sample.image, engine="imageryxr", **choice)
    assert ds.image.attrs["mip"] == 1


def test_the_engine_keeps_only_requested_ids(sample):
    seg = ix.open_segmentation(sample.segmentation, bbox=BOX)
    some = ix.unique_ids(seg)[:2].tolist()
    got = xr.open_dataset(sample.segmentation, engine="imageryxr", ids=some, bbox=BOX).segmentation
    np.testing.assert_array_equal(got.values, np.where(np.isin(seg.values, some), seg.values, 0))
    with pytest.raises(ix.errors.OptionError, match="ids"):
        xr.open_dataset(sample.image, engine="imageryxr", ids=[1])


def test_only_xarray_caches_values(sample, reads):
    for cache, count in ((True, 1), (False, 2)):
        part = xr.open_dataset(sample.image, engine="imageryxr", cache=cache).image.isel(z=0, y=slice(0, 9))
        reads.clear()
        first, second = part.values, part.values
        np.testing.assert_array_equal(first, second)
        assert len(reads) == count


def test_the_engine_returns_a_box_lazily_indexed(sample, reads):
    part = xr.open_dataset(sample.image, engine="imageryxr", bbox=BOX).image
    xr.testing.assert_identical(part[:1].compute(), ix.open_image(sample.image, bbox=BOX)[:1].compute())
    reads.clear()
    xr.open_dataset(sample.image, engine="imageryxr", bbox=BOX).image[:1, :2, :3].compute()
    assert [box.shape for box in reads] == [(1, 2, 3)]


@pytest.mark.parametrize(
    "option", ["mask_and_scale", "decode_times", "decode_timedelta", "decode_coords", "concat_characters", "decode_cf"]
)
def test_options_of_cf_conventions_change_nothing(sample, option):
    ds = xr.open_dataset(sample.image, engine="imageryxr", **{option: False})
    assert ds.image.dtype == np.uint8
    assert set(ds.coords) == {"z", "y", "x"}


@pytest.mark.parametrize("bad", [{"foo": 1}, {"group": "coarse"}, {"group": "/1", "mip": 1}])
def test_the_engine_rejects_invalid_options(sample, bad):
    with pytest.raises(ix.errors.OptionError):
        xr.open_dataset(sample.image, engine="imageryxr", **bad)


def test_addresses_and_folders_of_supported_formats_are_recognised(sample, tmp_path):
    from imageryxr.ops.xarray_engine import ImageryBackend

    guess = ImageryBackend().guess_can_open
    folder = sample.image.removeprefix("precomputed://file://")
    for yes in (sample.image, folder, "graphene://https://h/segmentation/table/t", "zarr://s3://b/a.zarr"):
        assert guess(yes)
    for no in (str(tmp_path), "https://host/a.nc", 5, b"CDF"):
        assert not guess(no)
    assert xr.open_dataset(folder).image.attrs["mip"] == 0
