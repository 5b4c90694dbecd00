"""Measurements of cutouts equal the measurements of the crop around each centre."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import imageryxr as ix
from imageryxr.errors import GridMismatchError, LayerError, MissingIdsWarning, OptionError
from tests.conftest import volume
from tests.support.counted_source import READS, open_counted
from tests.support.measured import IDS
from tests.support.volumes import as_source

RESOLUTION, OFFSET = (4.04, 8, 40), (-7, 3, -2)
rng = np.random.default_rng(5)
LABELS = IDS[np.kron(rng.integers(0, len(IDS), (3, 5, 5)), np.ones((3, 4, 5), int))]
SEG = volume(LABELS, RESOLUTION, OFFSET, layer_type="segmentation")
EM = SEG.copy(data=rng.integers(0, 255, SEG.shape).astype(np.uint8)).assign_attrs(layer_type="image")
CENTERS = np.array([(-5, 5, 0), (3, 12, 3), (17, 22, 6), (3, 12, 3)])
SIZE = (9, 7, 4)


lacks_ids = pytest.mark.filterwarnings("ignore::imageryxr.errors.MissingIdsWarning")


def boxes(kind):
    ds = xr.Dataset({"image": EM, "segmentation": SEG})
    if kind == "lazy":
        ds = xr.Dataset({n: as_source(ds[n]) for n in ds})
    table = {**dict(zip("xyz", CENTERS.T, strict=True)), "pre_id": IDS[[1, 6, 7, 7]], "post_id": IDS[[2, 2, 5, 5]]}
    found = ix.cutouts(ds, table, SIZE, resolution=RESOLUTION)
    return found.chunk(cutout=3) if kind == "dask" else found


def crops():
    for center in CENTERS.tolist():
        yield [ix.crop(a, center=center, size=SIZE, resolution=RESOLUTION) for a in (SEG, EM)]


@pytest.mark.parametrize("kind", ["in memory", "dask", "lazy"])
def test_segments_of_each_cutout_equal_those_of_its_crop(kind):
    ds = boxes(kind)
    cells = ix.measure(ds.segmentation, ds.image, percentiles=[5, 50])
    assert cells.segment.dtype == np.uint64
    assert cells.cutout.dims == ("segment",)
    for i, (seg, em) in enumerate(crops()):
        one = cells.isel(segment=np.flatnonzero(cells.cutout == i))
        expected = ix.measure(seg, em, percentiles=[5, 50])
        assert expected.sizes["segment"]
        xr.testing.assert_allclose(one[list(expected.variables)].reset_coords(drop=True), expected, rtol=1e-12)
        assert one.voxels.values.tolist() == expected.voxels.values.tolist()
        assert set(one.pre_id.values.tolist()) == {int(ds.pre_id[i])}


def test_the_table_has_a_row_per_cutout_and_segment():
    cells = boxes("in memory").imagery.measure()
    table = cells.imagery.to_dataframe()
    assert {"cutout", "pre_id", "post_id", "center_x", "voxels", "centroid_x"} <= set(table.columns)
    assert table.index.name == "segment"
    assert len(table) == cells.sizes["segment"] > len(CENTERS)
    assert table["cutout"].is_monotonic_increasing
    shared = int(pd.Series(table.index).value_counts().index[0])
    assert (cells.sel(segment=shared).segment == np.uint64(shared)).all()


@lacks_ids
@pytest.mark.parametrize("kind", ["in memory", "lazy"])
def test_a_column_selects_other_ids_in_each_cutout(kind):
    ds = boxes(kind)
    every = ix.measure(ds.segmentation, ds.image).drop_attrs()
    own = ix.measure(ds.segmentation, ds.image, ids=ds.pre_id).drop_attrs()
    assert own.identical(every.isel(segment=np.flatnonzero(every.segment == every.pre_id)))
    both = ix.measure(ds.segmentation, ds.image, ids=[ds.pre_id, ds.post_id]).drop_attrs()
    kept = (every.segment == every.pre_id) | (every.segment == every.post_id)
    assert both.identical(every.isel(segment=np.flatnonzero(kept)))


def test_ids_of_all_cutouts_warn_only_if_no_cutout_has_them():
    ds = boxes("in memory")
    every = ix.measure(ds.segmentation)
    some = every.segment.values[:1].tolist()
    assert set(ix.measure(ds.segmentation, ids=some).segment.values.tolist()) == set(some)
    with pytest.warns(MissingIdsWarning, match="1 of the 2 requested ids") as caught:
        ix.measure(ds.segmentation, ids=[*some, 123456])
    assert caught[0].filename == __file__


@pytest.mark.fast_forms(4)
@pytest.mark.parametrize("kind", ["in memory", "dask", "lazy"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda ds, ids: ix.measure(ds.segmentation, ids=ids),
        lambda ds, ids: ix.select_ids(ds.segmentation, ids).compute(),
        lambda ds, ids: ix.overlay(ds.image, ds.segmentation, ids=ids, colors=["red", "cyan"]).compute(),
        lambda ds, ids: ix.outline(ds.segmentation, ids=ids).compute(),
    ],
    ids=["measure", "select_ids", "overlay", "outline"],
)
def test_cutouts_without_their_own_ids_are_reported_once(kind, draw):
    ds = boxes(kind)
    held = ds.segmentation.values
    here = [[int(values.max()) for values in held], [0, 12345, int(held[2].max()), 54321]]
    ds = ds.assign_coords(pre_id=("cutout", np.uint64(here[0])), post_id=("cutout", np.uint64(here[1])))
    ds = ds.assign_coords(cutout=[3, 5, 7, 9])
    with pytest.warns(MissingIdsWarning) as caught:
        draw(ds, [ds.pre_id, ds.post_id])
    (message,) = [str(one.message) for one in caught]
    assert message.startswith("2 of 4 cutouts do not contain their post_id, e.g. cutout 5: 12345; ")
    pre_id = ds.pre_id.copy(data=np.uint64([*here[0][:3], 77]))
    with pytest.warns(MissingIdsWarning, match="1 of 4 cutouts do not contain their pre_id, e.g. cutout 9: 77; 2 of 4"):
        draw(ds, [pre_id, ds.post_id])
    draw(ds, [ds.pre_id, ds.pre_id])


def test_measuring_all_cutouts_reads_each_chunk_once():
    found = ix.cutouts(open_counted(), [(60, 90, 320), (300, 200, 500), (62, 91, 330), (410, 320, 610)], (16, 12, 3))
    READS.clear()
    assert ix.measure(found).sizes["segment"]
    assert set(READS.values()) == {1}


def test_cutouts_of_background_have_an_empty_table():
    ds = boxes("in memory")
    empty = ix.measure(ds.segmentation * np.uint64(0), ds.image)
    assert empty.sizes["segment"] == 0
    assert empty["mean"].dtype == float
    assert empty.imagery.to_dataframe().empty


@lacks_ids
@pytest.mark.parametrize("kind", ["in memory", "dask", "lazy"])
def test_selected_ids_of_cutouts_equal_those_of_each_cutout(kind):
    seg = boxes(kind).segmentation
    held, ids = seg.compute(), IDS[[2, 7]].tolist()
    found = ix.select_ids(seg, ids)
    assert found.dims == seg.dims
    assert found.dtype == seg.dtype
    assert found.attrs["ids"] == ids
    np.testing.assert_array_equal(found.values, np.where(np.isin(held, IDS[[2, 7]]), held, 0))
    own = ix.select_ids(seg, seg.pre_id)
    np.testing.assert_array_equal(own.values, held.where(held == held.pre_id, np.uint64(0)).transpose(*held.dims))


def test_wrong_arguments_are_errors():
    ds = boxes("in memory")
    with pytest.raises(GridMismatchError, match="different centres"):
        ix.measure(ds.segmentation, ds.image.isel(cutout=[1, 0, 2, 3]))
    with pytest.raises(GridMismatchError, match="have 4 and 2 cutouts"):
        ix.measure(ds.segmentation, ds.image.isel(cutout=[0, 1]))
    with pytest.raises(LayerError, match="the other array has the dim 'cutout'"):
        ix.measure(ds.segmentation, EM)
    with pytest.raises(LayerError, match="no cutouts"):
        ix.measure(ds.segmentation.isel(cutout=[]))
    with pytest.raises(OptionError, match=r"rename\(volume='volume_of_cutout'\)"):
        ix.measure(ds.segmentation.assign_coords(volume=("cutout", [1, 2, 3, 4])))
