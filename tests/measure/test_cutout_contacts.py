"""The contacts in each cutout equal those of its crop."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import MissingIdsWarning, OptionError
from tests.support import counted_source
from tests.support.paired_cutouts import CENTERS, SIZE, boxes, lacks_ids


@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_contacts_in_each_cutout_equal_those_of_its_crop(kind):
    found = ix.contacts(boxes(kind).segmentation)
    held = counted_source.array_in_memory()
    for i, center in enumerate(CENTERS):
        crop = ix.crop(held, center=center, size=SIZE, resolution=(1, 1, 1))
        expected = ix.contacts(crop)
        own = found.isel(contact=found.cutout == i)
        assert expected.sizes["contact"]
        for name in ("segment_a", "segment_b", "faces"):
            np.testing.assert_array_equal(own[name], expected[name])
        for name in ("area", "centroid"):
            np.testing.assert_allclose(own[name], expected[name], rtol=1e-12)
    np.testing.assert_array_equal(found.pre_id, boxes(kind).pre_id.values[found.cutout])
    table = found.imagery.to_dataframe()
    assert {"cutout", "segment_a", "faces", "centroid_x", "pre_id"} <= {*table.columns}


@lacks_ids
@pytest.mark.parametrize("kind", ["dask", "in memory"])
def test_a_column_selects_other_ids_in_each_cutout(kind):
    ds = boxes(kind)
    every = ix.contacts(ds.segmentation)
    is_own = (every.segment_a == every.pre_id) | (every.segment_b == every.pre_id)
    for ids in ("pre_id", ds.pre_id):
        assert ix.contacts(ds.segmentation, ids=ids).identical(every.isel(contact=is_own))
    shared = int(every.segment_a[0])
    has_shared = (every.segment_a == shared) | (every.segment_b == shared)
    assert ix.contacts(ds.segmentation, ids=[shared]).identical(every.isel(contact=has_shared))


def test_missing_ids_warn_in_cutouts():
    ds = boxes("in memory").assign_coords(far=("cutout", np.full(5, 2**64 - 1, np.uint64)))
    with pytest.warns(MissingIdsWarning, match="5 of 5 cutouts do not contain their far"):
        assert ix.contacts(ds.segmentation, ids="far").sizes["contact"] == 0
    with pytest.warns(MissingIdsWarning, match=f"1 of the 1 requested ids are not in the data: {2**64 - 1}"):
        ix.contacts(ds.segmentation, ids=[2**64 - 1])
    with pytest.raises(OptionError, match="value for each cutout"):
        ix.contacts(ds.segmentation, ids=ds.pre_id.values)


def test_contacts_of_single_voxels_with_ids_near_the_limit_are_found():
    top = np.uint64(2**64 - 1)
    values = np.array([[[top, top - np.uint64(1)], [0, top]]], np.uint64)
    grid = ix.Grid((1, 2, 2), (4.04, 4.04, 40), (-7, 5, -1))
    seg = xr.DataArray(values, grid.coords(), ("z", "y", "x"), attrs={"layer_type": "segmentation"})
    centers = [(-6.5 * 4.04 + d, 6.5 * 4.04, -20) for d in (0, 4.04)]
    found = ix.contacts(ix.cutouts(seg, centers, (2, 2, 1)))
    assert found.segment_b.values.tolist() == [int(top)] * len(found.contact)
    whole = ix.contacts(seg)
    second = found.isel(contact=found.cutout == 1)
    np.testing.assert_array_equal(second.centroid, whole.centroid)
    assert ix.contacts(ix.cutouts(seg, centers, (1, 1, 1))).sizes["contact"] == 0
